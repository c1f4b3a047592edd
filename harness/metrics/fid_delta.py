"""How much farther from real images a cell is than the 16-bit model, on the same prompts and noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.fid import Features, Gaussian, check_features, fitted, frechet_distance, gaussian
from harness.reports.statistics import Interval, t_interval


def fid_delta(features: Features, reference_model: Features, real: Features | Gaussian) -> Interval:
    """Return FID(cell, real) - FID(reference cell, real) with an interval over the paired prompts.

    The interval is the t interval of the differences of influence values: how much each prompt moves either
    FID, to first order. It is conditional on the real images, and takes no account of FID's bias in n, which
    largely cancels in the difference. The formula is this project's derivation, not a published one;
    simulations put its standard error within about 20 % of the empirical one, mostly above.

    Args:
        features: float [n, d] of the cell's images.
        reference_model: float [n, d] of the reference cell's images; row i shares prompt and noise.
        real: float [m, d] of real images, or the Gaussian of their features.

    Returns:
        The difference (below 0: nearer to the real images than the reference is) and its ends.

    Raises:
        ValueError: other widths, other numbers of rows, or fewer than two.
    """
    check_features(features, reference_model)
    if len(features) != len(reference_model):
        raise ValueError(f"rows are not paired: {len(features)} and {len(reference_model)}")
    real = fitted(features, real)
    ours, theirs = gaussian(features), gaussian(reference_model)
    delta = frechet_distance(ours, real) - frechet_distance(theirs, real)
    moved = influence(features, real) - influence(reference_model, real)
    middle, lo, hi = t_interval(moved.tolist())
    if middle is None or lo is None or hi is None:
        return Interval(delta, None, None)
    return Interval(delta, delta + lo - middle, delta + hi - middle)


def influence(features: Features, real: Gaussian) -> NDArray[np.float64]:
    """Return the influence of each row on the FID to `real`, to first order: float64 [n], mean 0.

    With z = x - mu1 and S2 = AᵀA it is 2 z·(mu1 - mu2) + zᵀ G z - tr(G S1), where the gradient of the
    distance in S1 is G = I - Aᵀ (A S1 Aᵀ)^-½ A. Directions without spread are left out of the inverse.
    """
    wide = features.astype(np.float64)
    mean = wide.mean(axis=0)
    z = wide - mean
    turned = z @ real.factor.T
    values, vectors = np.linalg.eigh(turned.T @ turned / len(z))
    inside = values > values[-1] * len(values) * np.finfo(np.float64).eps
    scaled = (turned @ vectors[:, inside]) / values[inside] ** 0.25
    quadratic = np.einsum("ij,ij->i", z, z) - np.einsum("ij,ij->i", scaled, scaled)
    return np.asarray(2 * z @ (mean - real.mean) + quadratic - quadratic.mean(), dtype=np.float64)
