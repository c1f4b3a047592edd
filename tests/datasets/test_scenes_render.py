"""The renderer against areas and supersampled shapes computed independently."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from harness.datasets.scenes.render import RADIUS, SceneBatch, batch_scenes, random_batch, render
from harness.datasets.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    scenes,
)


def one(
    shape: str, size: str = "large", texture: str = "plain", cell: int = 4, colour: str = "red"
) -> SceneBatch:
    """One centred object without jitter on black."""
    thing = SceneObject(
        SHAPES.index(shape), list(COLOURS).index(colour), TEXTURES.index(texture), SIZES.index(size), cell
    )
    batch = batch_scenes([Scene((thing,), (), BACKGROUNDS.index("black"))], "none")
    batch.offset.zero_()
    return batch


def coverage(batch: SceneBatch) -> np.ndarray:
    """Share of each pixel the object covers, from the red channel (background 14, red 220)."""
    red = render(batch)[0, 0].double().numpy() * 255
    return np.asarray((red - 14) / (220 - 14))


AREAS = {
    "circle": math.pi,
    "square": (2 * 0.84) ** 2,
    "triangle": 0.5 * 1.9 * 1.8,
    "diamond": 0.5 * 1.4 * 2,
    "star": 5 * math.sin(math.pi / 5) * 0.45,
    "cross": 4 * 0.64 - 0.64**2,
    "ring": math.pi * (1 - 0.48**2),
    "hourglass": 2 * 0.5 * (1.7 + 0.36),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", sorted(AREAS))
def test_covered_area_is_the_shape_s(shape: str, size: str) -> None:
    area = coverage(one(shape, size)).sum() / RADIUS[size] ** 2
    assert area == pytest.approx(AREAS[shape], rel=0.03)


def test_a_moon_is_a_disc_less_a_bite_and_a_heart_is_symmetric() -> None:
    size = RADIUS["large"]
    y, x = np.mgrid[0:64:0.1, 0:64:0.1] + 0.05 - 32
    disc = np.hypot(x, y) < size
    bite = np.hypot(x - 0.55 * size, y) < 0.8 * size
    assert coverage(one("moon")).sum() == pytest.approx((disc & ~bite).sum() * 0.01, rel=0.04)
    heart = coverage(one("heart"))
    np.testing.assert_allclose(heart, heart[:, ::-1], atol=1e-5)
    assert heart[:32].sum() > heart[32:].sum()


def test_edges_are_anti_aliased_like_a_supersampled_disc() -> None:
    y, x = np.mgrid[0:640, 0:640] / 10 + 0.05 - 32
    inside = (np.hypot(x, y) < RADIUS["large"]).reshape(64, 10, 64, 10).mean((1, 3))
    assert np.abs(coverage(one("circle")) - inside).max() < 0.08


def test_objects_stand_in_their_cells_and_never_overlap() -> None:
    for cell in range(9):
        covered = coverage(one("square", cell=cell))
        y, x = np.mgrid[0:64, 0:64] + 0.5
        centre = ((covered * y).sum() / covered.sum(), (covered * x).sum() / covered.sum())
        assert centre == pytest.approx(((cell // 3 + 0.5) * 64 / 3, (cell % 3 + 0.5) * 64 / 3), abs=0.05)
    half_gap = 64 / 3 / 2 - RADIUS["large"]
    assert half_gap > 1.2


def test_textures_darken_the_colour_and_leave_the_outline() -> None:
    plain, striped, dotted = (render(one("square", texture=name))[0] for name in TEXTURES)
    shares = {"striped": (striped, 0.5), "dotted": (dotted, math.pi * 1.55**2 / 5.0**2)}
    for textured, share in shares.values():
        assert (textured <= plain + 1e-6).all()
        # Over whole periods (15 px), the mean darkening is the textured share times its depth.
        inside = (slice(0, 1), slice(24, 39), slice(24, 39))
        darkened = 1 - (textured[inside] / plain[inside]).mean()
        assert darkened == pytest.approx(0.65 * share, rel=0.06)
    columns = striped[0, 26:38, 26:38]
    assert torch.allclose(columns, columns[:1].expand_as(columns), atol=1e-6)
    assert (columns[0] < 0.5).any()
    assert (columns[0] > 0.8).any()


def test_scenes_rendered_together_equal_scenes_rendered_alone() -> None:
    drawn = [scene for scene, _ in zip(scenes("together", True), range(24), strict=False)]
    batch = batch_scenes(drawn, "jitter")
    together = render(batch)
    for i in range(24):
        assert torch.equal(render(batch.part(i, i + 1))[0], together[i])
    assert together.min() >= 0
    assert together.max() <= 1


def test_random_batches_put_one_to_three_objects_in_distinct_cells() -> None:
    batch = random_batch(500, torch.Generator().manual_seed(0))
    assert set((batch.shape >= 0).sum(1).tolist()) == {1, 2, 3}
    assert all(len(set(row)) == 3 for row in batch.cell.tolist())
    assert batch.offset.abs().max() <= 1.2
    again = random_batch(500, torch.Generator().manual_seed(0))
    assert torch.equal(batch.shape, again.shape)
    assert torch.equal(batch.offset, again.offset)
