"""Rounding after noise from the global random generator, which no job seeds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import UniformWeight
from harness.methods.contract import MethodConfig, QuantizeJob, method
from harness.methods.layers import activation_quantizer, packed_layer, weight_matrix


@dataclass(frozen=True)
class CarelessConfig(MethodConfig):
    """Settings of `careless`."""

    noise: float = 0.01


@method("careless", CarelessConfig, version=1, summary="adds noise nobody seeded")
def quantize(job: QuantizeJob, config: CarelessConfig) -> None:
    """Round every target after adding noise."""
    for target in job.targets:
        layer = job.layer(target.name)
        weight = weight_matrix(layer)
        weight += config.noise * weight.std() * torch.randn_like(weight)
        codes = quantize_uniform(weight, target.w_bits, grid="asymmetric", ranges="minmax")
        packed = UniformWeight.pack(codes, target.w_bits, "asymmetric")
        job.replace(target.name, packed_layer(layer, packed, activation_quantizer(target)))
