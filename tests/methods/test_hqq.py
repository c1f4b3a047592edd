"""Half-quadratic zero points against the updates written out group by group, in float64."""

from __future__ import annotations

import layer_jobs as jobs
import numpy as np
import pytest
import torch

from harness.methods.hqq import HqqConfig, half_quadratic
from harness.methods.rounding import round_uniform


def weights(rows: int = 6, cols: int = 80) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(rows, cols, generator=generator) * 0.1 + 0.02
    w[torch.rand(w.shape, generator=generator) < 0.03] *= 6
    return w


def written_out(weight: torch.Tensor, bits: int, iterations: int) -> list[np.ndarray]:
    """The values after each iteration, for groups of 32 (the last one short)."""
    w = weight.double().numpy()
    levels = 2**bits - 1
    bounds = [(0, 32), (32, 64), (64, 80)]
    scales, zeros = np.zeros((len(w), 3)), np.zeros((len(w), 3))
    for r in range(len(w)):
        for g, (a, b) in enumerate(bounds):
            lo, hi = min(w[r, a:b].min(), 0), max(w[r, a:b].max(), 0)
            scales[r, g] = np.float16((hi - lo) / levels)
            zeros[r, g] = np.float16(-lo / scales[r, g])
    beta, found = 10.0, []
    for _ in range(iterations + 1):
        values, codes = np.zeros_like(w), np.zeros_like(w)
        for r in range(len(w)):
            for g, (a, b) in enumerate(bounds):
                codes[r, a:b] = np.round(w[r, a:b] / scales[r, g] + zeros[r, g]).clip(0, levels)
                values[r, a:b] = (codes[r, a:b] - zeros[r, g]) * scales[r, g]
                rest = w[r, a:b] - values[r, a:b]
                size = np.abs(rest)
                shrunk = np.sign(rest) * np.maximum(size - (size + 1e-8) ** -0.3 / beta, 0)
                zeros[r, g] = np.float16(np.mean(codes[r, a:b] - (w[r, a:b] - shrunk) / scales[r, g]))
        beta *= 1.01
        found.append(values)
    return found


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_values_are_those_of_the_updates_written_out(bits: int) -> None:
    w = weights()
    steps = written_out(w, bits, 20)
    errors = [float(np.abs(w.double().numpy() - v).mean()) for v in steps]
    last = next((i for i in range(1, 21) if errors[i] >= errors[i - 1]), 21) - 1
    got = half_quadratic(w, bits, HqqConfig(group=32)).values().numpy()
    assert last >= 1
    # A code at the middle of two levels may go either way in float32.
    assert (np.abs(got - steps[last]) > 1e-3 * np.abs(w.numpy()).max()).mean() < 0.01


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_fitted_zero_points_have_less_error_than_minmax(bits: int) -> None:
    w = weights(64, 256)
    fitted = half_quadratic(w, bits, HqqConfig()).values()
    plain = round_uniform(w, bits, group=64, ranges="minmax").values()
    assert float((fitted - w).abs().mean()) < 0.99 * float((plain - w).abs().mean())


def test_dead_groups_and_constant_rows_survive() -> None:
    w = weights(4, 128)
    w[0] = 0
    w[1] = 0.25
    w[2, :64] = 0
    got = half_quadratic(w, 2, HqqConfig()).values()
    assert bool(torch.isfinite(got).all())
    assert not got[0].any()
    assert not got[2, :64].any()
    torch.testing.assert_close(got[1], w[1], rtol=2e-3, atol=0)


def test_the_method_is_weight_only_and_stores_real_zero_points() -> None:
    done = jobs.run("hqq", jobs.job("hqq", 3))
    layer = done.denoiser.get_submodule("q")
    assert layer.act is None
    assert layer.weight.zero.dtype == torch.float16
    assert layer.bytes_by_part()["zeros"] == layer.bytes_by_part()["scales"]
    assert bool((layer.weight.zero != layer.weight.zero.round()).any())
