"""CLIP-IQA (Wang et al., "Exploring CLIP for Assessing the Look and Feel of Images", AAAI 2023)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ANCHORS = ("Good photo.", "Bad photo.")
TEMPERATURE = 100.0
"""CLIP's own, to which it was trained (exp of its logit scale, capped)."""


def clip_iqa(images: NDArray[np.float32], anchors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probability that each image is "Good photo." rather than "Bad photo." (eq. 2).

    With ViT-L/14 of transformers as in the SVDQuant tables, not with the paper's modified ResNet-50.

    Args:
        images: float32 [n, d], unit-length CLIP embeddings.
        anchors: float32 [2, d], those of `ANCHORS`.

    Returns:
        float64 [n], 0 to 1.

    Raises:
        ValueError: other widths, or not two anchors.
    """
    if anchors.shape != (2, images.shape[-1]):
        raise ValueError(f"two anchors of width {images.shape[-1]}, got {anchors.shape}")
    good, bad = TEMPERATURE * (images.astype(np.float64) @ anchors.astype(np.float64).T).T
    return np.asarray(1.0 / (1.0 + np.exp(bad - good)), dtype=np.float64)
