"""The output error of a layer on calibration samples: what every search here minimises."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer

# Positions of one map are correlated: more maps than these say little more.
MAX_MAPS = 8
HALF_ROWS = 8192
"""More rows of a linear layer than this are held in bfloat16, in which a 16-bit model has computed them."""
CHUNK_VALUES = 2**25
"""Values worked on at once in such a sample: temporaries in float32 stay at 128 MiB each."""


class LayerSample:
    """A fixed random sample of a layer's input rows, and its float output on them.

    For a convolution a row is one unfolded patch; ranges of activations are still taken on whole maps.

    Attributes:
        plain: the sampled rows as they are, [n, cols]; float32, or bfloat16 beyond `HALF_ROWS`.
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
        self._weight = layer.weight.detach()
        if isinstance(layer, nn.Conv2d):
            self._raw = samples[_choose(len(samples), MAX_MAPS)].float()
            self._patches = _Patches(layer, self._raw.shape, limit)
        else:
            kept = samples if len(samples) <= limit else samples[_choose(len(samples), limit)]
            self._raw = kept.bfloat16() if len(kept) > HALF_ROWS else kept.float()
        self.plain = self.rows()

    @cached_property
    def target(self) -> Tensor:
        """What the float layer makes of the rows, without the bias: float32 [n, rows]."""
        return F.linear(self.plain.float(), self._weight.float().flatten(1))

    def rows(self, smooth: Tensor | None = None, act: ActQuantizer | None = None) -> Tensor:
        """Return the input rows, smoothed and quantized as the packed layer would: [n, cols], as `plain`."""
        if self._raw.dtype == torch.bfloat16:
            return self._half_rows(smooth, act)
        return self._prepared(self._raw, smooth, act)

    def _half_rows(self, smooth: Tensor | None, act: ActQuantizer | None) -> Tensor:
        if smooth is None and act is None:
            return self._raw
        made = torch.empty_like(self._raw)
        part = max(1, CHUNK_VALUES // self._raw.shape[1])
        for source, into in zip(torch.split(self._raw, part), torch.split(made, part), strict=True):
            into.copy_(self._prepared(source.float(), smooth, act))
        return made

    def _prepared(self, x: Tensor, smooth: Tensor | None, act: ActQuantizer | None) -> Tensor:
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
