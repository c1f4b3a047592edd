"""The LPIPS formula on the scene recogniser's feature maps.

Zhang et al., "The Unreasonable Effectiveness of Deep Features" (CVPR 2018), eq. 1, without learned weights (w
= 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_EPSILON = 1e-10
"""Added to a feature vector's norm, as the lpips package does, so that a zero vector stays zero."""


def lpips_scene(
    stages: Sequence[NDArray[np.float32]], reference: Sequence[NDArray[np.float32]]
) -> NDArray[np.float64]:
    """Return the distance of each image from its reference.

    At every position of every stage the feature vector is scaled to length 1; the squared differences are
    summed over channels, averaged over positions and summed over stages.

    Args:
        stages: feature maps of the images, each float32 [n, channels, height, width].
        reference: feature maps of the reference's images, same shapes.

    Returns:
        float64 [n], 0 for equal images.

    Raises:
        ValueError: the stages differ in number or shape, or there are none.
    """
    if not stages or [s.shape for s in stages] != [r.shape for r in reference]:
        raise ValueError("LPIPS needs the same stages of both images")
    total = np.zeros(len(stages[0]))
    for stage, other in zip(stages, reference, strict=True):
        difference = _unit(stage) - _unit(other)
        total += np.mean(np.sum(difference**2, axis=1), axis=(1, 2))
    return total


def _unit(stage: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scale the channel vector at every position of [n, c, h, w] to length 1."""
    wide = stage.astype(np.float64)
    norm = np.sqrt(np.sum(wide**2, axis=1, keepdims=True))
    return np.asarray(wide / (norm + _EPSILON), dtype=np.float64)
