"""The output error of a layer on calibration samples: what every search here minimises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer

# Positions of one map are correlated: more maps than these say little more.
MAX_MAPS = 8


class LayerSample:
    """A fixed random sample of a layer's input rows, and its float output on them.

    For a convolution a row is one unfolded patch; ranges of activations are still taken on whole maps.

    Attributes:
        plain: the sampled rows as they are, float32 [n, cols].
        target: what the float layer makes of them, without the bias, float32 [n, rows].
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
        self._patches: _Patches | None = None
        if isinstance(layer, nn.Conv2d):
            self._raw = samples[_choose(len(samples), MAX_MAPS)].float()
            self._patches = _Patches(layer, self._raw.shape, limit)
        else:
            self._raw = samples[_choose(len(samples), limit)].float()
        self.plain = self.rows()
        self.target = F.linear(self.plain, layer.weight.detach().float().flatten(1))

    def rows(self, smooth: Tensor | None = None, act: ActQuantizer | None = None) -> Tensor:
        """Return the input rows, smoothed and quantized as the packed layer would: float32 [n, cols]."""
        x = self._raw
        if smooth is not None:
            x = x / smooth.float().view(1, -1, *[1] * (x.dim() - 2))
        if act is not None:
            x = act(x, smooth)
        return x if self._patches is None else self._patches.gather(x)


class _Patches:
    """Chosen output positions of a convolution, and where their inputs lie."""

    def __init__(self, conv: nn.Conv2d, shape: torch.Size, limit: int) -> None:
        if isinstance(conv.padding, str):
            raise TypeError(f"padding {conv.padding!r} of a convolution is not supported")
        images, _, height, width = shape
        self._pad = (conv.padding[1], conv.padding[1], conv.padding[0], conv.padding[0])
        padded = (height + 2 * conv.padding[0], width + 2 * conv.padding[1])
        tops, taps_y = _positions(padded[0], conv.kernel_size[0], conv.stride[0], conv.dilation[0])
        lefts, taps_x = _positions(padded[1], conv.kernel_size[1], conv.stride[1], conv.dilation[1])
        starts = (
            torch.arange(images)[:, None, None] * padded[0] * padded[1]
            + tops[None, :, None] * padded[1]
            + lefts[None, None, :]
        ).flatten()
        taps = (taps_y[:, None] * padded[1] + taps_x[None, :]).flatten()
        self._index = starts[_choose(len(starts), limit)][:, None] + taps[None, :]

    def gather(self, x: Tensor) -> Tensor:
        """Return the patches of maps [images, channels, height, width] as rows [n, channels * taps]."""
        flat = F.pad(x, self._pad).permute(0, 2, 3, 1).flatten(0, 2)
        return flat[self._index].transpose(1, 2).flatten(1)


def row_errors(target: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """Squared output error of every output channel.

    Args:
        target: what should come out, [n, rows].
        inputs: what the quantized weight multiplies, [n, cols].
        weight: dequantized, [rows, cols].

    Returns:
        float32 [rows], summed over the n samples.
    """
    return (F.linear(inputs, weight) - target).square_().sum(dim=0)


def _positions(length: int, kernel: int, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Where the windows of a convolution start along one padded axis, and the offsets inside a window."""
    reach = dilation * (kernel - 1)
    return torch.arange(0, length - reach, stride), torch.arange(0, reach + 1, dilation)


def _choose(length: int, limit: int) -> Tensor:
    """Return at most `limit` distinct indices below `length`, ascending, the same ones every time."""
    generator = torch.Generator().manual_seed(length)
    return torch.randperm(length, generator=generator)[:limit].sort().values
