"""Round to nearest on a symmetric group absmax grid: the shortest useful method."""

from __future__ import annotations

from dataclasses import dataclass

from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import UniformWeight
from harness.methods.contract import MethodConfig, QuantizeJob, method
from harness.methods.layers import activation_quantizer, packed_layer, weight_matrix


@dataclass(frozen=True)
class AbsmaxConfig(MethodConfig):
    """Settings of `absmax`."""

    group: int = 64


@method("absmax", AbsmaxConfig, version=1, summary="symmetric group absmax, a plugin")
def quantize(job: QuantizeJob, config: AbsmaxConfig) -> None:
    """Replace every target by its rounded layer."""
    for target in job.targets:
        layer = job.layer(target.name)
        grid = "narrow" if target.w_bits > 1 else "midrise"
        codes = quantize_uniform(
            weight_matrix(layer), target.w_bits, grid=grid, group=config.group, ranges="minmax"
        )
        weight = UniformWeight.pack(codes, target.w_bits, grid, config.group)
        job.replace(target.name, packed_layer(layer, weight, activation_quantizer(target)))
        job.note(target.name, plugin="absmax")
