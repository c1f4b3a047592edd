"""Weight-only normal-float, as bitsandbytes stores it (QLoRA): blocks of 64, absmax, quantiles of a normal.

At 4 bits the code book and the codes are NF4's; at other widths the same construction gives NF2, NF3, ...
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.kernels.quantizers.normal_float import quantize_normal_float
from harness.kernels.weights import NormalFloatWeight
from harness.methods.contract import MethodConfig, QuantizeJob, method
from harness.methods.layers import activation_quantizer, packed_layer, weight_matrix


@dataclass(frozen=True)
class Nf4Config(MethodConfig):
    """Settings of `nf4`.

    Attributes:
        block: consecutive weights, row-major and regardless of rows, that share one absmax.
    """

    block: int = 64

    def __post_init__(self) -> None:
        """Check the block; raises ValueError."""
        if self.block < 2:
            raise ValueError(f"block is at least 2, not {self.block}")


@method(
    "nf4",
    Nf4Config,
    version=1,
    weight_only=True,
    act_bits=(16,),
    summary="weight-only normal-float, block 64",
)
def quantize(job: QuantizeJob, config: Nf4Config) -> None:
    """Store every target's weight as normal-float codes; activations stay as they are."""
    for target in job.targets:
        layer = job.layer(target.name)
        codes = quantize_normal_float(weight_matrix(layer), target.w_bits, block=config.block)
        weight = NormalFloatWeight.pack(codes, target.w_bits, config.block)
        job.replace(target.name, packed_layer(layer, weight, activation_quantizer(target)))
        job.note(target.name, codebook=f"nf{target.w_bits}")
