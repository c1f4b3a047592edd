"""A small network that reads an image of the world back into its attributes.

It gives prompt accuracy, features for FID, KID, precision and recall, and feature maps for `lpips_scene`.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from harness.datasets.contract import Prompt
from harness.datasets.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    holds,
)

FEATURES = 64
_HEADS = {"shape": len(SHAPES) + 1, "colour": len(COLOURS), "texture": len(TEXTURES), "size": len(SIZES)}
NO_OBJECT = len(SHAPES)
"""Index of "no object in this cell" among the shape logits."""


class Reading(NamedTuple):
    """What the recogniser sees in N images.

    Attributes:
        features: float32 [N, 64].
        stages: feature maps [N, C, h, w], from fine to coarse.
        shape: logits [N, 11, 3, 3]; the last class is "no object in this cell".
        colour: logits [N, 10, 3, 3].
        texture: logits [N, 3, 3, 3].
        size: logits [N, 2, 3, 3].
        background: logits [N, 8].
    """

    features: Tensor
    stages: tuple[Tensor, ...]
    shape: Tensor
    colour: Tensor
    texture: Tensor
    size: Tensor
    background: Tensor


def _stage(inside: int, outside: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1), nn.GroupNorm(8, outside), nn.SiLU(),
        nn.Conv2d(outside, outside, 3, 1, 1), nn.GroupNorm(8, outside), nn.SiLU(),
    )  # fmt: skip


class Recogniser(nn.Module):
    """Three strided stages, then one 64-vector per cell of the 3x3 grid, from which each attribute is read.

    The 6x6 kernel with stride 5 cuts the 16x16 map into exactly the grid's cells. The features of an image
    are the mean of its nine cell vectors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([_stage(3, 32, 1), _stage(32, 64, 2), _stage(64, 96, 2)])
        self.cells = nn.Sequential(
            nn.Conv2d(96, 160, 6, 5), nn.GroupNorm(8, 160), nn.SiLU(), nn.Conv2d(160, FEATURES, 1), nn.SiLU()
        )
        self.heads = nn.ModuleDict(
            {name: nn.Conv2d(FEATURES, classes, 1) for name, classes in _HEADS.items()}
        )
        self.background = nn.Linear(FEATURES, len(BACKGROUNDS))

    def forward(self, images: Tensor) -> Reading:
        """Read images, float32 [N, 3, 64, 64] in 0..1."""
        hidden = images * 2 - 1
        stages = []
        for stage in self.stages:
            hidden = stage(hidden)
            stages.append(hidden)
        cells = self.cells(hidden)
        features = cells.mean((2, 3))
        heads = {name: head(cells) for name, head in self.heads.items()}
        return Reading(features, tuple(stages), **heads, background=self.background(features))


def assets() -> Path:
    """Return the folder of the shipped weights and statistics."""
    return Path(str(files("harness.datasets") / "scenes" / "assets"))


@cache
def load_recogniser() -> Recogniser:
    """Return the shipped recogniser in eval mode, float32 on the CPU (one instance per process)."""
    recogniser = Recogniser()
    state = load_file(assets() / "recogniser.safetensors")
    recogniser.load_state_dict({name: value.float() for name, value in state.items()})
    return recogniser.eval().requires_grad_(False)


@cache
def _reference() -> dict[str, Tensor]:
    return load_file(assets() / "reference.safetensors")


def reference_features() -> Tensor:
    """Features of rendered held-out scenes: float32 [N >= 20,000, 64]."""
    return _reference()["features"].float()


def reference_radii() -> Tensor:
    """Distance of each reference feature to its third nearest neighbour among them: float32 [N]."""
    return _reference()["radii"].float()


def neighbour_radii(features: Tensor, k: int = 3) -> Tensor:
    """Distance of each row of [N, d] to its k-th nearest other row: [N].

    Differences are formed directly: through a matrix product, tf32 and cancellation cost ten per cent here.
    """
    exact = "donot_use_mm_for_euclid_dist"
    rows = [
        torch.cdist(part, features, compute_mode=exact).kthvalue(k + 1, dim=1).values
        for part in torch.split(features, 1024)
    ]
    return torch.cat(rows)


def _grid(reading: Reading, index: int) -> dict[int, tuple[str, str, str, str]]:
    """Cell -> (shape, colour, texture, size), of one image."""
    names = (SHAPES, tuple(COLOURS), TEXTURES, SIZES)
    logits = (reading.shape, reading.colour, reading.texture, reading.size)
    best = [values[index].argmax(0).flatten().tolist() for values in logits]
    found: dict[int, tuple[str, str, str, str]] = {}
    for cell in range(GRID * GRID):
        if best[0][cell] != NO_OBJECT:
            shape, colour, texture, size = (name[b[cell]] for name, b in zip(names, best, strict=True))
            found[cell] = (shape, colour, texture, size)
    return found


class Verdict(NamedTuple):
    """Whether an image shows its prompt, part by part."""

    objects: bool
    relations: bool
    background: bool

    @property
    def right(self) -> bool:
        """All attributes and the relations right."""
        return self.objects and self.relations and self.background


def examine(reading: Reading, index: int, facts: dict[str, Any]) -> Verdict:
    """Compare what is read in image `index` with a scene's facts (`Scene.facts`).

    Objects are right when exactly the described ones are there. Relations can only be right then.
    """
    found = _grid(reading, index)
    wanted = [tuple(thing) for thing in facts["objects"]]
    objects = sorted(found.values()) == sorted(wanted)
    background = BACKGROUNDS[int(reading.background[index].argmax())] == facts["background"]
    if not objects:
        return Verdict(False, False, background)
    cell_of = {thing: cell for cell, thing in found.items()}
    relations = all(
        holds(RELATIONS.index(name), cell_of[wanted[i]], cell_of[wanted[j]])
        for i, name, j in facts["relations"]
    )
    return Verdict(objects, relations, background)


def judge(reading: Reading, prompts: list[Prompt]) -> list[bool]:
    """Whether each image shows its prompt: all attributes and the relations right."""
    return [examine(reading, index, prompt.facts).right for index, prompt in enumerate(prompts)]


def recogniser_loss(
    reading: Reading, shape: Tensor, attributes: dict[str, Tensor], background: Tensor
) -> Tensor:
    """Cross-entropy of every head; attributes count only in cells that hold an object.

    Args:
        reading: the recogniser's output for N images.
        shape: int64 [N, 9], NO_OBJECT where a cell is empty.
        attributes: `colour`, `texture` and `size`, int64 [N, 9].
        background: int64 [N].
    """
    loss = F.cross_entropy(reading.shape.flatten(2), shape) + F.cross_entropy(reading.background, background)
    present = (shape != NO_OBJECT).float()
    for name, target in attributes.items():
        each = F.cross_entropy(getattr(reading, name).flatten(2), target, reduction="none")
        loss = loss + (each * present).sum() / present.sum()
    return loss
