"""Speed of FID at full size: `pytest tests/benchmarks/test_metrics_benchmark.py --benchmark-only`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.linalg import sqrtm

from harness.metrics.fid import fid

N, WIDTH = 5000, 2048


def features(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, WIDTH + 1) ** -0.5
    return (np.abs(rng.normal(size=(N, WIDTH))) * spectrum + 0.01 * seed).astype(np.float32)


@pytest.mark.slow
def test_fid_of_5000_images(benchmark: Any) -> None:
    a, b = features(1), features(2)
    found = benchmark.pedantic(fid, args=(a, b), rounds=3, warmup_rounds=1)
    x, y = a.astype(np.float64), b.astype(np.float64)
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(0) - y.mean(0)
    expected = shift @ shift + np.trace(sx) + np.trace(sy) - 2 * np.trace(sqrtm(sx @ sy).real)
    assert found == pytest.approx(expected, rel=1e-6)
    benchmark.extra_info["relative_error"] = abs(found / expected - 1)
