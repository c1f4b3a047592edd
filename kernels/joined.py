"""Packed linear layers with one input as one layer: their inputs are divided and quantized once.

What each output channel holds does not change, so neither do values: rows of codes, scales, zero points and
biases are put under each other, and outputs come out apart. Layers that were smoothed alike differ in their
branches alone. Those that share the down factor (`harness.kernels.ties`) share its directions; other branches
stand beside each other, and an output's up factor is zero for directions that are not its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.kernels import dispatch
from harness.kernels.branch import LowRankBranch
from harness.kernels.dispatch import MOST_APPENDED
from harness.kernels.layers import PackedLinear
from harness.kernels.ties import same_tensor
from harness.kernels.weights import UniformWeight


class Pieces:
    """The outputs of joined layers, a tensor each, for code that cuts the output of one layer with `chunk`.

    Attributes:
        tensors: [..., out of one layer] each; contiguous unless compiled.
    """

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        """Hold tensors that differ in their last axis alone."""
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
    """Packed layers of one input, whose outputs come apart.

    Attributes:
        sizes: the outputs of each.
    """

    def __init__(self, weight: UniformWeight, sizes: Sequence[int], **parts: Any) -> None:
        """Put the pieces together as `PackedLinear` does."""
        super().__init__(weight, **parts)
        self.sizes = list(sizes)

    def forward(self, x: Tensor) -> Pieces:  # type: ignore[override]
        """Apply the layers: [..., in_features] -> [..., out of one layer] each.

        A compiler is given slices of all outputs side by side, which it lets be read by what comes next. What
        is run as it is written would copy slices first, and gets tensors of their own.
        """
        if torch.compiler.is_compiling():
            return Pieces(torch.split(super().forward(x), self.sizes, dim=-1))
        road, plan = self.take(x)
        if plan is None:
            return Pieces(dispatch.contiguous_pieces(self.reference(x), self.sizes))
        return Pieces(dispatch.linear_pieces(self, x, road, plan, self.sizes))


class FirstOfTwo(nn.Module):
    """Runs joined layers where the last of them stood, and keeps what the others give for `SecondOfTwo`.

    For layers of one input in two modules of a network: the first place that is given the input computes for
    both. Between the two calls the input is not to be changed in place.

    Attributes:
        joined: the layers.
        kept: of the last call the input, whether gradients were asked for, and the outputs of the others,
            until they are taken.
    """

    def __init__(self, joined: JoinedLinear) -> None:
        """Run `joined`."""
        super().__init__()
        self.joined = joined
        self.kept: tuple[Tensor, bool, Pieces] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies are made of: nothing of a call."""
        return {**self.__dict__, "kept": None}

    def forward(self, x: Tensor) -> Tensor:
        """Apply the last layer: [..., in_features] -> [..., its out]."""
        self.kept = None  # which a call that ended in between may have left
        pieces: Pieces = self.joined(x)
        *others, last = pieces.tensors
        self.kept = x, torch.is_grad_enabled(), Pieces(tuple(others))
        return last

    def take(self, x: Tensor) -> Pieces:
        """Return the outputs of the other layers for an input, which was the last one or is computed with."""
        kept, self.kept = self.kept, None
        if kept is not None and kept[0] is x and kept[1] == torch.is_grad_enabled():
            return kept[2]
        pieces: Pieces = self.joined(x)
        return Pieces(pieces.tensors[:-1])


class SecondOfTwo(nn.Module):
    """Stands where other modules of a `FirstOfTwo` stood that are given the same tensor after it."""

    def __init__(self, first: FirstOfTwo) -> None:
        """Take from `first`."""
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Pieces:
        """Apply all layers but the last: [..., in_features] -> [..., out of one layer] each."""
        return self.first.take(x)


def join_linear(layers: Sequence[nn.Module]) -> JoinedLinear | None:
    """Return one layer whose outputs are those of `layers`, one after the other; None where that cannot be.

    Args:
        layers: modules that are given one input.

    Returns:
        A `JoinedLinear`, if all are packed linear layers on a uniform grid of one kind, with equal smoothing
        vectors, equal dynamic quantizers of the input, and either no branches or branches of together no more
        directions than one product takes (`dispatch.MOST_APPENDED`), or one branch's.
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
    branches = [layer.branch for layer in packed if layer.branch is not None]
    branch = _beside(branches) if branches else None
    if branch is not None and branch.rank > max(MOST_APPENDED, branches[0].rank):
        return None
    bias = _stacked([layer.bias for layer in packed])
    sizes = [each.rows for each in weights]
    made = JoinedLinear(joined, sizes, bias=bias, act=first.act, smooth=first.smooth, branch=branch)
    return made.eval()


def _alike(layer: PackedLinear, other: PackedLinear) -> bool:
    """Whether two layers on uniform grids can be one: per-row parameters, everything else the same."""
    mine, theirs = dict(layer.spec()), dict(other.spec())
    weights = [dict(spec.pop("weight")) for spec in (mine, theirs)]
    for weight in weights:
        weight.pop("rows")
    ranks = mine.pop("branch"), theirs.pop("branch")
    if mine != theirs or weights[0] != weights[1] or weights[0].get("group") == "tensor":
        return False
    if layer.act is not None and layer.act.mode != "dynamic":
        return False
    if (ranks[0] == 0) != (ranks[1] == 0):
        return False
    return layer.smooth is None or same_tensor(layer.smooth, other.smooth)


def _beside(branches: Sequence[LowRankBranch]) -> LowRankBranch:
    """Return one branch for the outputs of all, one after the other: equal down factors are there once."""
    downs: list[Tensor] = []
    places = []
    for branch in branches:
        found = [place for place, down in enumerate(downs) if same_tensor(down, branch.down)]
        places.append(found[0] if found else len(downs))
        if not found:
            downs.append(branch.down)
    if len(downs) == 1:
        return LowRankBranch(downs[0], torch.cat([branch.up for branch in branches]))
    rank = sum(len(down) for down in downs)
    ups = []
    for branch, place in zip(branches, places, strict=True):
        before = sum(len(down) for down in downs[:place])
        ups.append(F.pad(branch.up, (before, rank - before - branch.rank)))
    return LowRankBranch(torch.cat(downs), torch.cat(ups))


def _stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    held = [part for part in parts if part is not None]
    return torch.cat(held) if held else None
