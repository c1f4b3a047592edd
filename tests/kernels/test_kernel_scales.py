"""Two-level scales of weights: what they stand for, what they never do, and how they are stored."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer
from harness.kernels.checkpoint import load_checkpoint, save_checkpoint
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.grid import Grid
from harness.kernels.quantizers.scales import (
    ScaleFormat,
    ceil_exponent,
    e8m0_group_scales,
    integer_group_scales,
    largest_multiplier,
    largest_unit,
    power_of_two,
)
from harness.kernels.quantizers.uniform import (
    UniformCodes,
    dequantize_uniform,
    encode_uniform,
    expand_uniform,
    quantize_uniform,
)
from harness.kernels.weights import UniformWeight

TWO_LEVEL: tuple[ScaleFormat, ...] = ("integer", "e8m0")
FITTING: list[tuple[ScaleFormat, Grid, int]] = [
    ("integer", "narrow", 2),
    ("integer", "narrow", 4),
    ("integer", "narrow", 8),
    ("integer", "asymmetric", 2),
    ("integer", "asymmetric", 3),
    ("integer", "asymmetric", 4),
    ("integer", "asymmetric", 7),
    ("integer", "midrise", 1),
    ("integer", "midrise", 4),
    ("e8m0", "narrow", 2),
    ("e8m0", "narrow", 4),
    ("e8m0", "narrow", 5),
    ("e8m0", "asymmetric", 2),
    ("e8m0", "asymmetric", 4),
    ("e8m0", "midrise", 1),
    ("e8m0", "midrise", 4),
]
fitting = st.sampled_from(FITTING)
seeds = st.integers(0, 10**6)


def weights(seed: int, rows: int = 3, cols: int = 42) -> Tensor:
    """Rows whose groups differ by orders of magnitude, as smoothing leaves them."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(2 * torch.randn(rows, cols, generator=generator).cumsum(1) / cols**0.5)
    return torch.randn(rows, cols, generator=generator) * spread


def step_of(codes: UniformCodes, row: int, group: int) -> Fraction:
    assert codes.multiplier is not None
    scale, k = Fraction(float(codes.scale[row, 0])), int(codes.multiplier[row, group])
    return scale * (Fraction(2) ** k if codes.multiplier.dtype == torch.int8 else k)


@given(seeds, fitting, st.sampled_from(["minmax", "mse", "percentile"]))
def test_values_are_row_scale_times_multiplier_times_unit_exactly(
    seed: int, case: tuple[ScaleFormat, Grid, int], ranges: str
) -> None:
    scale_format, grid, bits = case
    codes = quantize_uniform(
        weights(seed),
        bits,
        grid=grid,
        group=8,
        ranges=ranges,  # type: ignore[arg-type]
        scale_format=scale_format,
    )
    decoded = dequantize_uniform(codes, bits, grid=grid, group=8)
    products, row_scale = expand_uniform(codes, bits, grid=grid, group=8)
    assert products.dtype == (torch.float8_e4m3fn if scale_format == "e8m0" else torch.int8)
    assert row_scale.shape == (3, 1)
    assert torch.equal(products.to(torch.float32) * row_scale, decoded)
    for row in range(3):
        for col in range(42):
            if codes.zero is not None:
                offset = Fraction(int(codes.zero[row, col // 8]))
            else:
                offset = Fraction(2**bits, 2) if grid == "narrow" else Fraction(2**bits - 1, 2)
            value = (int(codes.codes[row, col]) - offset) * step_of(codes, row, col // 8)
            assert Fraction(float(decoded[row, col])) == value


@given(seeds, fitting, st.sampled_from([1, 8, 64]))
def test_min_max_ranges_are_never_narrowed(
    seed: int, case: tuple[ScaleFormat, Grid, int], group: int
) -> None:
    """Nothing is clipped: every value lies within half a step (a zero point's rounding included)."""
    scale_format, grid, bits = case
    w = weights(seed)
    codes = quantize_uniform(w, bits, grid=grid, group=group, scale_format=scale_format)
    error = (dequantize_uniform(codes, bits, grid=grid, group=group) - w).abs()
    step = codes.steps.repeat_interleave(group, dim=1)[:, :42]
    slack = 2**bits * 2**-11 if grid == "asymmetric" else 1e-5
    assert bool((error <= step * (0.5 + slack)).all())


@given(seeds, fitting)
def test_products_stay_inside_int8_and_multipliers_inside_their_range(
    seed: int, case: tuple[ScaleFormat, Grid, int]
) -> None:
    scale_format, grid, bits = case
    codes = quantize_uniform(weights(seed), bits, grid=grid, group=8, ranges="mse", scale_format=scale_format)
    assert codes.multiplier is not None
    least, most = int(codes.multiplier.min()), int(codes.multiplier.max())
    unit = {"narrow": 2 ** (bits - 1) - 1, "asymmetric": 2**bits - 1, "midrise": 2**bits - 1}[grid]
    if scale_format == "integer":
        assert codes.multiplier.dtype == torch.uint8
        assert 1 <= least <= most <= 127 // unit
        products = expand_uniform(codes, bits, grid=grid, group=8)[0].to(torch.int32)
        assert int(products.abs().max()) <= 127
    else:
        assert codes.multiplier.dtype == torch.int8
        assert -9 <= least <= most <= 0


def test_every_product_of_e8m0_is_a_float8() -> None:
    units = torch.arange(-16, 17, dtype=torch.float32)[:, None]
    products = units * torch.tensor([2.0**e for e in range(-9, 1)])
    assert torch.equal(products.to(torch.float8_e4m3fn).to(torch.float32), products)
    # Neither end could move: 17 is no e4m3 number, nor is 2^-10.
    for outside in (17.0, 2.0**-10):
        assert float(torch.tensor(outside).to(torch.float8_e4m3fn)) != outside


@pytest.mark.parametrize(
    ("grid", "bits", "most"), [("narrow", 4, 18), ("asymmetric", 4, 8), ("midrise", 4, 8)]
)
def test_largest_multipliers_at_four_bits(grid: Grid, bits: int, most: int) -> None:
    unit = largest_unit(bits, grid)
    assert largest_multiplier(unit) == most
    assert most * unit <= 127 < (most + 1) * unit


def test_known_integer_scales() -> None:
    """Groups of 126, 63 and 7 at narrow 4 bits: row scale 1, multipliers 18, 9 and 1, all exact."""
    w = torch.tensor([[126.0, -18.0, 63.0, 9.0, 7.0, -3.0]])
    codes = quantize_uniform(w, 4, grid="narrow", group=2, scale_format="integer")
    assert codes.scale.tolist() == [[1.0]]
    assert codes.multiplier is not None
    assert codes.multiplier.tolist() == [[18, 9, 1]]
    assert codes.codes.tolist() == [[15, 7, 15, 9, 15, 5]]
    assert torch.equal(dequantize_uniform(codes, 4, grid="narrow", group=2), w)


def test_known_e8m0_scales() -> None:
    """Steps of 8, 4 and 1/64: row scale 8 and exponents 0, -1 and -9."""
    w = torch.tensor([[56.0, -8.0, 28.0, 4.0, 7 / 64, -3 / 64]])
    codes = quantize_uniform(w, 4, grid="narrow", group=2, scale_format="e8m0")
    assert codes.scale.tolist() == [[8.0]]
    assert codes.multiplier is not None
    assert codes.multiplier.tolist() == [[0, -1, -9]]
    assert torch.equal(dequantize_uniform(codes, 4, grid="narrow", group=2), w)


def test_half_steps_of_midrise_are_doubled() -> None:
    w = torch.tensor([[15.0, -1.0, 5.0, -3.0]])
    codes = quantize_uniform(w, 4, grid="midrise", group=4, scale_format="integer")
    products, row_scale = expand_uniform(codes, 4, grid="midrise", group=4)
    assert codes.multiplier is not None
    k = int(codes.multiplier)
    assert bool((products.to(torch.int32) // k % 2 == 1).all())
    assert float(row_scale) == float(codes.scale) / 2
    assert torch.equal(encode_uniform(w, codes.steps, None, 4, grid="midrise", group=4), codes.codes)


@pytest.mark.parametrize("scale_format", TWO_LEVEL)
@pytest.mark.parametrize(("grid", "ranges"), [("narrow", "minmax"), ("asymmetric", "mse")])
def test_error_is_close_to_that_of_float_scales(scale_format: ScaleFormat, grid: Grid, ranges: str) -> None:
    """An octave for a power of two can double a step (6 dB); an integer up to 8 widens it much less."""
    w = torch.randn(32, 512, generator=torch.Generator().manual_seed(1))
    errors = []
    for each in ("float", scale_format):
        codes = quantize_uniform(w, 4, grid=grid, group=64, ranges=ranges, scale_format=each)  # type: ignore[arg-type]
        errors.append(float((dequantize_uniform(codes, 4, grid=grid, group=64) - w).square().sum()))
    lost = 10 * math.log10(errors[1] / errors[0])
    assert 0 < lost < (0.6 if scale_format == "integer" else 2.5)


@pytest.mark.parametrize("scale_format", TWO_LEVEL)
def test_searched_row_scales_are_no_worse_than_the_plain_one(scale_format: ScaleFormat) -> None:
    """Against the row scale that the widest group alone would set, multipliers rounded up."""
    w = torch.randn(16, 256, generator=torch.Generator().manual_seed(2))
    codes = quantize_uniform(w, 4, grid="narrow", group=16, scale_format=scale_format)
    step = w.view(16, 16, 16).abs().amax(-1) / 7
    row = step.amax(1, keepdim=True) / (18 if scale_format == "integer" else 1)
    relative = step / row
    factor = relative.ceil().clamp(1, 18) if scale_format == "integer" else 2 ** relative.log2().ceil()
    plain = (row * factor).repeat_interleave(16, 1)
    expected = (w / plain).round().clamp(-7, 7) * plain
    found = dequantize_uniform(codes, 4, grid="narrow", group=16)
    assert float((found - w).square().sum()) < float((expected - w).square().sum())


@pytest.mark.parametrize("scale_format", TWO_LEVEL)
@pytest.mark.parametrize(("grid", "bits"), [("narrow", 4), ("asymmetric", 3), ("midrise", 2)])
@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_dead_rows_and_groups(scale_format: ScaleFormat, grid: Grid, bits: int, ranges: str) -> None:
    w = weights(3, rows=4, cols=40)
    w[1] = 0
    w[2, 8:16] = 0
    codes = quantize_uniform(w, bits, grid=grid, group=8, ranges=ranges, scale_format=scale_format)  # type: ignore[arg-type]
    decoded = dequantize_uniform(codes, bits, grid=grid, group=8)
    assert bool(torch.isfinite(decoded).all())
    assert bool((decoded[1] == 0).all())
    least = float(codes.scale[2]) * 2**-9 / 2 if (scale_format, grid) == ("e8m0", "midrise") else 0.0
    assert float(decoded[2, 8:16].abs().max()) == least


@pytest.mark.parametrize("scale_format", TWO_LEVEL)
@pytest.mark.parametrize("magnitude", [1e-45, 1e-30, 1e-8, 1e-6, 1e6, 3e38])
def test_extreme_magnitudes_give_finite_values(scale_format: ScaleFormat, magnitude: float) -> None:
    w = weights(1).clamp(-1, 1) * magnitude
    codes = quantize_uniform(w, 4, group=8, scale_format=scale_format)
    assert bool(torch.isfinite(codes.scale).all())
    assert bool(torch.isfinite(dequantize_uniform(codes, 4, grid="asymmetric", group=8)).all())


def test_the_exponent_is_read_off_exactly() -> None:
    """Powers of two keep their exponent, the next float above takes one more, and the ends hold."""
    for e in range(-9, 0):
        power = torch.tensor([2.0**e])
        above = torch.nextafter(power, torch.tensor([2.0]))
        assert ceil_exponent(power).tolist() == [e]
        assert ceil_exponent(above).tolist() == [e + 1]
    assert ceil_exponent(torch.tensor([0.0, 1e-44, 1e-6, 1.0, 1.5])).tolist() == [-9, -9, -9, 0, 0]
    assert torch.equal(power_of_two(torch.tensor([-9, -1, 0, 5])), torch.tensor([2.0**-9, 0.5, 1.0, 32.0]))


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=12), st.sampled_from([1, 3, 7, 15, 127]))
def test_token_scales_reach_every_group(absmax: list[float], largest: int) -> None:
    values = torch.tensor(absmax)
    for scale_format in ("integer", "e8m0"):
        if scale_format == "integer":
            kmax = 127 // largest
            row, k = integer_group_scales(values, largest, kmax)
            factor = k.to(torch.float64)
            assert 1 <= int(k.min()) <= int(k.max()) <= kmax
        else:
            row, e = e8m0_group_scales(values, largest)
            factor = 2.0 ** e.to(torch.float64)
            assert -9 <= int(e.min()) <= int(e.max()) <= 0
        reach = row.to(torch.float64) * factor * largest
        # Not beyond the float32 roundings of the rule (absolute where the scale itself is subnormal).
        assert bool((reach * (1 + 2**-21) + 127 * 2.0**-149 >= values.to(torch.float64)).all())


def test_known_token_scales() -> None:
    row, k = integer_group_scales(torch.tensor([[126.0, 63.0, 64.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), 7, 18)
    assert row.tolist() == [[1.0], [1.0]]
    assert k.tolist() == [[18, 9, 10, 1], [1, 1, 1, 1]]
    row, e = e8m0_group_scales(torch.tensor([[56.0, 28.0, 28.1, 0.0], [0.0, 0.0, 0.0, 0.0]]), 7)
    assert row.tolist() == [[8.0], [1.0]]
    assert e.tolist() == [[0, -1, 0, -9], [-9, -9, -9, -9]]


def test_bytes_are_a_row_scale_and_a_byte_per_group() -> None:
    w = weights(5, rows=6, cols=40)
    integer = UniformWeight.pack(quantize_uniform(w, 4, group=8, scale_format="integer"), 4, "asymmetric", 8)
    floats = UniformWeight.pack(quantize_uniform(w, 4, group=8), 4, "asymmetric", 8)
    assert integer.bytes_by_part() == {"codes": 120, "scales": 6 * 2 + 6 * 5, "zeros": 30}
    assert floats.bytes_by_part() == {"codes": 120, "scales": 60, "zeros": 30}
    assert integer.mean_bits == 4.0


@pytest.mark.parametrize(("scale_format", "grid", "bits"), FITTING)
def test_a_checkpoint_brings_it_back(
    scale_format: ScaleFormat, grid: Grid, bits: int, tmp_path: Path
) -> None:
    linear = nn.Linear(42, 3)
    with torch.no_grad():
        linear.weight.copy_(weights(7))
    codes = quantize_uniform(linear.weight, bits, grid=grid, group=8, scale_format=scale_format)
    act = ActQuantizer(4, "group", symmetric=True, group=8, scale_format=scale_format)
    model = nn.Sequential(
        PackedLinear.like(linear, UniformWeight.pack(codes, bits, grid, 8), act=act), nn.Linear(3, 3)
    )
    save_checkpoint(model, tmp_path)
    loaded = nn.Sequential(nn.Linear(42, 3), nn.Linear(3, 3))
    load_checkpoint(loaded, tmp_path)
    x = weights(8)
    assert torch.equal(loaded(x), model(x))
    assert torch.equal(loaded[0].weight.dequantize(), dequantize_uniform(codes, bits, grid=grid, group=8))
    assert loaded[0].weight.scale_format == loaded[0].act.scale_format == scale_format


def test_float_scales_are_specified_as_before() -> None:
    weight = UniformWeight.pack(quantize_uniform(weights(1), 4, group=8), 4, "asymmetric", 8)
    spec = {"kind": "uniform", "rows": 3, "cols": 42, "bits": 4, "grid": "asymmetric", "group": 8}
    assert json.loads(json.dumps(weight.spec())) == spec
    assert UniformWeight.from_spec(spec).scale_format == "float"
    assert sorted(weight.state_dict()) == ["packed", "scale", "zero"]


@pytest.mark.parametrize(
    ("bits", "grid", "group", "scale_format", "message"),
    [
        (4, "asymmetric", None, "integer", "groups of columns"),
        (4, "asymmetric", "tensor", "e8m0", "groups of columns"),
        (4, "affine", 8, "integer", "integer zero point"),
        (8, "asymmetric", 8, "integer", "reaches 255"),
        (5, "asymmetric", 8, "e8m0", "reaches 31"),
        (6, "narrow", 8, "e8m0", "reaches 31"),
        (4, "narrow", 8, "e5m2", "unknown scale format"),
    ],
)
def test_formats_that_do_not_fit_are_refused(
    bits: int, grid: Grid, group: int | None, scale_format: ScaleFormat, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_uniform(torch.ones(2, 16), bits, grid=grid, group=group, scale_format=scale_format)
    with pytest.raises(ValueError, match=message):
        UniformWeight(2, 16, bits, grid, group, scale_format)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [("multiplier", 19, "multiplier"), ("packed", 0, "code of the narrow grid")],
)
def test_damaged_integer_weights_are_refused(part: str, value: int, message: str) -> None:
    codes = quantize_uniform(weights(1), 4, grid="narrow", group=8, scale_format="integer")
    weight = UniformWeight.pack(codes, 4, "narrow", 8)
    weight.check()
    getattr(weight, part)[1, 2] = value
    with pytest.raises(ValueError, match=message):
        weight.check()


def test_damaged_exponents_and_zero_points_are_refused() -> None:
    codes = quantize_uniform(weights(1), 4, group=8, scale_format="e8m0")
    weight = UniformWeight.pack(codes, 4, "asymmetric", 8)
    weight.check()
    assert weight.multiplier is not None
    assert weight.zero is not None
    weight.multiplier[0, 0] = -10
    with pytest.raises(ValueError, match=r"outside -9\.\.0"):
        weight.check()
    weight.multiplier[0, 0] = 0
    weight.zero[0, 0] = 16
    with pytest.raises(ValueError, match="zero point"):
        weight.check()


def test_expanding_needs_integers() -> None:
    w = weights(2)
    with pytest.raises(ValueError, match="float scales"):
        expand_uniform(quantize_uniform(w, 4, group=8), 4, grid="asymmetric", group=8)
    with pytest.raises(ValueError, match="int8"):
        expand_uniform(quantize_uniform(w, 8), 8, grid="asymmetric", group=None)
    codes = quantize_uniform(w, 4)
    products, row_scale = expand_uniform(codes, 4, grid="asymmetric", group=None)
    assert torch.equal(products * row_scale, dequantize_uniform(codes, 4, grid="asymmetric", group=None))
