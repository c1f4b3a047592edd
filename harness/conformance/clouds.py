"""Checks of the metrics that compare clouds of features, on the features themselves."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from harness.conformance.check import Check
from harness.conformance.inputs import cloud


def _their_fid(a: np.ndarray, b: np.ndarray) -> float:
    import torch

    from harness.compat import ensure_torchvision

    ensure_torchvision()
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    # float64, because torch-fidelity forms the mean in the type it is given.
    moments = [fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in (a, b)]
    return float(fid_statistics_to_metric(*moments, verbose=False)[KEY_METRIC_FID])


def _fid() -> tuple[float, float]:
    from harness.metrics.fid import fid

    a, b = cloud(400, 32, 1, 0.1), cloud(500, 32, 2)
    return fid(a, b), _their_fid(a, b)


def _fid_ref() -> tuple[float, float]:
    from harness.metrics.fid_ref import fid_ref

    return fid_ref(cloud(300, 8, 1, 1.0), cloud(300, 8, 1)), 8.0


def _fid_clean_ref() -> tuple[float, float]:
    from harness.metrics.fid_clean_ref import fid_clean_ref

    return fid_clean_ref(cloud(300, 8, 1, 1.0), cloud(300, 8, 1)), 8.0


def _fid_clean() -> tuple[float, float]:
    from harness.metrics.fid_clean import fid_clean

    a, b = cloud(400, 32, 1, 0.1), cloud(500, 32, 2)
    return fid_clean(a, b), _their_fid(a, b)


def _fid_delta() -> tuple[float, float]:
    from harness.metrics.fid_delta import fid_delta

    base, real = cloud(400, 32, 1), cloud(500, 32, 2)
    moved = base * np.float32(1.1) + np.float32(0.1)
    return float(fid_delta(moved, base, real).value or 0.0), _their_fid(moved, real) - _their_fid(base, real)


def _kid_delta() -> tuple[float, float]:
    from harness.metrics.kid_delta import kid_delta

    base, real = cloud(60, 8, 1), cloud(80, 8, 2)
    moved = base + np.float32(0.5)

    def mmd(x: NDArray[np.float32]) -> float:
        inside, across = (
            (a.astype(np.float64) @ b.T.astype(np.float64) / 8 + 1) ** 3 for a, b in ((x, x), (x, real))
        )
        return float((inside.sum() - np.trace(inside)) / (60 * 59) - 2 * across.mean())

    return float(kid_delta(moved, base, real).value or 0.0), mmd(moved) - mmd(base)


def _sfid() -> tuple[float, float]:
    from harness.metrics.sfid import WIDTH, sfid

    rows = np.random.default_rng(0).normal(size=(24, WIDTH))
    return sfid(rows + 0.5, rows), 0.25 * WIDTH


def _kid() -> tuple[float, float]:
    """KID over one subset of all rows is the unbiased estimate, whatever the order."""
    from harness.metrics.kid import SUBSET_SIZE, kid

    n, width = SUBSET_SIZE, 8
    a, b = cloud(n, width, 1, 0.3), cloud(n, width, 2)
    x, y = a.astype(np.float64), b.astype(np.float64)
    own, real, cross = ((p @ q.T / width + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    off = ~np.eye(n, dtype=bool)
    return kid(a, b), float(own[off].mean() + real[off].mean() - 2 * cross.mean())


def _inception_score() -> tuple[float, float]:
    import torch

    from harness.compat import ensure_torchvision
    from harness.metrics.inception_score import inception_score

    ensure_torchvision()
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    logits = cloud(257, 64, 3) * np.float32(3)
    return inception_score(logits), isc_features_to_metric(torch.from_numpy(logits))[KEY_METRIC_ISC_MEAN]


def _coverages() -> tuple[tuple[float, float], tuple[float, float]]:
    """Precision and recall, ours and torch-fidelity's."""
    import torch

    from harness.compat import ensure_torchvision
    from harness.metrics.distances import neighbour_radii
    from harness.metrics.precision import NEIGHBOURS, precision
    from harness.metrics.recall import recall

    ensure_torchvision()
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    a, b = cloud(300, 160, 1) * np.float32(1.05), cloud(400, 160, 2)
    theirs = calculate_precision_recall_full(*(torch.from_numpy(x).double() for x in (a, b)))
    radii = neighbour_radii(b, NEIGHBOURS)
    return (precision(a, b, radii), theirs[0]), (recall(a, b), theirs[1])


_LINE = np.arange(10, dtype=np.float32)[:, None]
"""Fifth neighbours: 5, 4, 3, 3, 3, 3, 3, 3, 4, 5 away."""
_POINTS = np.array([[-4.5], [4.0], [30.0]], np.float32)


def _density() -> tuple[float, float]:
    from harness.metrics.density import density

    # -4.5 lies in the ball of 0 alone, 4 in all ten, 30 in none.
    return density(_POINTS, _LINE), (1 + 10 + 0) / (5 * 3)


def _coverage() -> tuple[float, float]:
    from harness.metrics.coverage import coverage

    # The line moved by a quarter: 4 lies within the radius of the first seven.
    return coverage(_POINTS[1:], _LINE + np.float32(0.25)), 0.7


def _cmmd() -> tuple[float, float]:
    from harness.metrics.cmmd import cmmd

    a, b = np.zeros((4, 8), np.float32), np.zeros((3, 8), np.float32)
    a[:, 0], b[:, 0] = 1, -1
    return cmmd(a, b), 2000 * (1 - math.exp(-4 / 200))


def _prompt_accuracy() -> tuple[float, float]:
    from harness.metrics.prompt_accuracy import prompt_accuracy

    # The lower end of Wilson's interval of 6 in 10.
    z, p, n = 1.959963984540054, 0.6, 10
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = (p + z * z / (2 * n) - half) / (1 + z * z / n)
    return float(prompt_accuracy([True] * 6 + [False] * 4).lo or 0.0), expected


CHECKS = (
    Check("fid", "torch-fidelity on the same features", _fid, 1e-6),
    Check("fid_ref", "closed form: a shift", _fid_ref, 1e-5),
    Check("fid_clean", "torch-fidelity on the same features", _fid_clean, 1e-6),
    Check("fid_clean_ref", "closed form: a shift", _fid_clean_ref, 1e-5),
    Check("fid_delta", "torch-fidelity on the same features", _fid_delta, 1e-6),
    Check("kid_delta", "the definition, over all pairs", _kid_delta, 1e-9),
    Check("sfid", "closed form: a shift", _sfid, 1e-9),
    Check("kid", "the definition, over all pairs", _kid, 1e-9),
    Check("inception_score", "torch-fidelity on the same logits", _inception_score, 1e-6),
    Check("precision", "torch-fidelity on the same features", lambda: _coverages()[0], 1e-6),
    Check("recall", "torch-fidelity on the same features", lambda: _coverages()[1], 1e-6),
    Check("density", "closed form: points on a line", _density, 1e-12),
    Check("coverage", "closed form: points on a line", _coverage, 1e-12),
    Check("cmmd", "closed form: two points", _cmmd, 1e-6),
    Check("prompt_accuracy", "Wilson's interval by its formula", _prompt_accuracy, 1e-9),
)
