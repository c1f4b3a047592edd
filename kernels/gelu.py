"""Packed linear layers that apply GELU to their input themselves.

The kernels that quantize an input apply it to what they read: nobody writes what they would read again.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.kernels import dispatch
from harness.kernels.layers import PackedLinear


class LinearAfterGelu(PackedLinear):
    """A packed `nn.Linear`, and GELU by its approximation with tanh before it on all channels or the last."""

    @classmethod
    def of(cls, layer: PackedLinear) -> Self:
        """Return a layer of the parts of `layer`, which takes what its input was made of."""
        made = cls(layer.weight, bias=layer.bias, act=layer.act, smooth=layer.smooth, branch=layer.branch)
        made.smooth = layer.smooth  # the tensor that other layers may hold, too
        made.train(layer.training)
        return made

    def forward(self, x: Tensor, ahead: Tensor | None = None) -> Tensor:
        """Apply the layer to the channels of `ahead` as they are and those of x after GELU.

        Args:
            x: [..., channels].
            ahead: [..., other channels], which come first, or None.

        Returns:
            [..., out_features] in the dtype of `x`.

        Raises:
            ValueError: `ahead` has other leading axes or another dtype than x.
        """
        if ahead is not None and (ahead.shape[:-1] != x.shape[:-1] or ahead.dtype != x.dtype):
            raise ValueError(
                f"channels of {list(ahead.shape)}, {ahead.dtype}, ahead of {list(x.shape)}, {x.dtype}"
            )
        road, plan = self.take(x)
        if plan is None or (torch.is_grad_enabled() and ahead is not None and ahead.requires_grad):
            values = F.gelu(x, approximate="tanh")
            return self.reference(values if ahead is None else torch.cat([ahead, values], dim=-1))
        return dispatch.linear_after_gelu(self, x, ahead, road, plan)
