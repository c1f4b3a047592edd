"""Ranges against NumPy's percentiles and a plain loop over all candidates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.kernels.quantizers import ranges
from harness.kernels.quantizers.grid import GRIDS, Grid


def sample(groups: int = 6, n: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(groups, n, generator=generator) ** 3


@pytest.mark.parametrize("percent", [50.0, 90.0, 99.0, 99.9, 100.0])
def test_percentile_is_numpys(percent: float) -> None:
    x = sample(n=37)
    lo, hi = ranges.percentile(x, percent)
    np.testing.assert_allclose(hi, np.percentile(x.numpy(), percent, axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(lo, np.percentile(x.numpy(), 100 - percent, axis=1), rtol=1e-4, atol=1e-6)


def error_of(x: np.ndarray, lo: float, hi: float, bits: int, grid: Grid, power: float) -> float:
    """Error of one group on one grid, in float64, from the definition of the grids."""
    top = 2**bits - 1
    if grid == "asymmetric":
        scale = np.float64(np.float16((hi - lo) / top))
        zero = min(max(np.round(-lo / scale), 0), top)
        levels = (np.arange(top + 1) - zero) * scale
    elif grid == "affine":
        scale = np.float64(np.float16((hi - lo) / top))
        levels = (np.arange(top + 1) - np.float64(np.float16(min(max(-lo / scale, 0), top)))) * scale
    elif grid == "narrow":
        scale = np.float64(np.float16(max(-lo, hi) / (2 ** (bits - 1) - 1)))
        levels = np.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)) * scale
    else:
        scale = np.float64(np.float16(2 * max(-lo, hi) / top))
        levels = (np.arange(top + 1) - top / 2) * scale
    distance = np.abs(x[:, None] - levels).min(axis=1)
    return float((distance**power).sum())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("power", [2.0, 2.4])
def test_mse_search_finds_the_best_of_all_candidates(grid: Grid, bits: int, power: float) -> None:
    x = sample()
    lo, hi = ranges.mse(x, bits, grid, power=power)
    for row in range(x.shape[0]):
        values = x[row].double().numpy()
        low, high = min(values.min(), 0.0), max(values.max(), 0.0)
        best = min(
            error_of(values, low * (1 - k / 100), high * (1 - k / 100), bits, grid, power) for k in range(80)
        )
        found = error_of(values, float(lo[row]), float(hi[row]), bits, grid, power)
        assert found <= best * (1 + 1e-4)


def test_mse_search_is_the_same_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    x = sample(groups=9, n=64)
    whole = ranges.mse(x, 3, "asymmetric")
    monkeypatch.setattr(ranges, "CHUNK", 128)
    assert all(torch.equal(a, b) for a, b in zip(whole, ranges.mse(x, 3, "asymmetric"), strict=True))
    monkeypatch.setattr(ranges, "CHUNK", 48)  # less than a group: its error is summed over parts
    for a, b in zip(whole, ranges.mse(x, 3, "asymmetric"), strict=True):
        assert torch.allclose(a, b, rtol=0.02)


def test_heavy_tails_are_clipped_and_full_grids_are_not() -> None:
    outlier = torch.cat([torch.linspace(-1, 1, 200), torch.tensor([50.0])]).unsqueeze(0)
    assert float(ranges.mse(outlier, 8, "narrow")[1]) == pytest.approx(50.0, rel=0.05)
    several = torch.cat([torch.linspace(-1, 1, 2000), torch.tensor([4.0])]).unsqueeze(0)
    assert float(ranges.mse(several, 2, "midrise")[1]) < 1.5
    exact = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert float(ranges.mse(exact, 2, "asymmetric")[1]) == 3.0


@pytest.mark.parametrize("steps", [0, 101])
def test_refuses_a_wrong_number_of_steps(steps: int) -> None:
    with pytest.raises(ValueError, match="1 to 100 steps"):
        ranges.mse(sample(), 4, "narrow", steps=steps)
