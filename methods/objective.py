"""The output error of a layer on calibration samples: what every search here minimises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer

# Maps of a convolution are correlated inside: a few maps with many positions say little more than these.
MAX_MAPS = 8


class LayerSample:
    """A fixed random sample of a layer's input rows, and its float output.

    For a convolution a row is one unfolded patch; ranges of activations are still taken on whole maps.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, samples: Tensor, limit: int) -> None:
        """Take at most `limit` rows.

        Args:
            layer: the float layer.
            samples: float [tokens, in_features] or [images, channels, height, width].
            limit: rows kept.

        Raises:
            ValueError: there are no samples, or they do not fit the layer.
            TypeError: a grouped convolution, whose rows do not share their inputs.
        """
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            raise TypeError(f"a convolution of {layer.groups} groups has no single input matrix")
        width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        dims = 2 if isinstance(layer, nn.Linear) else 4
        if samples.dim() != dims or samples.shape[1] != width or len(samples) == 0:
            raise ValueError(f"samples of shape {tuple(samples.shape)} do not fit {layer}")
        self._conv = layer if isinstance(layer, nn.Conv2d) else None
        kept = limit if self._conv is None else MAX_MAPS
        self.raw = samples[_choose(len(samples), kept)].float()
        self._positions: Tensor | None = None
        if self._conv is not None:
            self._positions = _choose(self._unfold(self.raw[:, :1]).shape[0], limit)
        self.plain = self.rows()
        self.target = F.linear(self.plain, layer.weight.detach().float().flatten(1))

    def smoothed(self, smooth: Tensor | None) -> Tensor:
        """Return the raw samples divided by `smooth` per input channel."""
        if smooth is None:
            return self.raw
        shape = (1, -1) if self._conv is None else (1, -1, 1, 1)
        return self.raw / smooth.float().view(shape)

    def rows(self, smooth: Tensor | None = None, act: ActQuantizer | None = None) -> Tensor:
        """Return the input rows, smoothed and quantized as the packed layer would: float32 [n, cols]."""
        x = self.smoothed(smooth)
        if act is not None:
            x = act(x)
        return x if self._conv is None else self._unfold(x)[self._positions]

    def _unfold(self, x: Tensor) -> Tensor:
        conv = self._conv
        assert conv is not None
        patches = F.unfold(x, conv.kernel_size, conv.dilation, _padding(conv), conv.stride)
        return patches.transpose(1, 2).flatten(0, 1)


def row_errors(target: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """Squared output error of every output channel.

    Args:
        target: what should come out, [n, rows].
        inputs: what the quantized weight multiplies, [n, cols].
        weight: dequantized, [rows, cols].

    Returns:
        float32 [rows], summed over the n samples.
    """
    return (F.linear(inputs, weight) - target).square().sum(dim=0)


def _choose(length: int, limit: int) -> Tensor:
    """Return at most `limit` distinct indices below `length`, ascending, the same ones every time."""
    generator = torch.Generator().manual_seed(length)
    return torch.randperm(length, generator=generator)[:limit].sort().values


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    if isinstance(conv.padding, str):
        raise TypeError(f"padding {conv.padding!r} of a convolution is not supported")
    return (conv.padding[0], conv.padding[1])
