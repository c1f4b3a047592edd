"""Layers whose weight a library has packed, and whose product a library computes.

The library's tensors are the buffers of a `LibraryWeight`, so the ledger counts them, a checkpoint holds them
in safetensors (nothing of a library is unpickled) and a loaded layer is equal to the saved one to the bit.
The object that the library computes with is built on these very buffers when it is first needed.

A convolution's kernel is quantized as the matrix [out, in * taps]; the library decodes it in every forward,
and torch convolves.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from harness.kernels.layers import PackedConv2d, PackedLinear
from harness.kernels.weights import WEIGHTS, PackedWeight
from harness.methods.contract import LayerTarget, QuantizeJob
from harness.methods.layers import activation_quantizer
from harness.methods.libraries.contract import label

UNQUANTIZED = 16
WeightT = TypeVar("WeightT", bound="type[LibraryWeight]")


class LibraryWeight(PackedWeight):
    """A weight matrix as a library stores it.

    Attributes:
        library: the distribution that made it.
    """

    library: str

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__(rows, cols)
        self._built: tuple[Any, tuple[Tensor, ...]] | None = None

    @abstractmethod
    def build_operand(self) -> Any:
        """Return what the library computes with; it shares its memory with the buffers."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the weight by the library: [..., cols] -> [..., rows], in the dtype of `x`."""

    def operand(self) -> Any:
        """Return the library's object, built anew when buffers were replaced (moved to another device)."""
        held = tuple(self.buffers())
        if self._built is None or any(a is not b for a, b in zip(held, self._built[1], strict=True)):
            # A tensor subclass made in inference mode could not be viewed later, not even in that mode.
            with torch.inference_mode(False), torch.no_grad():
                self._built = self.build_operand(), held
        return self._built[0]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the library's object out of copies: it would not share memory with their buffers."""
        return {**self.__dict__, "_built": None}


class LibraryLinear(PackedLinear):
    """A linear layer that a library computes."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: [..., in_features] -> [..., out_features], in the dtype of `x`."""
        weight = self.weight
        assert isinstance(weight, LibraryWeight)
        self.road_taken = "library"
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return weight.linear(x.reshape(-1, self.in_features), bias).view(*x.shape[:-1], self.out_features)


def stored_kind(cls: WeightT) -> WeightT:
    """Let checkpoints load weights of this class."""
    WEIGHTS[cls.kind] = cls
    return cls


def native_matrix(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """Return a copy of the weight as [out, in * taps] in the layer's own dtype, which libraries quantize."""
    return layer.weight.detach().flatten(1).clone().contiguous()


def replace_all(
    job: QuantizeJob, encode: Callable[[Tensor, LayerTarget], LibraryWeight], **remarks: Any
) -> None:
    """Replace every target by a layer of a library.

    Linear layers are computed by the library, which also rounds their inputs where it does. A convolution's
    inputs are rounded as by every other method (dynamic, per sample).

    Args:
        job: the job.
        encode: packs a weight [out, in * taps] of a target.
        **remarks: further notes for the ledger.
    """
    for target in job.targets:
        layer = job.layer(target.name)
        weight = encode(native_matrix(layer), target)
        job.note(target.name, library=label(weight.library), **remarks)
        if isinstance(layer, nn.Linear):
            job.replace(target.name, LibraryLinear.like(layer, weight))
        else:
            job.note(target.name, convolution="torch, on decoded weights")
            job.replace(target.name, PackedConv2d.like(layer, weight, act=activation_quantizer(target)))


def restore(denoiser: nn.Module) -> None:
    """Let the libraries compute the linear layers of a loaded checkpoint that hold their weights."""
    for name, module in list(denoiser.named_modules()):
        if type(module) is PackedLinear and isinstance(module.weight, LibraryWeight):
            parent, _, child = name.rpartition(".")
            layer = LibraryLinear(module.weight, bias=module.bias).train(module.training)
            setattr(denoiser.get_submodule(parent), child, layer)


def finite_scales(*tables: Tensor | None) -> None:
    """Raise ValueError when a scale is not finite."""
    if not all(bool(torch.isfinite(table.float()).all()) for table in tables if table is not None):
        raise ValueError("a scale is not finite")
