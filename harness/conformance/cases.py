"""Layers for the parity suite: kinds of weight, input quantizers and odd shapes, from fixed seeds."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from harness.conformance.packed import dynamic_inputs, uniform_weight
from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.layers import PackedConv2d, PackedLayer, PackedLinear
from harness.kernels.quantizers import nvfp4
from harness.kernels.quantizers.grid import Grid
from harness.kernels.quantizers.normal_float import quantize_normal_float
from harness.kernels.quantizers.nvfp4 import quantize_nvfp4
from harness.kernels.quantizers.residual import fit_binary_planes
from harness.kernels.quantizers.scales import ScaleFormat
from harness.kernels.weights import (
    BinaryPlanesWeight,
    NormalFloatWeight,
    Nvfp4Weight,
    PackedWeight,
    RowMixedWeight,
    UniformWeight,
)

Packer = Callable[[Tensor], PackedWeight]
Quantizer = Callable[[Tensor], ActQuantizer | None]
_SHIFT = 0.171875
_RANK = 12


@dataclass(frozen=True)
class Case:
    """One layer and its input.

    Attributes:
        name: unique; says kind, weight, inputs and shape.
        build: returns the layer on the CPU and a float32 input, the same at every call.
    """

    name: str
    build: Callable[[], tuple[PackedLayer, Tensor]]


def _mixed(w: Tensor) -> RowMixedWeight:
    """Rows of 2, 3 and 4 bits in turns."""
    part = torch.arange(w.shape[0]) % 3
    widths = [bits for i, bits in enumerate((2, 3, 4)) if bool((part == i).any())]
    parts: list[PackedWeight] = [
        uniform_weight(w[part == i], bits, "asymmetric", 64) for i, bits in enumerate(widths)
    ]
    return RowMixedWeight(parts, part)


def _normal_float(w: Tensor, bits: int) -> NormalFloatWeight:
    return NormalFloatWeight.pack(quantize_normal_float(w, bits), bits)


WEIGHTS: dict[str, Packer] = {
    "w4 narrow g64": lambda w: uniform_weight(w, 4, "narrow", 64),
    "w4 asymmetric row": lambda w: uniform_weight(w, 4, "asymmetric", None),
    "w3 asymmetric g64": lambda w: uniform_weight(w, 3, "asymmetric", 64),
    "w3 affine g32": lambda w: uniform_weight(w, 3, "affine", 32),
    "w2 asymmetric g64": lambda w: uniform_weight(w, 2, "asymmetric", 64),
    "w2 midrise row": lambda w: uniform_weight(w, 2, "midrise", None),
    "w8 narrow row": lambda w: uniform_weight(w, 8, "narrow", None),
    "w5 asymmetric tensor": lambda w: uniform_weight(w, 5, "asymmetric", "tensor"),
    "w1 midrise g64": lambda w: uniform_weight(w, 1, "midrise", 64),
    "nf4": lambda w: _normal_float(w, 4),
    "nf3": lambda w: _normal_float(w, 3),
    "nf2": lambda w: _normal_float(w, 2),
    "planes2": lambda w: BinaryPlanesWeight.pack(fit_binary_planes(w, 2)),
    "planes3": lambda w: BinaryPlanesWeight.pack(fit_binary_planes(w, 3)),
    "nvfp4": lambda w: Nvfp4Weight.pack(quantize_nvfp4(w)),
    "rows 2/3/4": _mixed,
}
_LINEAR_INPUTS: dict[str, Quantizer] = {
    "a16": lambda _: None,
    "a8 token": lambda _: dynamic_inputs(8, "token"),
    "a4 g64": lambda _: dynamic_inputs(4, "group"),
}
_MORE_INPUTS: dict[str, Quantizer] = {
    "a8 token asymmetric": lambda _: ActQuantizer(8, "token"),
    "a4 token": lambda _: dynamic_inputs(4, "token"),
    "a6 g32": lambda _: dynamic_inputs(6, "group", group=32),
    "a4 g64 shifted": lambda _: dynamic_inputs(4, "group", shift=_SHIFT),
    "a8 sample": lambda _: ActQuantizer(8, "tensor"),
    "a8 static": lambda x: ActQuantizer(8, "tensor", "static", range=torch.stack([x.min(), x.max()])),
    "nvfp4": lambda _: ActQuantizer(4, "group", "dynamic", True, group=nvfp4.GROUP, format="nvfp4"),
}
_CONV_INPUTS: dict[str, Quantizer] = {
    "a16": lambda _: None,
    "a8 sample": lambda _: ActQuantizer(8, "tensor"),
    "a4 sample": lambda _: ActQuantizer(4, "tensor", "dynamic", True),
    "a4 sample shifted": lambda _: ActQuantizer(4, "tensor", "dynamic", True, shift=_SHIFT),
    "a8 static": lambda x: ActQuantizer(8, "tensor", "static", range=torch.stack([x.min(), x.max()])),
}
_SHAPES = ((1, 192, 96), (3, 200, 72), (17, 64, 33), (130, 320, 136), (16, 1032, 264))
"""Rows, inputs, outputs: one token, tails in each, more than a tile."""
_FEW_ROWS = ((1, 1032, 265), (2, 328, 70), (4, 512, 128))
_WALKED = (
    ("w4 narrow g64", 16, 512, 6344),
    ("w3 asymmetric g64", 16, 1024, 6344),
    ("w2 asymmetric g64", 9, 1024, 6344),
    ("w4 narrow g64", 16, 3072, 265),
    ("w3 asymmetric g64", 3, 2048, 70),
    ("w2 asymmetric g64", 8, 3072, 17),
    ("w4 narrow g64", 1, 3072, 6400),
    ("w3 asymmetric g64", 1, 1088, 6400),
    ("w2 asymmetric g64", 1, 1088, 6400),
    ("w4 narrow g64", 1, 6144, 1100),
)
"""Weights that backends walk over with few tokens held: the tall ones, and the widest, in several steps."""
_GEOMETRIES: tuple[tuple[tuple[int, ...], int, dict[str, object]], ...] = (
    ((2, 16, 9, 11), 24, {"kernel_size": 3, "padding": 1}),
    ((1, 32, 8, 8), 17, {"kernel_size": 1}),
    ((3, 8, 12, 7), 16, {"kernel_size": 3, "stride": 2, "padding": (1, 0)}),
    ((1, 12, 10, 10), 12, {"kernel_size": (3, 5), "padding": "same", "dilation": 2}),
)


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def _linear(
    name: str, pack: Packer, quantizer: Quantizer, shape: tuple[int, ...], n: int, full: bool
) -> tuple[PackedLayer, Tensor]:
    """Build a linear layer on an input [..., k]; `full` adds bias, smoothing and branch."""
    rng = _generator(name)
    k = shape[-1]
    x = torch.randn(shape, generator=rng)
    w = torch.randn(n, k, generator=rng) * k**-0.5
    if not full:
        return PackedLinear(pack(w), act=quantizer(x)), x
    smooth = torch.exp(0.3 * torch.randn(k, generator=rng))
    rank = min(_RANK, n, k)
    branch = LowRankBranch(
        torch.randn(rank, k, generator=rng) * k**-0.5, torch.randn(n, rank, generator=rng) * rank**-0.5
    )
    bias = torch.randn(n, generator=rng)
    act = quantizer(x / smooth)
    return PackedLinear(pack(w * smooth), bias=bias, act=act, smooth=smooth, branch=branch), x


def _conv(
    name: str,
    pack: Packer,
    quantizer: Quantizer,
    geometry: tuple[tuple[int, ...], int, dict[str, object]],
    full: bool,
) -> tuple[PackedLayer, Tensor]:
    """Build a convolution on an input [n, c, h, w] with so many output channels; `full` as above."""
    rng = _generator(name)
    shape, out, options = geometry
    x = torch.randn(shape, generator=rng)
    conv = nn.Conv2d(shape[1], out, bias=False, **options)  # type: ignore[arg-type]
    w = torch.randn(conv.weight.shape, generator=rng) * conv.weight[0].numel() ** -0.5
    if not full:
        return PackedConv2d(pack(w.flatten(1)), conv, act=quantizer(x)), x
    smooth = torch.exp(0.3 * torch.randn(shape[1], generator=rng))
    taps = w[0].numel()
    branch = None
    if conv.groups == 1:
        rank = min(_RANK, out, taps)
        branch = LowRankBranch(
            torch.randn(rank, taps, generator=rng) * taps**-0.5,
            torch.randn(out, rank, generator=rng) * rank**-0.5,
        )
    act = quantizer(x / smooth.view(-1, 1, 1))
    bias = torch.randn(out, generator=rng)
    matrix = (w * smooth.view(-1, 1, 1)).flatten(1)
    return PackedConv2d(pack(matrix), conv, bias=bias, act=act, smooth=smooth, branch=branch), x


def _linear_case(
    weight: str, inputs: str, pack: Packer, quantizer: Quantizer, shape: tuple[int, ...], n: int, full: bool
) -> Case:
    sizes = "x".join(map(str, shape))
    name = f"linear {weight}, {inputs}, {sizes} to {n}{', branch' if full else ''}"
    return Case(name, partial(_linear, name, pack, quantizer, shape, n, full))


def _linear_cases() -> list[Case]:
    """Every weight with every common kind of input; shapes and extras take turns."""
    found = []
    for i, (weight, pack) in enumerate(WEIGHTS.items()):
        for j, (inputs, quantizer) in enumerate(_LINEAR_INPUTS.items()):
            rows, k, n = _SHAPES[(i + 2 * j) % len(_SHAPES)]
            full = (i + j) % 2 == 0
            found.append(_linear_case(weight, inputs, pack, quantizer, (rows, k), n, full))
    pack = WEIGHTS["w4 narrow g64"]
    for i, (inputs, quantizer) in enumerate(_MORE_INPUTS.items()):
        rows, k, n = _SHAPES[i % len(_SHAPES)]
        found.append(_linear_case("w4 narrow g64", inputs, pack, quantizer, (rows, k), n, True))
    found.append(
        _linear_case("w4 narrow g64", "a4 g64", pack, _LINEAR_INPUTS["a4 g64"], (2, 65, 128), 200, True)
    )
    return found


def _few_row_cases() -> list[Case]:
    """Weight-only layers at few rows, where backends decode in the multiplication."""
    found = []
    for i, (weight, pack) in enumerate(WEIGHTS.items()):
        for j, (rows, k, n) in enumerate(_FEW_ROWS):
            if i % 2 == 0 or j == 0:
                full = (i + j) % 2 == 1
                found.append(_linear_case(weight, "a16", pack, _LINEAR_INPUTS["a16"], (rows, k), n, full))
    for i, (weight, rows, k, n) in enumerate(_WALKED):
        rest = WEIGHTS[weight], _LINEAR_INPUTS["a16"], (rows, k), n, i % 2 == 0
        found.append(_linear_case(weight, "a16", *rest))
    return found


def _scale_cases() -> list[Case]:
    """Groups with scales in two levels."""
    found = []
    grids: dict[int, Grid] = {4: "narrow", 3: "asymmetric", 2: "asymmetric"}
    formats: tuple[ScaleFormat, ...] = ("integer", "e8m0")
    for scales in formats:
        for bits, grid in grids.items():
            for i, (rows, k, n) in enumerate(_SHAPES):
                pack = partial(_two_level, bits=bits, grid=grid, scales=scales)
                quantizer = partial(_two_level_inputs, bits=4 if i % 2 else 8, scales=scales)
                inputs = f"a{4 if i % 2 else 8} {scales}"
                found.append(
                    _linear_case(f"w{bits} {scales} g64", inputs, pack, quantizer, (rows, k), n, i % 2 == 0)
                )
    return found


def _two_level(w: Tensor, *, bits: int, grid: Grid, scales: ScaleFormat) -> UniformWeight:
    return uniform_weight(w, bits, grid, 64, scales)


def _two_level_inputs(_x: Tensor, *, bits: int, scales: ScaleFormat) -> ActQuantizer:
    """Groups of 4 bits in two levels; 8 bits per token, which need none."""
    return dynamic_inputs(4, "group", scales=scales) if bits == 4 else dynamic_inputs(8, "token")


def _conv_cases() -> list[Case]:
    found = []
    kinds = (
        "w4 narrow g64",
        "w3 asymmetric g64",
        "w2 asymmetric g64",
        "nf4",
        "planes2",
        "rows 2/3/4",
        "nvfp4",
    )
    for i, weight in enumerate(kinds):
        for j, (inputs, quantizer) in enumerate(_CONV_INPUTS.items()):
            if (i + j) % 2 and i:
                continue
            geometry = _GEOMETRIES[(i + j) % len(_GEOMETRIES)]
            full = j % 2 == 0
            sizes = "x".join(map(str, geometry[0]))
            name = f"conv {weight}, {inputs}, {sizes} to {geometry[1]}{', branch' if full else ''}"
            found.append(Case(name, partial(_conv, name, WEIGHTS[weight], quantizer, geometry, full)))
    return found


CASES: tuple[Case, ...] = (*_linear_cases(), *_few_row_cases(), *_scale_cases(), *_conv_cases())
