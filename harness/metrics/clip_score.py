"""CLIPScore (Hessel et al., "CLIPScore: A Reference-free Evaluation Metric", EMNLP 2021)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def clip_score(images: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return 100 max(cos, 0) of each image and its text: the scale of torchmetrics and the SVDQuant tables.

    The paper's own scale is 2.5 max(cos, 0).

    Args:
        images: float32 [n, d], unit-length CLIP embeddings.
        texts: float32 [n, d], likewise.

    Returns:
        float64 [n], 0 to 100.

    Raises:
        ValueError: the two differ in shape.
    """
    if images.shape != texts.shape or images.ndim != 2:
        raise ValueError(f"one text per image: embeddings {images.shape} and {texts.shape}")
    cosine = np.einsum("ij,ij->i", images.astype(np.float64), texts.astype(np.float64))
    return np.asarray(100.0 * np.maximum(cosine, 0.0), dtype=np.float64)
