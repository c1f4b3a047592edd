"""Uniform grids: error bounds, idempotence, dead groups, tails, extreme scales."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.kernels.quantizers.grid import GRIDS, Grid, code_range
from harness.kernels.quantizers.uniform import (
    Group,
    UniformCodes,
    dequantize_uniform,
    encode_uniform,
    quantize_uniform,
)

GRID_BITS = [(grid, bits) for grid in GRIDS for bits in (1, 2, 3, 4, 8) if (grid, bits) != ("narrow", 1)]
grid_bits = st.sampled_from(GRID_BITS)
groups = st.sampled_from([None, "tensor", 1, 5, 8, 64])


def values_of(codes: UniformCodes, bits: int, grid: Grid, group: Group) -> Tensor:
    """`(code - offset) * scale` written out element by element in Python."""
    rows, cols = codes.codes.shape
    out = torch.empty(rows, cols, dtype=torch.float64)
    for r in range(rows):
        for c in range(cols):
            at = (0, 0) if group == "tensor" else (r, 0 if group is None else c // int(group))
            if codes.zero is not None:
                offset = float(codes.zero[at])
            else:
                offset = 2 ** (bits - 1) if grid == "narrow" else (2**bits - 1) / 2
            out[r, c] = (float(codes.codes[r, c]) - offset) * float(codes.scale[at])
    return out


def weights(seed: int, rows: int = 3, cols: int = 19, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator) * scale


@given(st.integers(0, 10**6), grid_bits, groups, st.sampled_from(["minmax", "percentile", "mse"]))
def test_dequantize_is_the_affine_formula_exactly(
    seed: int, grid_and_bits: tuple[Grid, int], group: Group, ranges: str
) -> None:
    grid, bits = grid_and_bits
    codes = quantize_uniform(weights(seed), bits, grid=grid, group=group, ranges=ranges)  # type: ignore[arg-type]
    decoded = dequantize_uniform(codes, bits, grid=grid, group=group)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded.to(torch.float64), values_of(codes, bits, grid, group))


@given(st.integers(0, 10**6), grid_bits, groups, st.floats(1e-6, 1e4))
def test_error_is_at_most_half_a_step_inside_the_range(
    seed: int, grid_and_bits: tuple[Grid, int], group: Group, scale: float
) -> None:
    grid, bits = grid_and_bits
    w = weights(seed, scale=scale)
    codes = quantize_uniform(w, bits, grid=grid, group=group)
    decoded = dequantize_uniform(codes, bits, grid=grid, group=group)
    smallest, largest = code_range(bits, grid)

    def level(code: int) -> Tensor:
        ends = UniformCodes(torch.full_like(codes.codes, code), codes.scale, codes.zero)
        return dequantize_uniform(ends, bits, grid=grid, group=group)

    step = level(largest) - level(largest - 1)
    lo, hi = level(smallest), level(largest)
    inside = (w >= lo) & (w <= hi)
    assert bool(((w - decoded).abs()[inside] <= step[inside] * 0.5 * (1 + 1e-5)).all())
    # Outside, the nearest level is the outermost one.
    nearest_end = torch.where(w < lo, lo, hi)
    assert torch.equal(decoded[~inside], nearest_end[~inside])


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4, 8]), groups)
def test_minmax_ranges_cover_the_weights(seed: int, bits: int, group: Group) -> None:
    """Up to half a step (the zero point is rounded) and the rounding of the scale, nothing is clipped."""
    w = weights(seed)
    codes = quantize_uniform(w, bits, group=group)
    step = dequantize_uniform(
        UniformCodes(
            torch.ones_like(codes.codes), codes.scale, torch.zeros_like(codes.scale).to(torch.uint8)
        ),
        bits,
        grid="asymmetric",
        group=group,
    )
    error = (dequantize_uniform(codes, bits, grid="asymmetric", group=group) - w).abs()
    assert bool((error <= step * (0.5 + 2**bits * 2**-11)).all())


@given(st.integers(0, 10**6), grid_bits, groups, st.sampled_from(["minmax", "mse"]))
def test_quantizing_quantized_values_gives_the_same_codes(
    seed: int, grid_and_bits: tuple[Grid, int], group: Group, ranges: str
) -> None:
    grid, bits = grid_and_bits
    codes = quantize_uniform(weights(seed), bits, grid=grid, group=group, ranges=ranges)  # type: ignore[arg-type]
    decoded = dequantize_uniform(codes, bits, grid=grid, group=group)
    again = encode_uniform(decoded, codes.scale, codes.zero, bits, grid=grid, group=group)
    assert torch.equal(again, codes.codes)


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("group", [None, 64, "tensor"])
def test_error_falls_with_every_bit(grid: Grid, ranges: str, group: Group) -> None:
    w = weights(7, rows=16, cols=200)
    errors = []
    for bits in range(1 if grid != "narrow" else 2, 9):
        codes = quantize_uniform(w, bits, grid=grid, ranges=ranges, group=group)  # type: ignore[arg-type]
        errors.append(float((dequantize_uniform(codes, bits, grid=grid, group=group) - w).square().sum()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("grid", "bits"), GRID_BITS)
@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
def test_dead_rows_stay_zero(grid: Grid, bits: int, ranges: str) -> None:
    w = weights(3, rows=4, cols=130)
    w[1] = 0
    w[2, 64:128] = 0
    codes = quantize_uniform(w, bits, grid=grid, group=64, ranges=ranges)  # type: ignore[arg-type]
    decoded = dequantize_uniform(codes, bits, grid=grid, group=64)
    assert bool((decoded[1] == 0).all())
    assert bool((decoded[2, 64:128] == 0).all())
    assert bool(torch.isfinite(decoded).all())


@pytest.mark.parametrize("constant", [-3.0, 2.5])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_constant_rows_are_kept(constant: float, bits: int) -> None:
    """A constant is an end of its range, so that only the rounding of the scale is left."""
    w = torch.full((1, 9), constant)
    decoded = dequantize_uniform(quantize_uniform(w, bits), bits, grid="asymmetric", group=None)
    assert torch.allclose(decoded, w, rtol=2**-11)


@pytest.mark.parametrize(("grid", "bits"), GRID_BITS)
@pytest.mark.parametrize("magnitude", [1e-45, 1e-30, 1e-8, 5e-7, 1e6, 3e38])
def test_extreme_magnitudes_give_finite_values(grid: Grid, bits: int, magnitude: float) -> None:
    w = weights(1).clamp(-1, 1) * magnitude
    for ranges in ("minmax", "mse"):
        codes = quantize_uniform(w, bits, grid=grid, ranges=ranges)
        decoded = dequantize_uniform(codes, bits, grid=grid, group=None)
        assert bool(torch.isfinite(decoded).all())
        assert bool(torch.isfinite(codes.scale).all())
    if magnitude == 5e-7 and bits == 8:
        assert float((decoded - w).abs().max()) <= 2**-24


def test_a_short_last_group_is_quantized_on_its_own() -> None:
    w = weights(11, rows=3, cols=70)
    whole = quantize_uniform(w, 3, group=64, ranges="mse")
    tail = quantize_uniform(w[:, 64:], 3, ranges="mse")
    assert whole.scale.shape == (3, 2)
    assert torch.equal(whole.codes[:, 64:], tail.codes)
    assert torch.equal(whole.scale[:, 1:], tail.scale)


def test_rows_do_not_depend_on_each_other() -> None:
    w = weights(12, rows=6, cols=40)
    whole = quantize_uniform(w, 2, ranges="mse")
    for row in range(6):
        assert torch.equal(
            whole.codes[row : row + 1], quantize_uniform(w[row : row + 1], 2, ranges="mse").codes
        )


def test_known_codes() -> None:
    """-1..2 at 2 bits: step 1, zero point 1."""
    codes = quantize_uniform(torch.tensor([[-1.0, 0.0, 0.6, 2.0]]), 2)
    assert codes.codes.tolist() == [[0, 1, 2, 3]]
    assert (float(codes.scale), int(codes.zero)) == (1.0, 1)  # type: ignore[arg-type]
    narrow = quantize_uniform(torch.tensor([[-3.0, 0.0, 1.4, 1.6]]), 3, grid="narrow")
    assert narrow.codes.tolist() == [[1, 4, 5, 6]]
    midrise = quantize_uniform(torch.tensor([[-3.0, -0.1, 0.1, 3.0]]), 2, grid="midrise")
    assert midrise.codes.tolist() == [[0, 1, 2, 3]]
    assert float(midrise.scale) == 2.0


def test_codes_are_chosen_for_the_stored_scale() -> None:
    """A scale of 1.0004 is stored as 1, and with it 127.51 is nearest to 128, not to 127."""
    w = torch.tensor([[0.0, 127.51, 255 * 1.0004]])
    codes = quantize_uniform(w, 8)
    assert float(codes.scale) == 1.0
    assert codes.codes.tolist() == [[0, 128, 255]]
    assert math.floor(127.51 / 1.0004 + 0.5) == 127  # what the unrounded scale would have chosen


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_weights_that_are_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantize_uniform(torch.tensor([[1.0, bad]]), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": "narrow", "bits": 1}, "single level"),
        ({"grid": "diagonal"}, "unknown grid"),
        ({"bits": 9}, "1 to 8 bits"),
        ({"group": 0}, "positive number"),
        ({"group": True}, "positive number"),
        ({"ranges": "guess"}, "unknown range rule"),
        ({"ranges": "percentile", "percentile": 0.99}, "50..100"),
    ],
)
def test_refuses_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_uniform(torch.ones(2, 2), **{"bits": 4, **options})  # type: ignore[arg-type]
