"""The smoothing vector and its grid of exponents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.methods.smoothing import FULL_GRID, input_channel_absmax, smoothing_grid, smoothing_scale


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_the_product_does_not_change(seed: int, alpha: float, beta: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 16, generator=generator) * torch.logspace(-3, 3, 16)
    w = torch.randn(8, 16, generator=generator) * torch.logspace(2, -2, 16)
    x[:, 3] = 0
    w[:, 5] = 0
    scale = smoothing_scale(x.abs().amax(0), w.abs().amax(0), alpha, beta)
    assert scale.dtype == torch.float16
    assert bool((scale > 0).all())
    assert bool(torch.isfinite(scale).all())
    s = scale.double()
    torch.testing.assert_close((x.double() / s) @ (w.double() * s).T, x.double() @ w.double().T)


def test_formula_up_to_a_common_factor() -> None:
    x, w = torch.tensor([1.0, 4.0, 16.0]), torch.tensor([2.0, 8.0, 0.5])
    scale = smoothing_scale(x, w, 0.5, 0.25).double()
    expected = x.double() ** 0.5 / w.double() ** 0.25
    ratio = scale / expected
    torch.testing.assert_close(ratio, ratio[:1].expand(3), rtol=1e-3, atol=0)
    assert float(scale.log().mean()) == pytest.approx(0, abs=1e-3)


def test_dead_and_extreme_channels_are_clamped() -> None:
    x = torch.tensor([0.0, 1e-30, 1e30, 1.0, float("inf")])
    w = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])
    scale = smoothing_scale(x, w, 0.9, 0.1)
    assert scale.tolist() == [1.0, 2.0**-10, 2.0**10, 1.0, 1.0]
    assert smoothing_scale(torch.zeros(4), torch.ones(4), 0.5, 0.5).tolist() == [1.0] * 4


def test_balanced_exponents_equalise_the_ranges() -> None:
    x, w = torch.tensor([1.0, 100.0]), torch.tensor([1.0, 0.04])
    scale = smoothing_scale(x, w, 0.5, 0.5).float()
    ratio = (x / scale) / (w * scale)
    assert float(ratio[0]) == pytest.approx(float(ratio[1]), rel=1e-2)


def test_full_grid_is_the_published_one() -> None:
    grid = smoothing_grid(FULL_GRID)
    assert len(grid) == 39
    assert grid[0] == (0.0, 0.0)
    assert {a for a, _ in grid[1:]} == {k / 20 for k in range(1, 20)}
    assert all(b in (0.0, 1 - a) for a, b in grid)
    assert smoothing_grid(1) == [(0.0, 0.0)]
    assert len(set(smoothing_grid(9))) == 9
    for wrong in (0, -1, 10):
        with pytest.raises(ValueError, match="odd number"):
            smoothing_grid(wrong)


def test_weights_that_share_an_input_count_together() -> None:
    first = torch.tensor([[1.0, -2.0, 0.5, 0.1]])
    second = torch.tensor([[0.0, 1.0, 0.2, -3.0]])
    assert input_channel_absmax([first], 1).tolist() == pytest.approx([1.0, 2.0, 0.5, 0.1])
    assert input_channel_absmax([first, second], 2).tolist() == [2.0, 3.0]
