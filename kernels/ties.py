"""Packed layers with one input hold one smoothing vector: the same tensor, not equal ones.

Where q, k and v of an attention were smoothed together (and their branches share the down factor), a compiler
sees that they divide the same input by the same tensor and does it once, activation quantization included.
Values, forward and checkpoint are as before: a file holds every layer's own copy, and so the ledger, whose
bytes are those of the file, counts each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.kernels.layers import PackedLayer


def tie_siblings(root: nn.Module) -> int:
    """Let packed layers below one parent share equal smoothing vectors and equal down factors of branches.

    Args:
        root: a module with packed layers in it, on the device where it stays: moving it unties.

    Returns:
        How many tensors were replaced by another layer's.
    """
    count = 0
    for parent in root.modules():
        layers = [child for child in parent.children() if isinstance(child, PackedLayer)]
        for i, layer in enumerate(layers):
            for other in layers[:i]:
                count += _tie(layer, other)
    return count


def _tie(layer: PackedLayer, other: PackedLayer) -> int:
    count = 0
    if layer.smooth is not other.smooth and same_tensor(layer.smooth, other.smooth):
        layer.smooth = other.smooth
        count += 1
    ours, theirs = layer.branch, other.branch
    if (
        ours is not None
        and theirs is not None
        and ours.down is not theirs.down
        and same_tensor(ours.down, theirs.down)
    ):
        ours.down = theirs.down
        count += 1
    return count


def same_tensor(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both are there and hold the same values in the same type."""
    return a is not None and b is not None and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
