"""Packed linear layers with one input as one layer: their inputs are divided and quantized once.

What each output channel holds does not change, so neither do values: rows of codes, scales, zero points and
biases are put under each other, and outputs come out apart. Layers that were smoothed alike and whose
branches share the down factor (`harness.kernels.ties`) differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.kernels import dispatch
from harness.kernels.branch import LowRankBranch
from harness.kernels.layers import PackedLinear
from harness.kernels.ties import same_tensor
from harness.kernels.weights import UniformWeight


class Pieces:
    """The outputs of joined layers, a tensor each, for code that cuts the output of one layer with `chunk`.

    Attributes:
        tensors: [..., out of one layer] each, contiguous.
    """

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        """Hold tensors of one shape."""
        self.tensors = tensors

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
        """Return the tensors, as `Tensor.chunk` returns slices of all of them side by side.

        Raises:
            ValueError: a cut elsewhere than between the layers.
        """
        if chunks != len(self.tensors) or dim not in {-1, self.tensors[0].dim() - 1}:
            raise ValueError(f"outputs of {len(self.tensors)} layers in {chunks} chunks along axis {dim}")
        return self.tensors


class JoinedLinear(PackedLinear):
    """Packed layers of one input and as many outputs each, whose output is cut apart with `chunk`.

    Attributes:
        pieces: how many layers it was made of.
    """

    def __init__(self, weight: UniformWeight, pieces: int, **parts: Any) -> None:
        """Put the pieces together as `PackedLinear` does."""
        super().__init__(weight, **parts)
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor | Pieces:  # type: ignore[override]
        """Apply the layers: [..., in_features] -> something whose `chunk(pieces, dim=-1)` is their outputs.

        A compiler is given the outputs side by side: what comes next it lets read slices. What is run as it
        is written would copy slices first.
        """
        if torch.compiler.is_compiling():
            return super().forward(x)
        road, plan = self.take(x)
        if plan is None:
            return Pieces(dispatch.contiguous_pieces(self.reference(x), self.pieces))
        return Pieces(dispatch.linear_pieces(self, x, road, plan, self.pieces))


def join_linear(layers: Sequence[nn.Module]) -> JoinedLinear | None:
    """Return one layer whose outputs are those of `layers`, one after the other; None where that cannot be.

    Args:
        layers: modules that are given one input.

    Returns:
        A `JoinedLinear`, if all are packed linear layers on a uniform grid of one kind, with as many outputs,
        equal smoothing vectors, equal dynamic quantizers of the input, and equal down factors of their
        branches.
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
    made = JoinedLinear(joined, len(layers), bias=bias, act=first.act, smooth=first.smooth, branch=branch)
    return made.eval()


def _alike(layer: PackedLinear, other: PackedLinear) -> bool:
    """Whether two layers on uniform grids can be one: per-row parameters, everything else the same."""
    spec = layer.spec()
    if spec != other.spec() or spec["weight"].get("group") == "tensor":
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
