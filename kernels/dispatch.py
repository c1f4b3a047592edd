"""Which road a packed layer takes on which device, and the roads that are not the reference.

| road | what runs | layers |
|---|---|---|
| `reference` | the float formula in torch (`harness.kernels.layers`) | all; the definition |
| `int8` | codes and units as int8, one integer GEMM, scales and branch in its epilogue | linear; a scale \
per row, or groups with integer scales |
| `fp8` | codes and units as float8 e4m3, exact for power-of-two scales, one product of the vendor's \
library where torch has it (else this package's), the branch in it or after it | linear; groups with `e8m0` \
scales |
| `gemv` | codes decoded where they are multiplied | linear, weight-only, few tokens |
| `expand` | the weight expanded to the type of x, then the vendor's GEMM or convolution | all others |

No road quantizes anything anew: all read the packed codes and scales the layer holds, and round activations
to the codes the reference rounds to, but for ties decided by the last bit of a division. `int8` adds the
products of codes exactly; float8 sums in the tensor cores keep about 14 bits.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.kernels.activations import ActQuantizer
from harness.kernels.expansion import (
    expandable,
    few_token_weight,
    float8_codes,
    float_weight,
    units_weight,
)

if TYPE_CHECKING:
    from harness.kernels.layers import PackedConv2d, PackedLayer, PackedLinear

Backend = Literal["auto", "reference", "triton"]
Road = Literal["reference", "int8", "fp8", "gemv", "expand"]
FEW_TOKENS = 16
"""Tokens up to which decoding in the multiplication was measured faster than expanding first."""
MOST_APPENDED = 64
"""Largest rank of a branch that becomes columns of a float8 product, four for each direction."""
OLDEST = (8, 0)
OLDEST_FP8 = (8, 9)

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_chosen: dict[str, Backend] = {"backend": "auto"}


def set_backend(backend: Backend) -> None:
    """Let every packed layer of the process run on `backend`: `auto` is Triton on a device that has it."""
    if backend not in get_args(Backend):
        raise ValueError(f"unknown backend {backend!r}; valid: {', '.join(get_args(Backend))}")
    _chosen["backend"] = backend


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Run the block with `set_backend(backend)`."""
    before = _chosen["backend"]
    set_backend(backend)
    try:
        yield
    finally:
        set_backend(before)


def triton_runs_on(device: torch.device) -> bool:
    """Whether the kernels can run on a device (on a CPU: in Triton's interpreter)."""
    if not HAS_TRITON:
        return False
    return _at_least(device.index or 0, *OLDEST) if device.type == "cuda" else INTERPRETED


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _at_least(index: int, major: int, minor: int) -> bool:
    """Whether a CUDA device has a compute capability; torch 2.11 compiles no comparison of its tuple."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability(index) >= (major, minor)


def road_of(layer: PackedLayer, x: Tensor) -> Road:
    """Return the road a layer takes for an input.

    Training always takes the reference: the kernels have no gradients.
    """
    backend = _chosen["backend"]
    if backend == "reference" or (backend == "auto" and x.device.type != "cuda") or not x.numel():
        return "reference"
    trained = torch.is_grad_enabled() and x.requires_grad
    if trained or not triton_runs_on(x.device) or not expandable(layer.weight):
        return "reference"
    if layer.kind != "linear":
        return "expand"
    return _linear_road(layer, x)


def _linear_road(layer: PackedLayer, x: Tensor) -> Road:
    if layer.act is None:
        few = x.dtype in {torch.bfloat16, torch.float16} and x.numel() // x.shape[-1] <= FEW_TOKENS
        return "gemv" if few and few_token_weight(layer.weight) is not None else "expand"
    kind = _code_type(layer.act)
    if kind is None or units_weight(layer.weight, kind) is None:
        return "expand"
    if kind == torch.int8:
        return "int8"
    return "fp8" if _has_fp8(x.device) else "expand"


def linear(layer: PackedLinear, x: Tensor, road: Road) -> Tensor:
    """Run a linear layer on a road other than `reference`: [..., in] -> [..., out] in the dtype of `x`."""
    tokens = x.reshape(-1, x.shape[-1])
    tokens = tokens if tokens.stride(-1) == 1 else tokens.contiguous()
    if road == "fp8" and float8_codes(layer.weight) is not None:
        y = _float8_linear(layer, tokens)
    elif road in {"int8", "fp8"}:
        y = _units_linear(layer, tokens, x)
    elif road == "gemv":
        y = _few_tokens(layer, tokens)
    else:
        y = _expanded_linear(layer, x).reshape(len(tokens), -1)
    return y.view(*x.shape[:-1], layer.out_features)


def conv2d(layer: PackedConv2d, x: Tensor) -> Tensor:
    """Run a convolution on the `expand` road: [n, in, h, w] -> [n, out, h', w'] in the dtype of `x`."""
    values, quantized = _inputs(layer, x, layer.smooth.view(-1, 1, 1) if layer.smooth is not None else None)
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    y = layer.convolve(quantized, float_weight(layer.weight, x.dtype), bias)
    if layer.branch is not None:
        down = layer.convolve(values, layer.branch.down.to(x.dtype), None)
        y = y + F.conv2d(down, layer.branch.up.to(x.dtype)[:, :, None, None])
    return y


def _units_linear(layer: PackedLinear, tokens: Tensor, x: Tensor) -> Tensor:
    from harness.kernels.triton import ops

    act = layer.act
    assert act is not None
    kind = _code_type(act)
    assert kind is not None
    found = units_weight(layer.weight, kind)
    assert found is not None
    units, col_scale = found()
    grid, largest_k = _grid(act)
    branch = layer.branch
    zero: Tensor | None = None
    if branch is not None and act.scale_format != "float":
        codes, row_scale, projected = ops.quantize_projected(
            tokens, act.bits, grid, act.group, largest_k, layer.smooth, branch.down, False
        )
    else:
        lo, hi = _given(act, x, layer.smooth)
        codes, row_scale, empty = ops.quantize_tokens(
            tokens, act.bits, grid, act.group, largest_k, layer.smooth, lo, hi
        )
        zero = empty if empty.numel() else None
        projected = None if branch is None else ops.project(tokens, branch.down, layer.smooth)
    up = None if branch is None else branch.up
    y: Tensor = ops.scaled_linear(
        codes, units, row_scale, col_scale, zero, projected, up, layer.bias, x.dtype
    )
    return y


def _float8_linear(layer: PackedLinear, tokens: Tensor) -> Tensor:
    """Run a layer on float8: the branch is a part of the product, or added to it."""
    from harness.kernels.triton import ops

    act, branch, weight = layer.act, layer.branch, float8_codes(layer.weight)
    assert act is not None
    assert weight is not None
    grid, largest_k = _grid(act)
    gains: Tensor | None = None
    projected: Tensor | None = None
    if branch is None:
        codes, row_scale, _ = ops.quantize_tokens(
            tokens, act.bits, grid, act.group, largest_k, layer.smooth, None, None
        )
    else:
        append = appends_branch(layer, tokens)
        codes, row_scale, found = ops.quantize_projected(
            tokens, act.bits, grid, act.group, largest_k, layer.smooth, branch.down, append
        )
        gains, projected = (found, None) if append else (None, found)
    units, col_scale, bias, up = weight.expand(
        tokens.dtype, layer.bias, None if branch is None else branch.up, gains
    )
    y: Tensor = ops.scaled_linear(
        codes, units, row_scale, col_scale, None, projected, None if projected is None else up,
        None if layer.bias is None else bias, tokens.dtype,
    )  # fmt: skip
    return y


def appends_branch(layer: PackedLinear, tokens: Tensor) -> bool:
    """Whether the branch becomes further columns of a float8 product, for the vendor's product to do.

    That costs the product 4 * rank columns, less than reading and writing the output once more to add it.
    """
    if layer.branch is None or tokens.dtype != torch.bfloat16 or tokens.device.type != "cuda":
        return False
    return layer.branch.rank <= MOST_APPENDED


def _few_tokens(layer: PackedLinear, tokens: Tensor) -> Tensor:
    from harness.kernels.triton import ops

    values = tokens if layer.smooth is None else tokens / layer.smooth.to(tokens.dtype)
    weight = few_token_weight(layer.weight)
    assert weight is not None
    y: Tensor = ops.gemv(
        values.contiguous(), weight.packed, weight.scale, weight.bits, weight.group, weight.zero,
        weight.fixed_offset, layer.bias,
    )  # fmt: skip
    return y if layer.branch is None else y + _branch(layer, values)


def _expanded_linear(layer: PackedLinear, x: Tensor) -> Tensor:
    values, quantized = _inputs(layer, x, layer.smooth)
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    y = F.linear(quantized, float_weight(layer.weight, x.dtype), bias)
    return y if layer.branch is None else y + _branch(layer, values)


def _branch(layer: PackedLayer, values: Tensor) -> Tensor:
    assert layer.branch is not None
    down, up = layer.branch.down.to(values.dtype), layer.branch.up.to(values.dtype)
    return F.linear(F.linear(values, down), up)


def _inputs(layer: PackedLayer, x: Tensor, smooth: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the smoothed input and what the activation quantizer makes of it, in the dtype of `x`."""
    if smooth is None and layer.act is None:
        return x, x
    values = x.to(torch.float32)
    if smooth is not None:
        values = values / smooth.to(torch.float32)
    quantized = values if layer.act is None else layer.act(values, layer.smooth)
    return values.to(x.dtype), quantized.to(x.dtype)


def _code_type(act: ActQuantizer) -> torch.dtype | None:
    """Return what the codes of an activation quantizer can be held in as one factor of a row; None if not."""
    if act.shift or act.format != "integer":
        return None
    if act.granularity == "group":
        return {"float": None, "integer": torch.int8, "e8m0": torch.float8_e4m3fn}[act.scale_format]
    return torch.int8


def _grid(act: ActQuantizer) -> tuple[str, int]:
    """Return the kernel's name of a grid, and the largest multiplier of its groups."""
    if act.scale_format != "float":
        return act.scale_format, act.largest_multiplier
    return ("symmetric" if act.symmetric else "asymmetric"), 1


def _given(act: ActQuantizer, x: Tensor, smooth: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return ranges that do not come from the token itself: float32 [ranges], each for as many tokens."""
    if act.granularity != "tensor":
        return None, None
    if act.range is not None:
        lo, hi = act.stored_range()
        return lo.reshape(1), hi.reshape(1)
    values = x.to(torch.float32) if smooth is None else x.to(torch.float32) / smooth.to(torch.float32)
    values = values.reshape(len(x), -1) if x.dim() > 1 else values[None]
    return values.amin(dim=1), values.amax(dim=1)


def _has_fp8(device: torch.device) -> bool:
    return device.type != "cuda" or _at_least(device.index or 0, *OLDEST_FP8)
