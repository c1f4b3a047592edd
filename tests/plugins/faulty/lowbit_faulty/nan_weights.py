"""A method whose scales are NaN, as of a division by an unguarded zero."""

from __future__ import annotations

import torch

from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import UniformWeight
from harness.methods.contract import MethodConfig, QuantizeJob, method
from harness.methods.layers import activation_quantizer, packed_layer, weight_matrix


@method("faulty-nan", MethodConfig, version=1, summary="returns NaN weights")
def quantize(job: QuantizeJob, config: MethodConfig) -> None:
    """Replace every target by a layer with NaN scales."""
    for target in job.targets:
        layer = job.layer(target.name)
        codes = quantize_uniform(
            weight_matrix(layer), target.w_bits, grid="asymmetric", group=None, ranges="minmax"
        )
        weight = UniformWeight.pack(codes, target.w_bits, "asymmetric", None)
        for name, buffer in weight.named_buffers():
            if torch.is_floating_point(buffer):
                weight.get_buffer(name).fill_(float("nan"))
        job.replace(target.name, packed_layer(layer, weight, activation_quantizer(target)))
