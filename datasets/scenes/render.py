"""Renderer: anti-aliased signed-distance shapes on 64x64 RGB, vectorised over scenes and objects.

A signed distance d (in pixels, negative inside) becomes coverage clip(0.5 - d, 0, 1): the box-filter
approximation for an edge that is straight at the scale of a pixel.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.datasets.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    IMAGE_SIZE,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
)

RADIUS = {"small": 6.0, "large": 9.0}
JITTER = 1.2
STRIPE_PERIOD = 5.0
DOT_SPACING = 5.0
DOT_RADIUS = 1.55
_CELL = IMAGE_SIZE / GRID


@dataclass(frozen=True)
class SceneBatch:
    """N scenes as tensors.

    Attributes:
        shape, colour, texture, size: int64 [N, MAX_OBJECTS], indices; -1 in `shape` where there is no object.
        cell: int64 [N, MAX_OBJECTS].
        offset: float32 [N, MAX_OBJECTS, 2], jitter (x, y) from the cell's centre in pixels.
        background: int64 [N].
    """

    shape: Tensor
    colour: Tensor
    texture: Tensor
    size: Tensor
    cell: Tensor
    offset: Tensor
    background: Tensor

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.shape.shape[0]

    def to(self, device: torch.device | str) -> SceneBatch:
        """Return the batch on another device."""
        return SceneBatch(**{name: value.to(device) for name, value in vars(self).items()})

    def part(self, start: int, stop: int) -> SceneBatch:
        """Return scenes start ... stop - 1."""
        return SceneBatch(**{name: value[start:stop] for name, value in vars(self).items()})


def batch_scenes(scenes: Sequence[Scene], seed: str) -> SceneBatch:
    """Turn scenes into tensors; `seed` fixes the jitter."""
    rng = random.Random(seed)
    rows = torch.zeros(len(scenes), MAX_OBJECTS, 5, dtype=torch.int64)
    rows[:, :, 0] = -1
    offset = torch.zeros(len(scenes), MAX_OBJECTS, 2)
    for i, scene in enumerate(scenes):
        for j, thing in enumerate(scene.objects):
            rows[i, j] = torch.tensor((*thing.attributes, thing.cell))
            offset[i, j] = torch.tensor((rng.uniform(-JITTER, JITTER), rng.uniform(-JITTER, JITTER)))
    background = torch.tensor([scene.background for scene in scenes], dtype=torch.int64)
    shape, colour, texture, size, cell = rows.unbind(-1)
    return SceneBatch(shape, colour, texture, size, cell, offset, background)


def random_batch(n: int, generator: torch.Generator, device: torch.device | str = "cpu") -> SceneBatch:
    """Draw N scenes of one to three objects in any cells, without captions."""

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator, device=device)

    count = draw(MAX_OBJECTS, n) + 1
    cell = torch.rand(n, GRID * GRID, generator=generator, device=device).argsort(1)[:, :MAX_OBJECTS]
    present = torch.arange(MAX_OBJECTS, device=device) < count[:, None]
    shape = torch.where(present, draw(len(SHAPES), n, MAX_OBJECTS), -1)
    offset = (torch.rand(n, MAX_OBJECTS, 2, generator=generator, device=device) * 2 - 1) * JITTER
    colour, texture = draw(len(COLOURS), n, MAX_OBJECTS), draw(len(TEXTURES), n, MAX_OBJECTS)
    return SceneBatch(
        shape, colour, texture, draw(len(SIZES), n, MAX_OBJECTS), cell, offset, draw(len(BACKGROUNDS), n)
    )


def _polygon(vertices: Sequence[tuple[float, float]]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the signed distance of a simple polygon given in units of the radius."""

    def distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
        nearest = torch.full_like(x, math.inf)
        sign = torch.ones_like(x)
        for (ax, ay), (bx, by) in zip(vertices, [*vertices[1:], vertices[0]], strict=True):
            px, py = x - ax * radius, y - ay * radius
            ex, ey = (bx - ax) * radius, (by - ay) * radius
            t = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
            nearest = torch.minimum(nearest, (px - ex * t) ** 2 + (py - ey * t) ** 2)
            below, above = y >= ay * radius, y < by * radius
            left = ex * py > ey * px
            crossing = (below & above & left) | (~below & ~above & ~left)
            sign = torch.where(crossing, -sign, sign)
        return sign * nearest.sqrt()

    return distance


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - radius


def _ring(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.74 * radius).abs() - 0.26 * radius


def _moon(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    bite = torch.hypot(x - 0.55 * radius, y) - 0.8 * radius
    return torch.maximum(_circle(x, y, radius), -bite)


def _heart(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    lobe = torch.hypot(x.abs() - 0.44 * radius, y + 0.33 * radius) - 0.53 * radius
    return torch.minimum(lobe, _HEART_TIP(x, y, radius))


def _star_vertices(points: int, inner: float) -> list[tuple[float, float]]:
    radii = [1.0, inner] * points
    return [
        (r * math.sin(math.pi * i / points), -r * math.cos(math.pi * i / points)) for i, r in enumerate(radii)
    ]


_HEART_TIP = _polygon([(-0.90, -0.05), (0.0, -0.45), (0.90, -0.05), (0.0, 1.0)])
_CROSS = [(-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32)]
_CROSS += [(-x, -y) for x, y in _CROSS]
_DISTANCE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _polygon([(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]),
    "triangle": _polygon([(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)]),
    "diamond": _polygon([(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)]),
    "star": _polygon(_star_vertices(5, 0.45)),
    "cross": _polygon(_CROSS),
    "ring": _ring,
    "heart": _heart,
    "moon": _moon,
    "hourglass": _polygon([(-0.85, -1), (0.85, -1), (0.18, 0), (0.85, 1), (-0.85, 1), (-0.18, 0)]),
}


def _texture(x: Tensor, y: Tensor, texture: Tensor, colour: Tensor) -> Tensor:
    """Colour of each pixel of each object: [M, 3, S, S], for offsets x, y [M, S, S] from its centre."""
    phase = (x / STRIPE_PERIOD + 0.25) % 1.0
    stripe = (0.5 + (0.25 - (phase - 0.5).abs()) * STRIPE_PERIOD).clamp(0, 1)
    dx = x - DOT_SPACING * torch.round(x / DOT_SPACING)
    dy = y - DOT_SPACING * torch.round(y / DOT_SPACING)
    dot = (0.5 + DOT_RADIUS - torch.hypot(dx, dy)).clamp(0, 1)
    kind = texture[:, None, None]
    dark = torch.where(kind == TEXTURES.index("striped"), stripe, 0.0)
    dark = torch.where(kind == TEXTURES.index("dotted"), dot, dark)[:, None]
    return colour[:, :, None, None] * (1 - 0.65 * dark)


def _backgrounds(device: torch.device) -> Tensor:
    """All backgrounds: float32 [8, 3, 64, 64] in 0..1."""
    y, x = torch.meshgrid(torch.arange(IMAGE_SIZE), torch.arange(IMAGE_SIZE), indexing="ij")
    ramp = ((y + 0.5) / IMAGE_SIZE)[None]

    def plain(*rgb: int) -> Tensor:
        return torch.tensor(rgb, dtype=torch.float32)[:, None, None].expand(3, IMAGE_SIZE, IMAGE_SIZE)

    squares = ((x // 8 + y // 8) % 2 == 0)[None]
    pictures = {
        "black": plain(14, 14, 16),
        "white": plain(244, 244, 244),
        "gray": plain(128, 128, 128),
        "navy": plain(20, 26, 72),
        "cream": plain(238, 226, 192),
        "checkered": torch.where(squares, plain(92, 92, 92), plain(156, 156, 156)),
        "dusk": plain(38, 20, 74) * (1 - ramp) + plain(104, 46, 92) * ramp,
        "misty": plain(226, 231, 236) * (1 - ramp) + plain(138, 154, 170) * ramp,
    }
    return torch.stack([pictures[name] for name in BACKGROUNDS]).to(device) / 255


def render(batch: SceneBatch) -> Tensor:
    """Render scenes to float32 [N, 3, 64, 64] in 0..1, on the batch's device."""
    device = batch.shape.device
    image = _backgrounds(device)[batch.background]
    radii = torch.tensor([RADIUS[name] for name in SIZES], device=device)
    colours = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=device) / 255
    pixel = torch.arange(IMAGE_SIZE, device=device) + 0.5
    for slot in range(MAX_OBJECTS):
        for index, name in enumerate(SHAPES):
            rows = (batch.shape[:, slot] == index).nonzero().squeeze(1)
            if rows.numel() == 0:
                continue
            cell, offset = batch.cell[rows, slot], batch.offset[rows, slot]
            cx = (cell % GRID + 0.5) * _CELL + offset[:, 0]
            cy = (cell // GRID + 0.5) * _CELL + offset[:, 1]
            x = (pixel[None, None, :] - cx[:, None, None]).expand(-1, IMAGE_SIZE, -1)
            y = (pixel[None, :, None] - cy[:, None, None]).expand(-1, -1, IMAGE_SIZE)
            radius = radii[batch.size[rows, slot]][:, None, None]
            cover = (0.5 - _DISTANCE[name](x, y, radius)).clamp(0, 1)[:, None]
            paint = _texture(x, y, batch.texture[rows, slot], colours[batch.colour[rows, slot]])
            image[rows] = image[rows] * (1 - cover) + paint * cover
    return image
