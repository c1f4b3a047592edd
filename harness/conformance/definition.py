"""What a packed layer means, in float64: the measure of every kernel.

Codes of inputs are those of the definition, chosen in float32 by the layer's own quantizer; everything after
is float64. No kernel is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.kernels.layers import PackedConv2d, PackedLayer, PackedLinear

DOUBLE = torch.float64


def layer_float64(layer: PackedLayer, x: Tensor) -> Tensor:
    """Return a packed layer's output in float64.

    Args:
        layer: linear or convolution.
        x: its input, any float dtype: [..., in], or [n, in, h, w] for a convolution.

    Raises:
        TypeError: the layer is neither a packed linear layer nor a packed convolution.
    """
    values = x.to(torch.float32)
    channels = (-1, 1, 1) if isinstance(layer, PackedConv2d) else (-1,)
    if layer.smooth is not None:
        values = values / layer.smooth.to(torch.float32).view(channels)
    rounded = (values if layer.act is None else layer.act(values, layer.smooth)).to(DOUBLE)
    weight = layer.weight.dequantize().to(DOUBLE)
    bias = None if layer.bias is None else layer.bias.to(DOUBLE)
    if isinstance(layer, PackedLinear):
        y = F.linear(rounded, weight, bias)
        if layer.branch is not None:
            low = F.linear(values.to(DOUBLE), layer.branch.down.to(DOUBLE))
            y += F.linear(low, layer.branch.up.to(DOUBLE))
        return y
    if not isinstance(layer, PackedConv2d):
        raise TypeError(f"{type(layer).__name__} is no packed layer")
    y = _convolve(layer, rounded, weight, bias)
    if layer.branch is not None:
        low = _convolve(layer, values.to(DOUBLE), layer.branch.down.to(DOUBLE), None)
        y += F.conv2d(low, layer.branch.up.to(DOUBLE)[:, :, None, None])
    return y


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the Frobenius norm of the difference over that of `expected`; NaN in either stays NaN."""
    a, b = found.to(DOUBLE), expected.to(DOUBLE)
    norm = float(torch.linalg.vector_norm(b))
    return float(torch.linalg.vector_norm(a - b)) / norm if norm else float(torch.linalg.vector_norm(a))


def _convolve(layer: PackedConv2d, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    kernel = matrix.view(-1, *layer.shape[1:])
    return F.conv2d(x, kernel, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
