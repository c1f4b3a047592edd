"""The roads on which codes are multiplied with units, `int8` and `fp8`: quantize, expand, one product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from harness.kernels.activations import ActQuantizer
from harness.kernels.expansion import units_weight
from harness.kernels.stored import held
from harness.kernels.weights import UniformWeight

if TYPE_CHECKING:
    from harness.kernels.dispatch import Plan
    from harness.kernels.layers import PackedLinear


class Quantized(NamedTuple):
    """Tokens as codes, and their projection beside them.

    Attributes:
        codes: int8 or float8_e4m3fn [tokens, cols], more columns with a branch among them.
        row_scale: what one unit of each token is worth, float32 [tokens] or [tokens, 1].
        zero: what to take off each token's codes, float32 [tokens], or None.
        projected: the down-projection [tokens, rank or more], or None.
        gains: of a branch among the codes, see `harness.kernels.triton.ops.quantize_projected`, or None.
    """

    codes: Tensor
    row_scale: Tensor
    zero: Tensor | None = None
    projected: Tensor | None = None
    gains: Tensor | None = None


def product(layer: PackedLinear, plan: Plan, tokens: Tensor, x: Tensor) -> Tensor:
    """Multiply codes with units: a branch is among both, or added to the product."""
    from harness.kernels.triton import ops

    y: Tensor = ops.scaled_linear(*factors(layer, plan, tokens, x))
    return y


def factors(
    layer: PackedLinear,
    plan: Plan,
    tokens: Tensor,
    x: Tensor,
    ahead: Tensor | None = None,
    *,
    gelu: bool = False,
) -> tuple[Any, ...]:
    """Quantize tokens and expand the weight: the arguments of `harness.kernels.triton.ops.scaled_linear`."""
    stored, smooth = held(layer, "bias", "smooth")
    down, up = (None, None) if plan.branch is None else held(plan.branch, "down", "up")
    given, dtype = quantized(plan, tokens, x, smooth, down, ahead, gelu=gelu), x.dtype
    if plan.float8 is not None:
        assert isinstance(plan.weight, UniformWeight)
        units, col_scale, bias, up = plan.float8.expand(plan.weight, dtype, stored, up, given.gains)
    else:
        expand = units_weight(plan.weight, plan.kind)
        assert expand is not None
        bias, (units, col_scale) = stored, expand()
    return (
        given.codes, units, given.row_scale, col_scale, given.zero, given.projected,
        None if given.projected is None else up, None if stored is None else bias, dtype,
    )  # fmt: skip


def quantized(
    plan: Plan,
    tokens: Tensor,
    x: Tensor,
    smooth: Tensor | None,
    down: Tensor | None,
    ahead: Tensor | None,
    *,
    gelu: bool,
) -> Quantized:
    """Quantize tokens, and project them where the layer has a branch; `factors` has the arguments."""
    from harness.kernels.triton import ops

    act = plan.act
    assert act is not None
    if down is not None and act.scale_format != "float":
        codes, row_scale, found = ops.quantize_projected(
            tokens, act.bits, plan.grid, act.group, plan.largest_k, smooth, down, plan.append, ahead, gelu
        )
        if plan.append:
            return Quantized(codes, row_scale, gains=found)
        return Quantized(codes, row_scale, projected=found)
    lo, hi = given_ranges(act, x, smooth)
    codes, row_scale, zero = ops.quantize_tokens(
        tokens, act.bits, plan.grid, act.group, plan.largest_k, smooth, lo, hi
    )
    projected = None if down is None else ops.project(tokens, down, smooth)
    return Quantized(codes, row_scale, zero if zero.numel() else None, projected)


def code_type(act: ActQuantizer) -> torch.dtype | None:
    """Return what the codes of an activation quantizer can be held in as one factor of a row; None if not."""
    if act.shift or act.format != "integer":
        return None
    if act.granularity == "group":
        return {"float": None, "integer": torch.int8, "e8m0": torch.float8_e4m3fn}[act.scale_format]
    return torch.int8


def kernel_grid(act: ActQuantizer) -> tuple[str, int]:
    """Return the kernel's name of a grid, and the largest multiplier of its groups."""
    if act.scale_format != "float":
        return act.scale_format, act.largest_multiplier
    return ("symmetric" if act.symmetric else "asymmetric"), 1


def given_ranges(act: ActQuantizer, x: Tensor, smooth: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return ranges that do not come from the token itself: float32 [ranges], each for as many tokens."""
    if act.granularity != "tensor":
        return None, None
    if act.range is not None:
        lo, hi = act.stored_range()
        return lo.reshape(1), hi.reshape(1)
    values = x.to(torch.float32) if smooth is None else x.to(torch.float32) / smooth.to(torch.float32)
    values = values.reshape(len(x), -1) if x.dim() > 1 else values[None]
    return values.amin(dim=1), values.amax(dim=1)
