"""Binary planes: closed forms, brute force on tiny rows, and that refitting never hurts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.kernels.quantizers.residual import (
    BinaryPlanes,
    dequantize_planes,
    fit_binary_planes,
    nearest_codes,
)
from harness.kernels.quantizers.uniform import dequantize_uniform, quantize_uniform


def weights(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def values_of(planes: BinaryPlanes) -> np.ndarray:
    """The sum of signed alphas, in float64."""
    codes, alphas = planes.codes.numpy(), planes.alphas.double().numpy()
    out = np.zeros(codes.shape)
    for j in range(alphas.shape[1]):
        out += alphas[:, j : j + 1] * (2.0 * ((codes >> j) & 1) - 1)
    return out


def squared_error(w: Tensor, planes: BinaryPlanes) -> float:
    return float(((values_of(planes) - w.double().numpy()) ** 2).sum())


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 17))
def test_dequantize_is_the_signed_sum(seed: int, planes: int, cols: int) -> None:
    fitted = fit_binary_planes(weights(3, cols, seed), planes)
    decoded = dequantize_planes(fitted.codes, fitted.alphas)
    np.testing.assert_allclose(decoded.double().numpy(), values_of(fitted), rtol=1e-6, atol=1e-6)


def test_one_plane_is_the_sign_times_the_mean_magnitude() -> None:
    w = weights(5, 31)
    fitted = fit_binary_planes(w, 1)
    assert torch.allclose(fitted.alphas[:, 0].float(), w.abs().mean(dim=1), rtol=1e-3)
    assert torch.equal(fitted.codes.bool(), w > 0)


def brute_force(row: np.ndarray, planes: int) -> float:
    """Least squared error over every assignment of codes, each with its own least-squares alphas."""
    best = np.inf
    for codes in itertools.product(range(2**planes), repeat=len(row)):
        signs = np.array([[2.0 * ((c >> j) & 1) - 1 for j in range(planes)] for c in codes])
        alphas = np.linalg.lstsq(signs, row, rcond=None)[0]
        best = min(best, float(((signs @ alphas - row) ** 2).sum()))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_tiny_rows_are_close_to_brute_force(seed: int) -> None:
    """The alternation stops in a local optimum, which may not lie below the global one nor far above it."""
    w = weights(3, 5, seed)
    fitted = fit_binary_planes(w, 2)
    optimum = sum(brute_force(row, 2) for row in w.double().numpy())
    power = float(w.square().sum())
    assert optimum - 1e-4 * power <= squared_error(w, fitted) <= optimum + 0.06 * power


def test_exact_combinations_are_found_exactly() -> None:
    alphas = torch.tensor([[1.0, 0.375], [0.5, 2.0]])
    codes = torch.tensor([[0, 1, 2, 3, 3, 0, 1, 1], [2, 2, 1, 0, 3, 1, 0, 3]], dtype=torch.uint8)
    w = dequantize_planes(codes, alphas)
    fitted = fit_binary_planes(w, 2)
    assert torch.equal(dequantize_planes(fitted.codes, fitted.alphas), w)


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_refitting_never_raises_the_error(seed: int, planes: int) -> None:
    w = weights(4, 40, seed)
    errors = [squared_error(w, fit_binary_planes(w, planes, iterations=n)) for n in (0, 1, 5, 15)]
    for before, after in itertools.pairwise(errors):
        assert after <= before * (1 + 2e-3)  # alphas are stored in 16 bits


@pytest.mark.parametrize("planes", [2, 3, 4])
def test_no_worse_than_a_uniform_grid_of_as_many_levels(planes: int) -> None:
    for power in (1, 3):
        w = weights(32, 256, seed=planes) ** power
        uniform = quantize_uniform(w, planes, grid="midrise", ranges="mse")
        reference = (
            (dequantize_uniform(uniform, planes, grid="midrise", group=None) - w).double().square().sum()
        )
        assert squared_error(w, fit_binary_planes(w, planes)) < float(reference)


def test_error_falls_with_every_plane() -> None:
    w = weights(8, 100)
    errors = [squared_error(w, fit_binary_planes(w, planes)) for planes in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.015 * float(w.square().sum())


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_codes_are_the_nearest_levels(seed: int, planes: int) -> None:
    w, alphas = weights(3, 20, seed), weights(3, planes, seed + 1).abs().half()
    codes = nearest_codes(w, alphas)
    every = torch.arange(2**planes, dtype=torch.uint8).expand(3, -1)
    levels = dequantize_planes(every.contiguous(), alphas)
    nearest = (w.unsqueeze(-1) - levels.unsqueeze(1)).abs().amin(dim=-1)
    assert torch.allclose((dequantize_planes(codes, alphas) - w).abs(), nearest, atol=1e-6)


def test_quantizing_quantized_values_gives_the_same_values() -> None:
    fitted = fit_binary_planes(weights(6, 50), 3)
    values = dequantize_planes(fitted.codes, fitted.alphas)
    assert torch.equal(dequantize_planes(nearest_codes(values, fitted.alphas), fitted.alphas), values)


@pytest.mark.parametrize("fill", [0.0, 1e-30, 0.75, -2.0, 1e6])
def test_dead_and_constant_rows(fill: float) -> None:
    w = torch.full((2, 9), fill)
    fitted = fit_binary_planes(w, 3)
    decoded = dequantize_planes(fitted.codes, fitted.alphas)
    assert bool(torch.isfinite(decoded).all())
    if abs(fill) < 100:
        assert torch.allclose(decoded, w, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(("planes", "iterations"), [(0, 1), (9, 1), (2, -1)])
def test_refuses_wrong_numbers(planes: int, iterations: int) -> None:
    with pytest.raises(ValueError, match=r"planes|iterations"):
        fit_binary_planes(torch.ones(1, 2), planes, iterations)


def test_refuses_weights_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        fit_binary_planes(torch.tensor([[1.0, float("inf")]]), 2)
