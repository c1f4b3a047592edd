"""Rounding of all layers of a block, learned together on the block's output (BRECQ's reconstruction).

The block sees the inputs that the layers quantized before it leave, and is to make of them what it made
before any of its own layers was rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.blocks import Call, joined
from harness.methods.contract import LayerTarget, QuantizeJob
from harness.methods.layers import activation_quantizer, weight_matrix
from harness.methods.rounding import UniformRows
from harness.methods.soft_rounding import (
    annealed,
    decoded,
    down_and_free,
    hardened,
    soft_rounding,
    spread,
    starting_values,
)
from harness.methods.training.grids import StraightThrough


class RoundingSettings(Protocol):
    """What learning takes from a method's config."""

    @property
    def steps(self) -> int:
        """Adam steps."""

    @property
    def rate(self) -> float:
        """Learning rate."""

    @property
    def weight(self) -> float:
        """Of the regulariser."""


class SoftLayer(nn.Module):
    """A target layer whose rounding is being learned.

    Attributes:
        v: float32 [rows, cols], what is learned.
        soft: whether weights may lie between two levels.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, target: LayerTarget, rows: UniformRows) -> None:
        """Start where h(v) says how far each weight lies above its lower level."""
        super().__init__()
        self.layer, self.rows, self.soft = layer, rows, True
        act = activation_quantizer(target)
        self.act = None if act is None else StraightThrough(act)
        weight = weight_matrix(layer)
        self._floor, self._free = down_and_free(weight, rows)
        self._down = decoded(rows, self._floor)
        self._scale = spread(rows)
        self.v = nn.Parameter(starting_values(weight, rows, self._floor))

    def matrix(self) -> Tensor:
        """Return the weight between the levels: float32 [rows, cols]."""
        return self._down + self._scale * soft_level(self.v) * self._free

    def hard(self) -> UniformRows:
        """Return the rounding that v has come to."""
        return hardened(self.rows, self._floor, self._free, self.v.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the packed layer would, with the learned weight where it is soft."""
        values = x.float() if self.act is None else self.act(x.float())
        matrix = self.matrix() if self.soft else self.rows.values()
        layer = self.layer
        bias = None if layer.bias is None else layer.bias.detach().float()
        if isinstance(layer, nn.Linear):
            return F.linear(values, matrix, bias).to(x.dtype)
        kernel = matrix.view(-1, *layer.weight.shape[1:])
        y = F.conv2d(values, kernel, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        return y.to(x.dtype)


def soft_level(v: Tensor) -> Tensor:
    """Return the rectified sigmoid; autograd finds the slope that `soft_rounding` writes out."""
    return soft_rounding(v)[0]


def learn_block(
    job: QuantizeJob,
    block: nn.Module,
    targets: Sequence[LayerTarget],
    starts: Mapping[str, UniformRows],
    calls: Sequence[Call],
    settings: RoundingSettings,
) -> dict[str, UniformRows]:
    """Learn the rounding of a block's layers, which are float again afterwards.

    Args:
        job: the quantization; its denoiser holds the block.
        block: the block.
        targets: its layers.
        starts: their grids with the nearest codes, by name.
        calls: what the block is handed, and what it should return.
        settings: steps, rate, weight of the regulariser.

    Returns:
        by name the same grids with other codes: the nearest ones where the block's error is no lower.
    """
    layers = {t.name: SoftLayer(job.layer(t.name), t, starts[t.name]) for t in targets}
    floats = {name: job.layer(name) for name in layers}
    for name, layer in layers.items():
        job.replace(name, layer)
    try:
        start = _hard_error(block, layers, starts, calls)
        with torch.enable_grad():
            _descend(block, list(layers.values()), calls, max(start, 1e-30), settings)
        learned = {name: layer.hard() for name, layer in layers.items()}
        better = _hard_error(block, layers, learned, calls) < start
    finally:
        for name, exact in floats.items():
            job.replace(name, exact)
    return learned if better else dict(starts)


def _descend(
    block: nn.Module,
    layers: Sequence[SoftLayer],
    calls: Sequence[Call],
    unit: float,
    settings: RoundingSettings,
) -> None:
    """Adam on the error in units of that of the nearest rounding, times the number of output channels."""
    values = [layer.v for layer in layers]
    channels = sum(len(v) for v in values)
    optimiser = torch.optim.Adam(values, lr=settings.rate)
    for layer in layers:
        layer.soft = True
    for step in range(settings.steps):
        call = calls[step % len(calls)]
        loss = channels * _error(block, call) / unit
        beta = annealed(step, settings.steps)
        if beta is not None:
            rough = (soft_level(v).mul(2).sub(1).abs().pow(beta) for v in values)
            loss = loss + settings.weight * sum((1 - r).sum() for r in rough)
        for v, gradient in zip(values, torch.autograd.grad(loss, values), strict=True):
            v.grad = gradient
        optimiser.step()


def _error(block: nn.Module, call: Call) -> Tensor:
    """Mean squared error of the block's output."""
    return (joined(block(*call.args, **call.kwargs)) - call.wanted).float().square().mean()


@torch.no_grad()
def _hard_error(
    block: nn.Module,
    layers: Mapping[str, SoftLayer],
    rounded: Mapping[str, UniformRows],
    calls: Sequence[Call],
) -> float:
    """Mean squared error of the block with rounded weights, over all calls."""
    for name, layer in layers.items():
        layer.rows, layer.soft = rounded[name], False
    return sum(float(_error(block, call)) for call in calls) / len(calls)
