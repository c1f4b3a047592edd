"""bitsandbytes: NF4 and FP4 (QLoRA, Dettmers et al. 2023), and LLM.int8() (Dettmers et al. 2022).

Settings default to those of diffusers' `BitsAndBytesConfig`, except that the three formats are three methods.
diffusers' own quantizer refuses a machine without a GPU and leaves convolutions alone; the library's
functions, which it calls through the library's layers, do neither.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.kernels.stored import Spec, nbytes, spec_bool, spec_choice, spec_int
from harness.kernels.weights import LARGEST_SIDE
from harness.methods.contract import LayerTarget, MethodConfig, QuantizeJob
from harness.methods.libraries.contract import library_method, load_library
from harness.methods.libraries.layer import (
    UNQUANTIZED,
    LibraryWeight,
    finite_scales,
    replace_all,
    stored_kind,
)

LIBRARY = "bitsandbytes"
FORMATS = ("nf4", "fp4")
NESTED_BLOCK = 256
"""Block magnitudes that share one second-level scale (double quantization)."""
LARGEST_THRESHOLD = 1e6

BlockSize = Literal[32, 64, 128, 256, 512, 1024, 2048, 4096]


@dataclass(frozen=True)
class FourBitConfig(MethodConfig):
    """Settings of `bnb-nf4` and `bnb-fp4`.

    Attributes:
        block: consecutive weights that share one absmax.
        double_quant: whether the magnitudes are themselves stored in 8 bits.
    """

    block: BlockSize = 64
    double_quant: bool = False


@dataclass(frozen=True)
class Int8Config(MethodConfig):
    """Settings of `bnb-int8`.

    Attributes:
        threshold: input columns with a larger value are multiplied in 16 bits; 0 rounds all of them.
    """

    threshold: float = 6.0

    def __post_init__(self) -> None:
        """Check the threshold; raises ValueError."""
        if not 0 <= self.threshold <= LARGEST_THRESHOLD:
            raise ValueError(f"threshold is between 0 and {LARGEST_THRESHOLD:g}, not {self.threshold}")


def _library() -> Any:
    library = load_library(LIBRARY, "bitsandbytes")
    # It warns in every forward that inputs are cast to float16.
    logging.getLogger(LIBRARY).setLevel(logging.ERROR)
    return library


@stored_kind
class FourBitWeight(LibraryWeight):
    """4-bit codes, two in a byte; block magnitudes in float32, or in 8 bits on a second level.

    Buffers: `packed` uint8 [bytes, 1], `absmax` float32 or uint8 [blocks], `code` float32 [16]; with double
    quantization also `nested_absmax` float32 [ceil(blocks / 256)], `nested_code` float32 [256] and `offset`
    float32 [1].
    """

    kind = "bitsandbytes.4bit"
    library = LIBRARY
    packed: Tensor
    absmax: Tensor
    code: Tensor
    nested_absmax: Tensor | None
    nested_code: Tensor | None
    offset: Tensor | None

    def __init__(self, rows: int, cols: int, form: str, block: int, nested: bool) -> None:
        super().__init__(rows, cols)
        self.form, self.block, self.nested = form, block, nested
        blocks = -(-rows * cols // block)
        self.register_buffer("packed", torch.zeros((rows * cols + 1) // 2, 1, dtype=torch.uint8))
        self.register_buffer("absmax", torch.zeros(blocks, dtype=torch.uint8 if nested else torch.float32))
        self.register_buffer("code", torch.zeros(16))
        second = torch.zeros(-(-blocks // NESTED_BLOCK)) if nested else None
        self.register_buffer("nested_absmax", second)
        self.register_buffer("nested_code", torch.zeros(256) if nested else None)
        self.register_buffer("offset", torch.zeros(1) if nested else None)

    @classmethod
    def encode(cls, matrix: Tensor, form: str, block: int, nested: bool) -> Self:
        """Quantize a matrix [rows, cols] by the library, on its device."""
        rows, cols = matrix.shape
        weight = cls(rows, cols, form, block, nested).to(matrix.device)
        functional = _library().functional
        codes, state = functional.quantize_4bit(
            matrix, blocksize=block, compress_statistics=nested, quant_type=form
        )
        weight.packed, weight.absmax, weight.code = codes.view(-1, 1), state.absmax, state.code.clone()
        if nested:
            weight.nested_absmax, weight.nested_code = state.state2.absmax, state.state2.code.clone()
            weight.offset = state.offset.reshape(1)
        return weight

    def check(self) -> None:
        """Raise ValueError when a scale is not finite."""
        finite_scales(self.absmax, self.code, self.nested_absmax, self.nested_code, self.offset)

    def build_operand(self) -> tuple[Any, Any]:
        """Return the library's `QuantState`, and that of the same values as one row."""
        return self._state(self.rows, self.cols), self._state(1, self.rows * self.cols)

    def _state(self, rows: int, cols: int) -> Any:
        state = _library().functional.QuantState
        about: dict[str, Any] = {"shape": torch.Size((rows, cols)), "code": self.code}
        about |= {"blocksize": self.block, "quant_type": self.form, "dtype": torch.float32}
        if self.offset is not None:
            second = state(
                absmax=self.nested_absmax,
                code=self.nested_code,
                blocksize=NESTED_BLOCK,
                dtype=torch.float32,
            )
            about |= {"offset": self.offset[0], "state2": second}
        return state(absmax=self.absmax, **about)

    def dequantize(self) -> Tensor:
        """Return float32 [rows, cols]."""
        _, flat = self.operand()
        values: Tensor = _library().functional.dequantize_4bit(self.packed, flat)
        return values.view(self.rows, self.cols)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply in the dtype of `x`, as `Linear4bit` does.

        The library's decoder for CPUs (0.50) takes a wrong magnitude where a block crosses the end of a row;
        such a weight is decoded as one long row.
        """
        if x.device.type == "cpu" and self.cols % self.block:
            return F.linear(x, self.dequantize().to(x.dtype), bias)
        state, _ = self.operand()
        y: Tensor = _library().matmul_4bit(x, self.packed, state, bias=bias)
        return y

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of codes, magnitudes (both levels) and tables."""
        scales = nbytes(self.absmax) + nbytes(self.nested_absmax) + nbytes(self.offset)
        tables = nbytes(self.code) + nbytes(self.nested_code)
        return {"codes": nbytes(self.packed), "scales": scales, "codebooks": tables}

    @property
    def mean_bits(self) -> float:
        """Width of a code."""
        return 4.0

    def spec(self) -> Spec:
        """Return kind, sizes, format, block and whether it is nested."""
        shape = {"kind": self.kind, "rows": self.rows, "cols": self.cols}
        return {**shape, "form": self.form, "block": self.block, "nested": self.nested}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build an empty weight; raises ValueError on a wrong spec."""
        rows, cols = spec_int(spec, "rows", 1, LARGEST_SIDE), spec_int(spec, "cols", 1, LARGEST_SIDE)
        block = spec_int(spec, "block", 32, 4096)
        return cls(rows, cols, spec_choice(spec, "form", FORMATS), block, spec_bool(spec, "nested"))


@stored_kind
class Int8Weight(LibraryWeight):
    """Symmetric 8-bit codes with one absmax per output: `codes` int8 [rows, cols], `absmax` float32 [rows].

    Attributes:
        threshold: of the outlier columns; None where inputs are not rounded.
    """

    kind = "bitsandbytes.int8"
    library = LIBRARY
    codes: Tensor
    absmax: Tensor

    def __init__(self, rows: int, cols: int, threshold: float | None) -> None:
        super().__init__(rows, cols)
        self.threshold = threshold
        self.register_buffer("codes", torch.zeros(rows, cols, dtype=torch.int8))
        self.register_buffer("absmax", torch.zeros(rows))

    @classmethod
    def encode(cls, matrix: Tensor, threshold: float | None) -> Self:
        """Quantize a matrix [rows, cols] by the library, from float16 as `Linear8bitLt` does."""
        rows, cols = matrix.shape
        weight = cls(rows, cols, threshold)
        codes, absmax, _ = _library().functional.int8_vectorwise_quant(matrix.to(torch.float16))
        weight.codes, weight.absmax = codes, absmax.float().reshape(-1)
        return weight

    def check(self) -> None:
        """Raise ValueError when a scale is not finite."""
        finite_scales(self.absmax)

    def build_operand(self) -> Any:
        """Return the library's state of an 8-bit product."""
        state = _library().MatmulLtState()
        state.CB, state.SCB = self.codes, self.absmax
        state.threshold, state.has_fp16_weights, state.is_training = self.threshold, False, False
        return state

    def dequantize(self) -> Tensor:
        """Return float32 [rows, cols]."""
        values: Tensor = _library().functional.int8_vectorwise_dequant(self.codes, self.absmax)
        return values.float()

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply 8-bit inputs by 8-bit weights; decode the weight where inputs stay in 16 bits."""
        if self.threshold is None:
            return F.linear(x, self.dequantize().to(x.dtype), bias)
        y: Tensor = _library().matmul(x, self.codes, state=self.operand(), bias=bias)
        return y.to(x.dtype)

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of codes and scales."""
        return {"codes": nbytes(self.codes), "scales": nbytes(self.absmax)}

    @property
    def mean_bits(self) -> float:
        """Width of a code."""
        return 8.0

    def spec(self) -> Spec:
        """Return kind, sizes and threshold."""
        shape = {"kind": self.kind, "rows": self.rows, "cols": self.cols}
        return {**shape, "threshold": self.threshold}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build an empty weight; raises ValueError on a wrong spec."""
        rows, cols = spec_int(spec, "rows", 1, LARGEST_SIDE), spec_int(spec, "cols", 1, LARGEST_SIDE)
        threshold = spec.get("threshold")
        if threshold is not None and (
            not isinstance(threshold, int | float) or not 0 <= threshold <= LARGEST_THRESHOLD
        ):
            raise ValueError(f"threshold must be a number, not {threshold!r}")
        return cls(rows, cols, threshold)


def _quantize_four_bit(job: QuantizeJob, config: FourBitConfig, form: str) -> None:
    def encode(matrix: Tensor, target: LayerTarget) -> LibraryWeight:
        if target.w_bits == 8:  # what the policy keeps at 8 bits
            return Int8Weight.encode(matrix, None)
        return FourBitWeight.encode(matrix, form, config.block, config.double_quant)

    replace_all(job, encode)


@library_method(
    "bnb-nf4",
    FourBitConfig,
    version=1,
    libraries=(LIBRARY,),
    weight_only=True,
    weight_bits=(4,),
    act_bits=(16,),
    summary="bitsandbytes NF4, weight-only, block 64",
)
def quantize_nf4(job: QuantizeJob, config: FourBitConfig) -> None:
    """Store every target's weight as the library's NF4 codes."""
    _quantize_four_bit(job, config, "nf4")


@library_method(
    "bnb-fp4",
    FourBitConfig,
    version=1,
    libraries=(LIBRARY,),
    weight_only=True,
    weight_bits=(4,),
    act_bits=(16,),
    summary="bitsandbytes FP4, weight-only, block 64",
)
def quantize_fp4(job: QuantizeJob, config: FourBitConfig) -> None:
    """Store every target's weight as the library's FP4 codes."""
    _quantize_four_bit(job, config, "fp4")


@library_method(
    "bnb-int8",
    Int8Config,
    version=1,
    libraries=(LIBRARY,),
    weight_bits=(8,),
    act_bits=(8,),
    summary="bitsandbytes LLM.int8(), outlier columns in 16 bits",
)
def quantize_int8(job: QuantizeJob, config: Int8Config) -> None:
    """Store every target's weight as int8 rows; inputs are rounded per token but for outlier columns."""

    def encode(matrix: Tensor, target: LayerTarget) -> LibraryWeight:
        rounds = target.kind == "linear" and target.a_bits < UNQUANTIZED
        return Int8Weight.encode(matrix, config.threshold if rounds else None)

    replace_all(job, encode)
