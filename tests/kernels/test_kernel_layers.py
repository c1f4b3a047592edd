"""Packed layers against the float formula, written independently in float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer, StepIndex, bind_step_index
from harness.kernels.branch import LowRankBranch
from harness.kernels.layers import PackedConv2d, PackedLinear, layer_from_spec
from harness.kernels.quantizers.normal_float import quantize_normal_float
from harness.kernels.quantizers.residual import fit_binary_planes
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import (
    BinaryPlanesWeight,
    NormalFloatWeight,
    PackedWeight,
    RowMixedWeight,
    UniformWeight,
)

WEIGHT_KINDS = ["uniform", "uniform3g", "midrise", "normal_float", "planes", "mixed"]


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(n_in: int = 40, n_out: int = 24, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(values(n_out, n_in, seed=1) * 0.2)
        if bias:
            layer.bias.copy_(values(n_out, seed=2))
    return layer


def conv(**geometry: Any) -> nn.Conv2d:
    layer = nn.Conv2d(**{"in_channels": 8, "out_channels": 12, "kernel_size": 3, "padding": 1, **geometry})
    with torch.no_grad():
        layer.weight.copy_(values(*layer.weight.shape, seed=3) * 0.2)
        assert layer.bias is not None
        layer.bias.copy_(values(12, seed=4))
    return layer


def pack(w: Tensor, kind: str) -> PackedWeight:
    if kind == "uniform":
        return UniformWeight.pack(quantize_uniform(w, 4), 4, "asymmetric")
    if kind == "uniform3g":
        return UniformWeight.pack(quantize_uniform(w, 3, grid="narrow", group=16), 3, "narrow", 16)
    if kind == "midrise":
        return UniformWeight.pack(quantize_uniform(w, 2, grid="midrise"), 2, "midrise")
    if kind == "normal_float":
        return NormalFloatWeight.pack(quantize_normal_float(w, 4), 4)
    if kind == "planes":
        return BinaryPlanesWeight.pack(fit_binary_planes(w, 3))
    odd = torch.arange(w.shape[0]) % 2
    return RowMixedWeight([pack(w[odd == 0], "uniform"), pack(w[odd == 1], "planes")], odd)


def stream_codes(packed: Tensor, bits: int, cols: int) -> np.ndarray:
    rows = [int.from_bytes(bytes(row), "little") for row in packed.tolist()]
    return np.array([[(row >> (bits * j)) & (2**bits - 1) for j in range(cols)] for row in rows])


def stored_codes(packed: Tensor, bits: int, cols: int) -> np.ndarray:
    """Read rows of codes by the definition of the format: 3 bits are a stream of two and one of one."""
    if bits != 3:
        return stream_codes(packed, bits, cols).astype(np.float64)
    low = -(-cols // 4)
    return stream_codes(packed[:, :low], 2, cols) + 4.0 * stream_codes(packed[:, low:], 1, cols)


def matrix_of(weight: PackedWeight) -> Any:
    """Decode a packed weight from its raw buffers, in float64."""
    if isinstance(weight, RowMixedWeight):
        out = np.empty((weight.rows, weight.cols))
        for index, part in enumerate(weight.parts):
            out[weight.row_part.numpy() == index] = matrix_of(part)  # type: ignore[arg-type]
        return out
    if isinstance(weight, UniformWeight):
        codes = stored_codes(weight.packed, weight.bits, weight.cols)
        group = weight.group if isinstance(weight.group, int) else weight.cols
        scale = np.repeat(weight.scale.double().numpy(), group, axis=1)[:, : weight.cols]
        if weight.zero is not None:
            offset: Any = np.repeat(weight.zero.double().numpy(), group, axis=1)[:, : weight.cols]
        else:
            offset = 2 ** (weight.bits - 1) if weight.grid == "narrow" else (2**weight.bits - 1) / 2
        return (codes - offset) * scale
    if isinstance(weight, NormalFloatWeight):
        codes = stored_codes(weight.packed, weight.bits, weight.cols).astype(int).ravel()
        absmax = np.repeat(weight.absmax.double().numpy(), weight.block)[: codes.size]
        return (weight.codebook.double().numpy()[codes] * absmax).reshape(weight.rows, weight.cols)
    assert isinstance(weight, BinaryPlanesWeight)
    codes = stored_codes(weight.packed, weight.planes, weight.cols).astype(int)
    bits = (codes[:, :, None] >> np.arange(weight.planes)) & 1
    return np.einsum("rcp,rp->rc", 2.0 * bits - 1, weight.alphas.double().numpy())


def static_grid(x: Any, act: ActQuantizer) -> Any:
    """The static asymmetric grid in float64; ties are improbable on random data."""
    assert act.range is not None
    lo, hi = act.range[0].double().numpy()
    levels = 2**act.bits - 1
    scale = (hi - lo) / levels
    zero = np.round(-lo / scale)
    return (np.clip(np.round(x / scale + zero), 0, levels) - zero) * scale


def unfold(x: Any, layer: nn.Conv2d, group: int) -> Any:
    """Patches of one channel group: [n, out positions, in/groups*kh*kw], by index arithmetic."""
    assert not isinstance(layer.padding, str)
    (kh, kw), (sh, sw), (dh, dw), (ph, pw) = layer.kernel_size, layer.stride, layer.dilation, layer.padding
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    width = layer.in_channels // layer.groups
    padded = padded[:, group * width : (group + 1) * width]
    high = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    wide = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    patches = [
        padded[:, :, i * sh : i * sh + dh * kh : dh, j * sw : j * sw + dw * kw : dw].reshape(len(x), -1)
        for i in range(high)
        for j in range(wide)
    ]
    return np.stack(patches, axis=1)


def convolved(x: Any, matrix: Any, layer: nn.Conv2d) -> Any:
    rows = matrix.shape[0] // layer.groups
    parts = [unfold(x, layer, g) @ matrix[g * rows : (g + 1) * rows].T for g in range(layer.groups)]
    return np.concatenate(parts, axis=2).transpose(0, 2, 1)


def assert_close(got: Tensor, expected: np.ndarray) -> None:
    difference = got.detach().double().numpy().reshape(expected.shape) - expected
    assert np.linalg.norm(difference) <= 1e-5 * np.linalg.norm(expected)
    assert np.abs(difference).max() <= 1e-5 * np.abs(expected).max()


def extras(cols: int, rows: int, channels: int) -> dict[str, Any]:
    return {
        "act": ActQuantizer(8, "tensor", "static", range=torch.tensor([-2.5, 3.0])),
        "smooth": values(channels, seed=5).exp(),
        "branch": LowRankBranch(values(4, cols, seed=6) * 0.1, values(rows, 4, seed=7) * 0.1),
    }


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
@pytest.mark.parametrize("parts", [(), ("act",), ("smooth",), ("branch",), ("act", "smooth", "branch")])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_the_float_formula(kind: str, parts: tuple[str, ...], bias: bool) -> None:
    layer = linear(bias=bias)
    pieces = {name: piece for name, piece in extras(40, 24, 40).items() if name in parts}
    packed = PackedLinear.like(layer, pack(layer.weight, kind), **pieces)
    x = values(3, 7, 40, seed=8)
    x1 = x.double().numpy()
    if packed.smooth is not None:
        x1 = x1 / packed.smooth.double().numpy()
    y = (static_grid(x1, packed.act) if packed.act is not None else x1) @ matrix_of(packed.weight).T
    if packed.branch is not None:
        y = y + x1 @ packed.branch.down.double().numpy().T @ packed.branch.up.double().numpy().T
    if bias:
        y = y + layer.bias.detach().half().double().numpy()
    assert_close(packed(x), y)


GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"stride": 2},
    {"kernel_size": 1, "padding": 0},
    {"kernel_size": (3, 5), "padding": (1, 2), "dilation": (2, 1)},
    {"groups": 4},
]


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv_is_the_float_formula(kind: str, geometry: dict[str, Any]) -> None:
    layer = conv(**geometry)
    matrix = layer.weight.flatten(1)
    pieces = extras(matrix.shape[1], 12, 8)
    if layer.groups > 1:
        del pieces["branch"]
    packed = PackedConv2d.like(layer, pack(matrix, kind), **pieces)
    x = values(2, 8, 9, 11, seed=8)
    assert packed.smooth is not None
    assert packed.act is not None
    x1 = x.double().numpy() / packed.smooth.double().numpy()[:, None, None]
    y = convolved(static_grid(x1, packed.act), matrix_of(packed.weight), layer)
    if packed.branch is not None:
        low = unfold(x1, layer, 0) @ packed.branch.down.double().numpy().T
        y = y + (low @ packed.branch.up.double().numpy().T).transpose(0, 2, 1)
    assert layer.bias is not None
    y = y + layer.bias.detach().half().double().numpy()[:, None]
    assert packed(x).shape == layer(x).shape
    assert_close(packed(x), y)


def test_same_padding_is_supported() -> None:
    layer = conv(padding="same")
    packed = PackedConv2d.like(layer, pack(layer.weight.flatten(1), "uniform"))
    assert torch.allclose(
        packed(values(1, 8, 6, 6)),
        PackedConv2d.like(conv(padding=1), packed.weight)(values(1, 8, 6, 6)),
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_output_has_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    layer = linear()
    packed = PackedLinear.like(layer, pack(layer.weight, "uniform"), **extras(40, 24, 40))
    assert packed(values(2, 40).to(dtype)).dtype == dtype
    square = conv()
    assert (
        PackedConv2d.like(square, pack(square.weight.flatten(1), "planes"))(
            values(1, 8, 4, 4).to(dtype)
        ).dtype
        == dtype
    )


def test_an_image_does_not_depend_on_its_batch() -> None:
    """Matrix products of another batch size may round differently; the grid must not move."""
    layer = conv()
    act = ActQuantizer(4, "tensor")
    packed = PackedConv2d.like(layer, pack(layer.weight.flatten(1), "uniform"), act=act)
    x = values(3, 8, 6, 6) * torch.tensor([1.0, 50.0, 0.1]).view(3, 1, 1, 1)
    batch = packed(x)
    for index in range(3):
        assert torch.allclose(packed(x[index : index + 1])[0], batch[index], rtol=1e-4, atol=1e-5)
        assert torch.equal(act(x[index : index + 1])[0], act(x)[index])


def test_casting_the_model_changes_nothing() -> None:
    layer = linear()
    packed = PackedLinear.like(layer, pack(layer.weight, "normal_float"), **extras(40, 24, 40))
    x = values(2, 40)
    before = packed(x)
    packed.half().to(torch.bfloat16)
    assert torch.equal(packed(x), before)


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_spec_rebuilds_the_layer(kind: str) -> None:
    layer = conv(stride=2)
    act = ActQuantizer(6, "tensor", "per_step", range=values(5, 2))
    matrix = layer.weight.flatten(1)
    pieces = {**extras(matrix.shape[1], 12, 8), "act": act}
    packed = PackedConv2d.like(layer, pack(matrix, kind), **pieces)
    empty = layer_from_spec(conv(stride=2), packed.spec())
    empty.load_state_dict(packed.state_dict())
    bind_step_index(nn.ModuleList([packed, empty]), StepIndex(3))
    x = values(2, 8, 7, 7)
    assert torch.equal(empty(x), packed(x))
    assert empty.spec() == packed.spec()


def test_bytes_by_part_by_hand() -> None:
    layer = linear()
    packed = PackedLinear.like(layer, pack(layer.weight, "uniform"), **extras(40, 24, 40))
    assert packed.bytes_by_part() == {
        "codes": 24 * 20,
        "scales": 48,
        "zeros": 24,
        "branch": 4 * (40 + 24) * 2,
        "smooth": 80,
        "act": 4,
        "bias": 48,
    }


def test_pieces_that_do_not_fit_are_refused() -> None:
    layer = linear()
    weight = pack(layer.weight, "uniform")
    with pytest.raises(ValueError, match="24 x 40"):
        PackedLinear.like(linear(n_in=41), weight)
    with pytest.raises(ValueError, match="smoothing vector of shape"):
        PackedLinear.like(layer, weight, smooth=torch.ones(24))
    with pytest.raises(ValueError, match="must be positive"):
        PackedLinear.like(layer, weight, smooth=torch.full((40,), 1e-9))
    with pytest.raises(ValueError, match="too large for 16 bits"):
        PackedLinear.like(layer, weight, smooth=torch.full((40,), 1e9))
    with pytest.raises(ValueError, match="branch does not belong"):
        PackedLinear.like(layer, weight, branch=LowRankBranch(torch.ones(2, 24), torch.ones(40, 2)))
    with pytest.raises(ValueError, match="make no branch"):
        LowRankBranch(torch.ones(2, 24), torch.ones(40, 3))
    with pytest.raises(ValueError, match="not finite in 16 bits"):
        LowRankBranch(torch.full((2, 24), 1e6), torch.ones(40, 2))


def test_convolutions_outside_the_formula_are_refused() -> None:
    grouped, reflecting = conv(groups=2), conv(padding_mode="reflect")
    weight = pack(grouped.weight.flatten(1), "uniform")
    with pytest.raises(TypeError, match="grouped"):
        PackedConv2d.like(grouped, weight, branch=LowRankBranch(torch.ones(2, 36), torch.ones(12, 2)))
    with pytest.raises(TypeError, match="pads with zeros"):
        PackedConv2d.like(reflecting, pack(reflecting.weight.flatten(1), "uniform"))
    with pytest.raises(ValueError, match="per tensor, not per token"):
        PackedConv2d.like(grouped, weight, act=ActQuantizer(8, "token"))
