"""The shipped recogniser, its verdicts, and the shipped reference statistics."""

from __future__ import annotations

import copy

import pytest
import torch

from harness.datasets.contract import Prompt
from harness.datasets.scenes.recogniser import (
    examine,
    judge,
    load_recogniser,
    neighbour_radii,
    reference_features,
    reference_radii,
)
from harness.datasets.scenes.render import batch_scenes, render
from harness.datasets.scenes.world import Scene, scenes


def held_out(n: int) -> list[Scene]:
    """N scenes never used in training."""
    return [scene for scene, _ in zip(scenes("recogniser test", True), range(n), strict=False)]


def test_rendered_scenes_are_read_right() -> None:
    drawn = held_out(400)
    reading = load_recogniser()(render(batch_scenes(drawn, "jitter")))
    prompts = [Prompt(str(i), "", scene.facts()) for i, scene in enumerate(drawn)]
    assert sum(judge(reading, prompts)) / 400 >= 0.995


def test_each_wrong_part_is_told_from_the_others() -> None:
    scene = next(s for s in held_out(50) if len(s.objects) == 2)
    reading = load_recogniser()(render(batch_scenes([scene], "jitter")))
    facts = scene.facts()
    assert examine(reading, 0, facts) == (True, True, True)

    swapped = copy.deepcopy(facts)
    swapped["objects"].reverse()
    assert examine(reading, 0, swapped) == (True, False, True)

    recoloured = copy.deepcopy(facts)
    recoloured["objects"][0][1] = "lime" if facts["objects"][0][1] != "lime" else "red"
    assert examine(reading, 0, recoloured) == (False, False, True)

    fewer = copy.deepcopy(facts)
    fewer["objects"].pop()
    fewer["relations"] = []
    assert not examine(reading, 0, fewer).objects

    elsewhere = copy.deepcopy(facts)
    elsewhere["background"] = "navy" if facts["background"] != "navy" else "black"
    assert examine(reading, 0, elsewhere) == (True, True, False)


def test_reading_does_not_depend_on_the_batch() -> None:
    images = render(batch_scenes(held_out(6), "jitter"))
    together = load_recogniser()(images)
    alone = load_recogniser()(images[3:4])
    torch.testing.assert_close(together.features[3:4], alone.features, rtol=1e-4, atol=1e-5)


def test_reference_statistics_are_large_and_of_this_recogniser() -> None:
    features, radii = reference_features(), reference_radii()
    assert features.shape[0] >= 20_000
    assert features.shape[1] <= 64
    assert radii.shape == (features.shape[0],)
    drawn = [scene for scene, _ in zip(scenes("reference", True), range(64), strict=False)]
    recomputed = load_recogniser()(render(batch_scenes(drawn, "reference jitter"))).features
    # The jitter's generator runs on over the whole set, so its first scenes are the same ones.
    torch.testing.assert_close(recomputed, features[:64], rtol=2e-2, atol=2e-2)


def test_radii_are_distances_to_the_third_neighbour() -> None:
    points = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    distance = (points[:, None] - points[None]).pow(2).sum(-1).sqrt()
    expected = distance.sort(1).values[:, 3]
    torch.testing.assert_close(neighbour_radii(points), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", [0, 999, 20_000])
def test_shipped_radii_agree_with_the_shipped_features(index: int) -> None:
    features = reference_features()
    distance = (features - features[index]).norm(dim=1).sort().values[3]
    assert reference_radii()[index].item() == pytest.approx(distance.item(), rel=1e-2, abs=2e-3)
