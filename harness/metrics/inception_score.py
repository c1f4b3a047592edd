"""Inception score (Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SPLITS = 10
SEED = 2020
"""Of the shuffle before splitting: images that come sorted by class would leave splits of few classes."""


def inception_score(logits: NDArray[np.float32]) -> float:
    """Return exp(E KL(p(y|x) || p(y))), the mean over ten splits of the shuffled images, as torch-fidelity.

    Args:
        logits: float32 [n, classes] of Inception-v3 without the last bias, n >= 10.

    Returns:
        Between 1 and the number of classes; higher is better.

    Raises:
        ValueError: fewer images than splits.
    """
    if logits.ndim != 2 or len(logits) < SPLITS:
        raise ValueError(f"the inception score needs logits of at least {SPLITS} images, got {logits.shape}")
    order = np.random.RandomState(SEED).permutation(len(logits))
    wide = logits[order].astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    log_p = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    scores = []
    for split in range(SPLITS):
        part = slice(split * len(p) // SPLITS, (split + 1) * len(p) // SPLITS)
        # A class that underflows in every image has p = 0 and adds nothing; log 0 would make it NaN.
        marginal = np.log(np.maximum(p[part].mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p[part] * (log_p[part] - marginal)).sum(axis=1).mean()))
    return float(np.mean(scores))
