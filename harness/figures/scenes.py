"""Figures of the embedded world, which need its recogniser to understand the images."""

from __future__ import annotations

from harness.figures.base import NO_REFERENCE, CellData, Figure, absent, mean, of_influence, single, too_few
from harness.metrics.fid import fid, gaussian
from harness.metrics.fid_delta import fid_delta
from harness.metrics.fid_delta import influence as fid_influence
from harness.metrics.fid_ref import fid_ref
from harness.metrics.kid import kid
from harness.metrics.kid_delta import influence as kid_influence
from harness.metrics.kid_delta import kid_delta
from harness.metrics.precision import precision
from harness.metrics.prompt_accuracy import prompt_accuracy
from harness.metrics.recall import recall
from harness.metrics.scene import SIDE, SceneScores, SceneWorld, score_scenes, shipped_world
from harness.reports.record import Metric

OF_SCENES = ("lpips_scene", "prompt_accuracy")
OF_FEATURES = ("fid", "fid_ref", "fid_delta", "kid", "kid_delta", "precision", "recall")


def scene_figures(data: CellData, world: SceneWorld | None) -> dict[str, Figure]:
    """Distances, answers and distributions as the recogniser sees them."""
    if data.pictures.shape[1:] != (SIDE, SIDE, 3):
        return {name: absent(f"n/a: images are not {SIDE}x{SIDE}") for name in (*OF_SCENES, *OF_FEATURES)}
    world = world or shipped_world()
    scores = score_scenes(world, data.pictures, data.prompts, data.reference_pictures)
    distances = scores.distances
    accuracy: Figure = prompt_accuracy(scores.judged), [float(right) for right in scores.judged]
    return {
        "lpips_scene": absent(NO_REFERENCE) if distances is None else mean(distances),
        "prompt_accuracy": accuracy,
        **_distributions(data, scores, world),
    }


def _distributions(data: CellData, scores: SceneScores, world: SceneWorld) -> dict[str, Figure]:
    """Figures that compare clouds of features; none below the metric's smallest n."""
    short = too_few(OF_FEATURES, len(data.prompts))
    if len(short) == len(OF_FEATURES):
        return short
    features = scores.features if data.features is None else data.features
    rendered, radii = world.reference_features().numpy(), world.reference_radii().numpy()
    figures = {
        "fid": of_influence(fid(features, rendered), fid_influence(features, gaussian(rendered))),
        "kid": of_influence(kid(features, rendered), kid_influence(features, rendered)),
        "precision": single(precision(features, rendered, radii)),
        "recall": single(recall(features, rendered)),
        "fid_ref": absent(NO_REFERENCE),
        "fid_delta": absent(NO_REFERENCE),
        "kid_delta": absent(NO_REFERENCE),
    }
    theirs = data.reference_features
    if theirs is not None:
        figures["fid_ref"] = single(fid_ref(features, theirs))
        figures["fid_delta"] = Metric(*fid_delta(features, theirs, rendered)), None
        figures["kid_delta"] = Metric(*kid_delta(features, theirs, rendered)), None
    return figures | short
