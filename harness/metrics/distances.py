"""Euclidean distances between rows of features, a part of the matrix at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROWS = 512
"""Rows of the distance matrix held at once."""
_NARROW = 128
"""Features up to which the distances are summed directly; a matrix product takes over where that is slow."""

Features = NDArray[np.floating[Any]]


def distance_parts(points: Features, centres: Features) -> Iterator[NDArray[np.float64]]:
    """Yield the distances of [n, d] points to [m, d] centres, float64 [up to 512, m] at a time.

    Beyond 128 features they come from |x|² + |y|² - 2 x·y in float64 after centring, whose error is some 1e-7
    of a feature's spread: enough to tell neighbours, and some ten times faster at d = 2,048.
    """
    if centres.shape[1] <= _NARROW:
        from scipy.spatial.distance import cdist

        for start in range(0, len(points), _ROWS):
            yield cdist(points[start : start + _ROWS], centres)
        return
    middle = centres.astype(np.float64).mean(axis=0)
    y = centres - middle
    squares = np.einsum("ij,ij->i", y, y)
    for start in range(0, len(points), _ROWS):
        x = points[start : start + _ROWS] - middle
        squared = np.einsum("ij,ij->i", x, x)[:, None] + squares - 2 * (x @ y.T)
        yield np.sqrt(np.maximum(squared, 0.0))


def covered(
    points: Features, centres: Features, radii: NDArray[np.float32] | NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which points [n, d] lie inside any ball around centres [m, d] with radii [m]: bool [n].

    Raises:
        ValueError: not one radius per centre.
    """
    return covering(points, centres, radii) > 0


def covering(
    points: Features, centres: Features, radii: NDArray[np.float32] | NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return how many balls around centres [m, d] with radii [m] each point of [n, d] lies in: int64 [n].

    Raises:
        ValueError: not one radius per centre.
    """
    if radii.shape != (len(centres),):
        raise ValueError(f"one radius per centre: {len(centres)} centres, radii {radii.shape}")
    return np.concatenate([(part <= radii).sum(axis=1) for part in distance_parts(points, centres)])


def neighbour_radii(features: Features, k: int) -> NDArray[np.float64]:
    """Return the distance of each row of [n, d] to its k-th nearest other row: float64 [n].

    Raises:
        ValueError: there are not more than `k` rows.
    """
    if len(features) <= k:
        raise ValueError(f"{k} neighbours need more than {k} rows, got {len(features)}")
    # A row is its own nearest at distance 0, so index k of the sorted distances is the k-th other row.
    parts = [np.partition(part, k, axis=1)[:, k] for part in distance_parts(features, features)]
    return np.asarray(np.concatenate(parts), dtype=np.float64)
