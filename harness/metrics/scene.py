"""Reading images with the scene recogniser: features, verdicts and distances, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.datasets.contract import Prompt
from harness.metrics.images import Pictures
from harness.metrics.lpips_scene import lpips_scene
from harness.metrics.weights import single_thread

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 64
"""Height and width of the images the recogniser reads, in pixels."""
_CHUNK = 32
"""Images read at once: feature maps of all of them would not fit."""


class Reading(Protocol):
    """The part of the recogniser's output that is used here."""

    @property
    def features(self) -> Tensor:
        """float32 [n, 64]."""
        ...

    @property
    def stages(self) -> Sequence[Tensor]:
        """Feature maps, each float32 [n, channels, height, width]."""
        ...


@dataclass(frozen=True)
class SceneWorld:
    """The recogniser, and the statistics of rendered held-out scenes it is compared with.

    Attributes:
        recogniser: maps float32 [n, 3, 64, 64] in 0..1 to a `Reading`.
        judge: whether each image of a reading shows its prompt.
        reference_features: returns float32 [m, 64] of rendered held-out scenes.
        reference_radii: returns float32 [m], the distance of each to its third neighbour.
    """

    recogniser: Callable[[Tensor], Any]
    judge: Callable[[Any, list[Prompt]], list[bool]]
    reference_features: Callable[[], Tensor]
    reference_radii: Callable[[], Tensor]


def shipped_world() -> SceneWorld:
    """Return the recogniser and reference statistics that ship with the package."""
    from harness.datasets.scenes import recogniser

    return SceneWorld(
        recogniser.load_recogniser(),
        recogniser.judge,
        recogniser.reference_features,
        recogniser.reference_radii,
    )


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Turn uint8 [n, height, width, 3] into float32 [n, 3, height, width] in 0..1."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(torch.float32) / 255


@dataclass(frozen=True)
class SceneScores:
    """What the recogniser says of n images.

    Attributes:
        features: float32 [n, 64].
        judged: whether each image shows its prompt.
        distances: `lpips_scene` of each image from its reference, float64 [n], or None without reference.
    """

    features: NDArray[np.float32]
    judged: list[bool]
    distances: NDArray[np.float64] | None


def score_scenes(
    world: SceneWorld,
    images: Pictures,
    prompts: Sequence[Prompt],
    reference: Pictures | None,
) -> SceneScores:
    """Read images of 64x64 and score them against their prompts and the reference's images."""
    features: list[NDArray[np.float32]] = []
    judged: list[bool] = []
    distances: list[NDArray[np.float64]] = []
    with single_thread():
        theirs = None if reference is None else reference.runs(_CHUNK)
        for run in images.runs(_CHUNK):
            reading = _read(world, run)
            features.append(reading.features.numpy())
            judged += world.judge(reading, list(prompts[len(judged) : len(judged) + len(run)]))
            if theirs is not None:
                other = _read(world, next(theirs))
                distances.append(lpips_scene(_arrays(reading), _arrays(other)))
    return SceneScores(
        np.concatenate(features), judged, np.concatenate(distances) if reference is not None else None
    )


def _read(world: SceneWorld, images: NDArray[np.uint8]) -> Reading:
    """Run the recogniser on uint8 [n, 64, 64, 3] without gradients."""
    import torch

    with torch.inference_mode():
        reading: Reading = world.recogniser(to_tensor(images))
    return reading


def _arrays(reading: Reading) -> list[NDArray[np.float32]]:
    return [stage.numpy() for stage in reading.stages]
