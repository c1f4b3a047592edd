"""Between a float layer and its packed form: the weight as a matrix, activation quantizers, assembly."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.layers import PackedConv2d, PackedLinear
from harness.kernels.quantizers.scales import ScaleFormat
from harness.kernels.weights import PackedWeight
from harness.methods.contract import CalibrationStream, LayerTarget

ActMode = Literal["dynamic", "static", "per_step"]


def weight_matrix(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """Return a float32 copy of the weight as [rows, cols]: one row per output, cols = channels * taps."""
    return layer.weight.detach().float().flatten(1).clone()


def kernel_taps(layer: nn.Linear | nn.Conv2d) -> int:
    """Kernel positions per input channel: k*k of a convolution, 1 of a linear layer."""
    return layer.weight[0, 0].numel()


def per_column(channel: Tensor, taps: int) -> Tensor:
    """Spread a value per input channel over the columns of the weight: [channels] to [channels * taps]."""
    return channel.float().repeat_interleave(taps)


def activation_quantizer(
    target: LayerTarget,
    *,
    symmetric: bool = False,
    group: int | None = None,
    scale_format: ScaleFormat = "float",
) -> ActQuantizer | None:
    """Dynamic activation quantizer of a target; None at 16 bits.

    Linear: per token, or per token and group of `group` channels. Conv2d: per sample.

    Args:
        target: its `kind` and `a_bits` decide.
        symmetric: whether the grid is symmetric about zero.
        group: channels per group of a linear input; None for one range per token.
        scale_format: of the groups' scales; without groups there is nothing to format.
    """
    if target.a_bits >= 16:
        return None
    if target.kind == "conv2d":
        return ActQuantizer(target.a_bits, "tensor", "dynamic", symmetric)
    if group is None:
        return ActQuantizer(target.a_bits, "token", "dynamic", symmetric)
    return ActQuantizer(target.a_bits, "group", "dynamic", symmetric, group=group, scale_format=scale_format)


def calibrated_quantizer(
    target: LayerTarget, mode: ActMode, stream: CalibrationStream, smooth: Tensor | None = None
) -> ActQuantizer | None:
    """Per-tensor activation quantizer with ranges fixed by calibration; None at 16 bits.

    Args:
        target: the layer.
        mode: `static` (one range), `per_step` (one per sampling step); `dynamic` falls back on
            `activation_quantizer`.
        stream: recorded input statistics.
        smooth: [channels], what the input is divided by first. The recorded ranges are those of the plain
            input, so they are scaled by the change that smoothing makes to the range of the samples.
    """
    if target.a_bits >= 16 or mode == "dynamic":
        return activation_quantizer(target)
    ranges = stream.step_range(target.name).float()
    if smooth is not None:
        ranges = ranges * _range_change(stream.samples(target.name), smooth, target.kind)
    if mode == "static":
        ranges = torch.stack([ranges[:, 0].amin(), ranges[:, 1].amax()])[None]
    return ActQuantizer(target.a_bits, "tensor", mode, range=ranges)


def packed_layer(
    layer: nn.Linear | nn.Conv2d,
    weight: PackedWeight,
    act: ActQuantizer | None,
    smooth: Tensor | None = None,
    branch: LowRankBranch | None = None,
) -> nn.Module:
    """Assemble the packed layer that takes the place of `layer`."""
    if isinstance(layer, nn.Linear):
        return PackedLinear.like(layer, weight, act=act, smooth=smooth, branch=branch)
    return PackedConv2d.like(layer, weight, act=act, smooth=smooth, branch=branch)


def _range_change(samples: Tensor, smooth: Tensor, kind: str) -> Tensor:
    """Ratio of the smoothed to the plain (lowest, highest) value of the samples: [2]."""
    shape = (1, -1) if kind == "linear" else (1, -1, 1, 1)
    smoothed = samples / smooth.float().view(shape)
    before = torch.stack([samples.amin(), samples.amax()])
    after = torch.stack([smoothed.amin(), smoothed.amax()])
    same_sign = before * after > 0
    return torch.where(same_sign, after / torch.where(same_sign, before, 1.0), 1.0)
