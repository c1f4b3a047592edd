"""GGUF: the legacy block formats of llama.cpp (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0), weight-only.

The package `gguf` packs, diffusers' `GGUFLinear` decodes and multiplies: what a GGUF file runs when diffusers
loads it. Formats with super-blocks (Q4_K and the like) cannot be made by the package, only by llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.kernels.stored import Spec, nbytes, spec_choice, spec_int
from harness.kernels.weights import LARGEST_SIDE
from harness.methods.contract import LayerTarget, MethodConfig, QuantizeJob
from harness.methods.libraries.contract import library_method, load_library
from harness.methods.libraries.layer import LibraryWeight, replace_all, stored_kind

LIBRARY = "gguf"
BLOCK = 32
"""Consecutive weights of a row that share a scale."""
SCALE = 2
"""Bytes of a block's float16 scale, and of its float16 minimum."""
CODE_BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}
WITH_MINIMUM = ("Q4_1", "Q5_1")


@dataclass(frozen=True)
class GgufConfig(MethodConfig):
    """Settings of `gguf`.

    Attributes:
        grid: `symmetric` for Q4_0 and Q5_0, `affine` for Q4_1 and Q5_1; 8 bits are always Q8_0.
    """

    grid: Literal["symmetric", "affine"] = "symmetric"


@stored_kind
class GgufWeight(LibraryWeight):
    """Rows of GGUF blocks: `packed` uint8 [rows, bytes]; a row that is no multiple of 32 ends in zeros."""

    kind = "gguf"
    library = LIBRARY
    packed: Tensor

    def __init__(self, rows: int, cols: int, form: str) -> None:
        super().__init__(rows, cols)
        self.form = form
        self.blocks = -(-cols // BLOCK)
        size = BLOCK * CODE_BITS[form] // 8 + SCALE * (1 + (form in WITH_MINIMUM))
        self.register_buffer("packed", torch.zeros(rows, self.blocks * size, dtype=torch.uint8))

    @classmethod
    def encode(cls, matrix: Tensor, form: str) -> Self:
        """Quantize a matrix [rows, cols] by the library, on the CPU."""
        rows, cols = matrix.shape
        weight = cls(rows, cols, form)
        gguf = load_library(LIBRARY, "gguf")
        padded = F.pad(matrix.float().cpu(), (0, weight.blocks * BLOCK - weight.cols))
        packed = gguf.quants.quantize(padded.numpy(), gguf.GGMLQuantizationType[form])
        weight.packed = torch.from_numpy(packed).to(matrix.device)
        return weight

    def build_operand(self) -> Any:
        """Return diffusers' parameter on the blocks."""
        gguf = load_library(LIBRARY, "gguf")
        utils = load_library("diffusers", "diffusers.quantizers.gguf.utils")
        return utils.GGUFParameter(self.packed, quant_type=gguf.GGMLQuantizationType[self.form])

    def dequantize(self) -> Tensor:
        """Return float32 [rows, cols]."""
        utils = load_library("diffusers", "diffusers.quantizers.gguf.utils")
        values: Tensor = utils.dequantize_gguf_tensor(self.operand())
        return values.float()[:, : self.cols]

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Decode the weight and multiply in the dtype of `x`, as `GGUFLinear` does."""
        return F.linear(x, self.dequantize().to(x.dtype), bias)

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of codes, scales and minima."""
        each = self.rows * self.blocks * SCALE
        zeros = each if self.form in WITH_MINIMUM else 0
        sizes = {"codes": nbytes(self.packed) - each - zeros, "scales": each, "zeros": zeros}
        return {name: size for name, size in sizes.items() if size}

    @property
    def mean_bits(self) -> float:
        """Width of a code."""
        return float(CODE_BITS[self.form])

    def spec(self) -> Spec:
        """Return kind, sizes and format."""
        return {"kind": self.kind, "rows": self.rows, "cols": self.cols, "form": self.form}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build an empty weight; raises ValueError on a wrong spec."""
        rows, cols = spec_int(spec, "rows", 1, LARGEST_SIDE), spec_int(spec, "cols", 1, LARGEST_SIDE)
        return cls(rows, cols, spec_choice(spec, "form", tuple(CODE_BITS)))


def format_of(bits: int, grid: str) -> str:
    """Return the format of a code width and a grid, e.g. `Q4_0`."""
    return f"Q{bits}_{int(grid == 'affine' and bits < 8)}"


@library_method(
    "gguf",
    GgufConfig,
    version=1,
    libraries=(LIBRARY,),
    weight_only=True,
    weight_bits=(4, 5, 8),
    act_bits=(16,),
    summary="GGUF Q4_0, Q5_0, Q8_0 (grid=affine: Q4_1, Q5_1), weight-only, block 32",
)
def quantize(job: QuantizeJob, config: GgufConfig) -> None:
    """Store every target's weight as GGUF blocks."""

    def encode(matrix: Tensor, target: LayerTarget) -> LibraryWeight:
        return GgufWeight.encode(matrix, format_of(target.w_bits, config.grid))

    replace_all(job, encode)
