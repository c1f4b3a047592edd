"""Other people's low-bit layers in the same random model, where their packages are installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Peer:
    """A quantization of another package.

    Attributes:
        name: as in the table.
        package: what must be installed.
        bits: what it stores and computes in.
        compiled: whether it is measured under `torch.compile` too.
        apply: quantizes a 16-bit denoiser on the device in place.
    """

    name: str
    package: str
    bits: str
    compiled: bool
    apply: Callable[[Any], None]

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.package) is not None


def _torchao_fp8(denoiser: Any) -> None:
    """Weights and activations in float8, one scale per row of either."""
    quantization = importlib.import_module("torchao.quantization")
    config = quantization.Float8DynamicActivationFloat8WeightConfig(granularity=quantization.PerRow())
    quantization.quantize_(denoiser, config)


def _bitsandbytes_nf4(denoiser: Any) -> None:
    """Every linear layer's weight in NF4 with doubly quantized scales, decoded for a 16-bit product."""
    bnb = importlib.import_module("bitsandbytes")
    for name, layer in [(n, m) for n, m in denoiser.named_modules() if isinstance(m, nn.Linear)]:
        device, dtype = layer.weight.device, layer.weight.dtype
        packed = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        packed.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed
        ).to(device)  # which is when it is quantized
        packed.bias = layer.bias
        parent, _, child = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), child, packed)


PEERS = (
    Peer("torchao fp8 rowwise", "torchao", "W8A8", True, _torchao_fp8),
    Peer("bitsandbytes NF4", "bitsandbytes", "W4A16", False, _bitsandbytes_nf4),
)


def held_bytes(device: torch.device) -> int:
    """Return what the allocator holds on the device now; 0 on the CPU."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0
