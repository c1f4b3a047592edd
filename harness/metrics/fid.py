"""Fréchet distance of features (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian fitted to features.

    Attributes:
        mean: float64 [d].
        factor: float64 [r, d] with `factor.T @ factor` the covariance.
        triangular: the factor is a Cholesky factor, so that the covariance has full rank.
    """

    mean: NDArray[np.float64]
    factor: NDArray[np.float64]
    triangular: bool

    @property
    def trace(self) -> float:
        """Trace of the covariance."""
        return float(np.sum(self.factor**2))


def gaussian(features: Features) -> Gaussian:
    """Fit a Gaussian to features [n, d]: mean, and covariance over n - 1."""
    wide = features.astype(np.float64)
    mean = wide.mean(axis=0)
    centred = wide - mean
    n, width = centred.shape
    if n > width:
        return gaussian_of(mean, centred.T @ centred / (n - 1))
    # The covariance is singular. Its root is at hand, and exact.
    return Gaussian(mean, np.asarray(centred / np.sqrt(n - 1), dtype=np.float64), False)


def gaussian_of(mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> Gaussian:
    """Build a Gaussian from its moments: mean [d] and covariance [d, d], positive semi-definite."""
    try:
        return Gaussian(mean, np.asarray(np.linalg.cholesky(covariance).T, dtype=np.float64), True)
    except np.linalg.LinAlgError:  # singular
        values, vectors = np.linalg.eigh(covariance)
        return Gaussian(mean, np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T, False)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return |mu1 - mu2|² + tr(S1 + S2 - 2 (S1 S2)^½) of two Gaussians of one width.

    With S = AᵀA the trace of (S1 S2)^½ is the sum of the singular values of A1 A2ᵀ: a symmetric problem, many
    times faster than a matrix square root, and never complex.
    """
    product = a.factor @ b.factor.T
    if a.triangular and b.triangular:
        values = np.linalg.eigvalsh(product @ product.T)
        cross = float(np.sqrt(np.maximum(values, 0.0)).sum())
    else:  # of singular values near 0 the squares would lose half the digits
        cross = float(np.linalg.svd(product, compute_uv=False).sum())
    shift = a.mean - b.mean
    return float(shift @ shift) + a.trace + b.trace - 2 * cross


def fid(features: Features, reference: Features | Gaussian) -> float:
    """Return the Fréchet distance between Gaussians fitted to two sets of features.

    Args:
        features: float [n, d] of the images.
        reference: float [m, d] to compare with, or the Gaussian of such features.

    Returns:
        |mu1 - mu2|² + tr(S1 + S2 - 2 (S1 S2)^½); about 0 for equal sets, where rounding may give a tiny
        negative number.

    Raises:
        ValueError: fewer than two rows, or other widths.
    """
    other = fitted(features, reference)
    return frechet_distance(gaussian(features), other)


def fitted(features: Features, reference: Features | Gaussian) -> Gaussian:
    """Return the Gaussian of what `features` [n, d] are compared with.

    Raises:
        ValueError: fewer than two rows, or other widths.
    """
    if not isinstance(reference, Gaussian):
        check_features(features, reference)
        return gaussian(reference)
    if features.ndim != 2 or len(features) < 2 or features.shape[1:] != reference.mean.shape:
        raise ValueError(f"features must be [n, {len(reference.mean)}] with n > 1, got {features.shape}")
    return reference


def check_features(features: Features, reference: Features) -> None:
    """Raise ValueError unless both are [at least 2, d] with one d."""
    shapes = features.shape, reference.shape
    if any(len(s) != 2 or s[0] < 2 for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"features must be [n, d] with n > 1 and one d, got {shapes[0]} and {shapes[1]}")
