"""Packed linear layers with one input as one layer: their inputs are divided and quantized once.

What each output channel holds does not change, so neither do values: rows of codes, scales, zero points and
biases are put under each other. Layers that were smoothed alike and whose branches share the down factor
(`harness.kernels.ties`) differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harness.kernels.branch import LowRankBranch
from harness.kernels.layers import PackedLinear
from harness.kernels.ties import same_tensor
from harness.kernels.weights import UniformWeight


def join_linear(layers: Sequence[nn.Module]) -> PackedLinear | None:
    """Return one layer whose outputs are those of `layers`, one after the other; None where that cannot be.

    Args:
        layers: modules that are given one input.

    Returns:
        A `PackedLinear`, if all are packed linear layers on a uniform grid of one kind, with equal smoothing
        vectors, equal dynamic quantizers of the input, and equal down factors of their branches.
    """
    packed = [layer for layer in layers if isinstance(layer, PackedLinear)]
    weights = [layer.weight for layer in packed if isinstance(layer.weight, UniformWeight)]
    if not weights or len(weights) != len(layers) or not all(_alike(packed[0], other) for other in packed):
        return None
    first, weight = packed[0], weights[0]
    joined = UniformWeight(
        sum(each.rows for each in weights), weight.cols, weight.bits, weight.grid, weight.group,
        weight.scale_format,
    )  # fmt: skip
    joined.packed = torch.cat([each.packed for each in weights])
    joined.scale = torch.cat([each.scale for each in weights])
    joined.zero = _stacked([each.zero for each in weights])
    joined.multiplier = _stacked([each.multiplier for each in weights])
    branch = None
    if first.branch is not None:
        up = torch.cat([layer.branch.up for layer in packed if layer.branch is not None])
        branch = LowRankBranch(first.branch.down, up)
    bias = _stacked([layer.bias for layer in packed])
    made = PackedLinear(joined, bias=bias, act=first.act, smooth=first.smooth, branch=branch)
    return made.eval()


def _alike(layer: PackedLinear, other: PackedLinear) -> bool:
    """Whether two layers on uniform grids can be one: per-row parameters, everything else the same."""
    mine, theirs = dict(layer.spec()), dict(other.spec())
    weights = [dict(spec.pop("weight")) for spec in (mine, theirs)]
    for weight in weights:
        weight.pop("rows", None)
    if mine != theirs or weights[0] != weights[1] or weights[0].get("group") == "tensor":
        return False
    if layer.act is not None and layer.act.mode != "dynamic":
        return False
    if layer.branch is not None and other.branch is not None:
        down = same_tensor(layer.branch.down, other.branch.down)
    else:
        down = layer.branch is None and other.branch is None
    return down and (layer.smooth is None or same_tensor(layer.smooth, other.smooth))


def _stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    held = [part for part in parts if part is not None]
    return torch.cat(held) if held else None
