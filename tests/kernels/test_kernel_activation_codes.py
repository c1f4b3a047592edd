"""Codes of activations: few per group, what they stand for, and two-level scales against their definition."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer, StepIndex
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import UniformWeight

RANGES = torch.tensor([[-1.5, 3.0], [-3.0, 2.0]])
KINDS: dict[str, dict[str, Any]] = {
    "token": {"granularity": "token"},
    "token symmetric": {"granularity": "token", "symmetric": True},
    "token shifted": {"granularity": "token", "symmetric": True, "shift": 0.171875},
    "group": {"granularity": "group"},
    "group symmetric": {"granularity": "group", "symmetric": True},
    "group shifted": {"granularity": "group", "symmetric": True, "shift": 0.171875},
    "tensor": {"granularity": "tensor"},
    "tensor symmetric": {"granularity": "tensor", "symmetric": True},
    "tensor shifted": {"granularity": "tensor", "symmetric": True, "shift": 0.171875},
    "static": {"granularity": "tensor", "mode": "static", "range": RANGES[:1]},
    "static shifted": {
        "granularity": "tensor",
        "mode": "static",
        "range": RANGES[:1],
        "symmetric": True,
        "shift": 0.171875,
    },
    "per step": {"granularity": "tensor", "mode": "per_step", "range": RANGES},
    "integer": {"granularity": "group", "symmetric": True, "scale_format": "integer"},
    "integer shifted": {
        "granularity": "group",
        "symmetric": True,
        "scale_format": "integer",
        "shift": 0.171875,
    },
    "e8m0": {"granularity": "group", "symmetric": True, "scale_format": "e8m0"},
    "e8m0 shifted": {"granularity": "group", "symmetric": True, "scale_format": "e8m0", "shift": 0.171875},
}
GROUP = 12
kinds = st.sampled_from(sorted(KINDS))
two_level = st.sampled_from([kind for kind in KINDS if kind.startswith(("integer", "e8m0"))])


def quantizer(kind: str, bits: int) -> ActQuantizer:
    made = ActQuantizer(bits, **{"group": GROUP, **KINDS[kind]})
    made.step_index = StepIndex(1)
    return made


def inputs(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(1.5 * torch.randn(shape[-1], generator=generator))
    return torch.randn(*shape, generator=generator) * spread + 0.2


def smoothing(seed: int, channels: int) -> Tensor:
    return torch.exp(torch.randn(channels, generator=torch.Generator().manual_seed(seed))).half()


def shared(kind: str, products: Tensor) -> list[Tensor]:
    """The runs of values that the grid's name promises one range for."""
    if KINDS[kind]["granularity"] == "group":
        return [part for token in products.flatten(0, -2) for part in token.split(GROUP)]
    if KINDS[kind]["granularity"] == "token":
        return list(products.flatten(0, -2))
    return list(products.flatten(1))


@given(st.integers(0, 10**6), kinds, st.booleans(), st.sampled_from([7, 24, 31]))
def test_four_bits_are_at_most_sixteen_codes(seed: int, kind: str, smoothed: bool, channels: int) -> None:
    x = inputs(seed, 2, 5, channels)
    found = quantizer(kind, 4).codes(x, smoothing(seed, channels) if smoothed else None)
    assert found.products.shape == x.shape
    for run in shared(kind, found.products.to(torch.float32)):
        assert len(run.unique()) <= 16


def test_nvfp4_is_at_most_sixteen_codes_of_a_group() -> None:
    act = ActQuantizer(4, "group", symmetric=True, group=16, format="nvfp4")
    x = inputs(3, 4, 40)
    found = act.codes(x)
    for token in found.products:
        for run in token.split(16):
            assert len(run.unique()) <= 15
    assert set(found.products.abs().unique().tolist()) <= {0, 1, 2, 3, 4, 6, 8, 12}
    assert torch.equal(found.values(), act(x))


@given(st.integers(0, 10**6), kinds, st.integers(2, 8), st.booleans(), st.sampled_from([7, 24, 31]))
def test_codes_and_parameters_make_up_the_forward(
    seed: int, kind: str, bits: int, smoothed: bool, channels: int
) -> None:
    if kind.startswith("e8m0"):
        bits = min(bits, 4)
    if kind == "integer shifted":
        bits = min(bits, 6)
    act, x = quantizer(kind, bits), inputs(seed, 2, 5, channels)
    smooth = smoothing(seed, channels) if smoothed else None
    found = act.codes(x, smooth)
    assert found.products.dtype == (torch.float8_e4m3fn if kind.startswith("e8m0") else torch.int8)
    assert torch.equal(found.values(), act(x, smooth))


@pytest.mark.parametrize("kind", ["tensor", "tensor shifted", "static", "per step"])
def test_codes_of_maps(kind: str) -> None:
    """A convolution's input: one scale per sample, the shift divided by the smoothing of each channel."""
    act, x = quantizer(kind, 8), inputs(4, 3, 6, 5, 5)
    smooth = None if kind in {"static", "per step"} else smoothing(4, 6)
    assert torch.equal(act.codes(x, smooth).values(), act(x, smooth))


def definition(x: np.ndarray, kind: str, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Products, token scales and multipliers, value by value in NumPy's float32."""
    shifted, integer = kind.endswith("shifted"), kind.startswith("integer")
    f = np.float32
    largest = 2**bits - 1 if shifted else 2 ** (bits - 1) - 1
    kmax = 127 // largest
    starts = range(0, x.shape[1], GROUP)
    products, scales = np.zeros(x.shape, np.float32), np.zeros(len(x), np.float32)
    multipliers = np.zeros((len(x), len(starts)), np.int64)
    for t, token in enumerate(x):
        groups = [token[start : start + GROUP] for start in starts]
        absmax = [max(max(g.max(), f(0)) if shifted else np.abs(g).max(), f(0)) for g in groups]
        top = max(absmax)
        scale = f(top / f(largest * kmax)) if integer else f(top / f(largest))
        scale = f(1) if scale == 0 else scale
        scales[t] = scale
        for i, (group, size) in enumerate(zip(groups, absmax, strict=True)):
            if integer:
                multiplier = int(min(max(np.ceil(f(size / f(scale * f(largest)))), 1), kmax))
                factor = f(multiplier)
            else:
                multiplier = next((e for e in range(-9, 0) if f(2.0**e) >= f(size / top)), 0)
                factor = f(2.0**multiplier)
            multipliers[t, i] = multiplier
            codes = np.clip(np.rint(group / f(scale * factor)), 0 if shifted else -largest, largest)
            products[t, i * GROUP : i * GROUP + len(group)] = codes * factor
    return products, scales, multipliers


@given(st.integers(0, 10**6), two_level, st.sampled_from([2, 3, 4]), st.sampled_from([7, 24, 31]))
def test_two_level_codes_follow_the_definition_bit_for_bit(
    seed: int, kind: str, bits: int, channels: int
) -> None:
    x = inputs(seed, 4, channels)
    found = quantizer(kind, bits).codes(x)
    shift = np.float32(0.171875 if kind.endswith("shifted") else 0)
    products, scales, multipliers = definition(x.numpy() + shift, kind, bits)
    assert np.array_equal(found.products.to(torch.float32).numpy(), products)
    assert np.array_equal(found.scale.squeeze(-1).numpy(), scales)
    assert found.multiplier is not None
    assert np.array_equal(found.multiplier.numpy(), multipliers)


@given(st.integers(0, 10**6), two_level)
def test_nothing_is_clipped_and_products_fit_their_type(seed: int, kind: str) -> None:
    x = inputs(seed, 3, 31)
    act = quantizer(kind, 4)
    found = act.codes(x)
    assert found.multiplier is not None
    factor = found.multiplier.to(torch.float32)
    if kind.startswith("e8m0"):
        assert -9 <= float(factor.min()) <= float(factor.max()) <= 0
        factor = torch.exp2(factor)
    else:
        assert 1 <= float(factor.min()) <= float(factor.max()) <= (8 if act.shift else 18)
        assert int(found.products.to(torch.int32).abs().max()) <= (120 if act.shift else 126)
    step = (found.scale * factor).repeat_interleave(GROUP, -1)[..., :31]
    error = (act(x) - x).abs()
    # Below the shift there is nothing to represent.
    inside = x > -act.shift if act.shift else torch.ones_like(x, dtype=torch.bool)
    assert bool((error <= step * (0.5 + 1e-4))[inside].all())


def test_an_integer_product_of_codes_is_the_layer() -> None:
    """int8 times int8 in integers, scaled once per row and column, is the packed layer's own result."""
    linear = nn.Linear(40, 6)
    with torch.no_grad():
        linear.weight.copy_(inputs(1, 6, 40))
    codes = quantize_uniform(linear.weight, 4, grid="narrow", group=8, scale_format="integer")
    weight = UniformWeight.pack(codes, 4, "narrow", 8)
    act = ActQuantizer(4, "group", symmetric=True, group=8, scale_format="integer")
    smooth = smoothing(2, 40)
    layer = PackedLinear.like(linear, weight, act=act, smooth=smooth)
    x = inputs(3, 5, 40)
    left = act.codes(x / smooth.float(), smooth)
    right, column_scale = weight.expand()
    total = left.products.to(torch.int64) @ right.to(torch.int64).T
    assert layer.bias is not None
    expected = total.double() * left.scale.double() * column_scale.double().T + layer.bias.double()
    assert torch.allclose(layer(x).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["integer", "integer shifted", "e8m0", "e8m0 shifted"])
def test_two_level_inputs_of_zeros_nan_and_no_tokens(kind: str) -> None:
    act = quantizer(kind, 4)
    x = inputs(1, 3, 30)
    x[0] = -act.shift
    x[1, 4] = float("nan")
    got = act(x)
    assert torch.equal(got[0], x[0])
    assert bool(got[1].isnan().all())
    assert bool(got[2].isfinite().all())
    assert act(torch.empty(0, 30)).shape == (0, 30)
    with pytest.raises(ValueError, match="no values"):
        act.codes(torch.empty(0, 30))


def test_two_level_scales_of_one_group_are_those_of_the_token() -> None:
    x = inputs(5, 3, 30)
    plain = ActQuantizer(4, "token", symmetric=True)(x)
    for scale_format in ("integer", "e8m0"):
        act = ActQuantizer(4, "group", symmetric=True, group=64, scale_format=scale_format)  # type: ignore[arg-type]
        assert torch.allclose(act(x), plain, rtol=1e-5)


def test_spec_and_old_specs() -> None:
    act = quantizer("integer shifted", 4)
    rebuilt = ActQuantizer.from_spec(json.loads(json.dumps(act.spec())))
    x = inputs(6, 3, 30)
    assert rebuilt.scale_format == "integer"
    assert torch.equal(rebuilt(x), act(x))
    plain = ActQuantizer(4, "group", symmetric=True)
    assert "scale_format" not in plain.spec()
    assert ActQuantizer.from_spec(plain.spec()).scale_format == "float"
    with pytest.raises(ValueError, match="scale_format"):
        ActQuantizer.from_spec({**plain.spec(), "scale_format": "e5m2"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "token", "symmetric": True}, "symmetric integer groups"),
        ({"granularity": "group"}, "symmetric integer groups"),
        ({"granularity": "group", "symmetric": True, "group": 16, "format": "nvfp4"}, "integer groups"),
        ({"granularity": "group", "symmetric": True, "bits": 8, "shift": 0.1}, "reaches 255"),
        ({"granularity": "group", "symmetric": True, "bits": 5, "scale_format": "e8m0", "shift": 0.1}, "31"),
        ({"granularity": "group", "symmetric": True, "scale_format": "e5m2"}, "unknown scale format"),
    ],
)
def test_combinations_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActQuantizer(**{"bits": 4, "scale_format": "integer", **options})
