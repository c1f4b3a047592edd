"""torchao: int8 and float8 rows, int4 groups for tensor cores, and plain integers of 2 to 8 bits in groups.

A weight is quantized by torchao's own `quantize_` on a linear layer, as diffusers' `TorchAoConfig` does, and
multiplied through the tensor subclass that comes out. Its parts are what is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import CellError
from harness.kernels.stored import Spec, nbytes, spec_choice, spec_int
from harness.kernels.weights import LARGEST_SIDE
from harness.methods.contract import LayerTarget, MethodConfig, QuantizeJob
from harness.methods.libraries.contract import label, library_method, load_library
from harness.methods.libraries.layer import (
    UNQUANTIZED,
    LibraryWeight,
    finite_scales,
    replace_all,
    stored_kind,
)

LIBRARY = "torchao"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT4_GROUPS = (32, 64, 128, 256)
_PARTS = {"qdata": "codes", "scale": "scales", "zero_point": "zeros", "scale_and_zero": "scales"}
"""What the parts of torchao's tensors are in a ledger."""


@dataclass(frozen=True)
class RowsConfig(MethodConfig):
    """`torchao-int8` and `torchao-fp8` have no settings: torchao gives them one scale per output."""


@dataclass(frozen=True)
class GroupsConfig(MethodConfig):
    """Settings of `torchao-int4`.

    Attributes:
        group: weights per scale along the inputs; a layer that it does not divide has the largest group that
            does.
    """

    group: int = 128

    def __post_init__(self) -> None:
        """Check the group; raises ValueError."""
        if self.group not in INT4_GROUPS:
            raise ValueError(f"group is one of {', '.join(map(str, INT4_GROUPS))}, not {self.group}")


@dataclass(frozen=True)
class IntxConfig(MethodConfig):
    """Settings of `torchao-intx`.

    Attributes:
        group: weights per scale along the inputs; a layer that it does not divide has one scale per output.
    """

    group: int = 32

    def __post_init__(self) -> None:
        """Check the group; raises ValueError."""
        if self.group < 2:
            raise ValueError(f"group is at least 2, not {self.group}")

    def mean_bits(self, bits: int) -> tuple[float, float]:
        """Return 8: torchao keeps each of these codes in a byte."""
        return 8.0, 8.0


def _int4(module: Any, _bits: int, group: int) -> Any:
    return module.Int4WeightOnlyConfig(group_size=group, int4_packing_format="tile_packed_to_4d")


def _intx(module: Any, bits: int, group: int) -> Any:
    granularity = load_library(LIBRARY, "torchao.quantization.granularity")
    per = granularity.PerGroup(group) if group else granularity.PerAxis(0)
    return module.IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=per)


FORMS: dict[str, Callable[[Any, int, int], Any]] = {
    "int8": lambda module, _bits, _group: module.Int8WeightOnlyConfig(),
    "int8-dynamic": lambda module, _bits, _group: module.Int8DynamicActivationInt8WeightConfig(),
    "fp8": lambda module, _bits, _group: module.Float8WeightOnlyConfig(),
    "fp8-dynamic": lambda module, _bits, _group: module.Float8DynamicActivationFloat8WeightConfig(
        granularity=module.PerRow()
    ),
    "int4": _int4,
    "intx": _intx,
}
"""By form: torchao's config, from `torchao.quantization`, the width and the group (0 for one per output)."""


@stored_kind
class TorchaoWeight(LibraryWeight):
    """The parts of one of torchao's quantized tensors, under its own names (`qdata`, `scale`, ...).

    Float8 parts are stored as their bytes.

    Attributes:
        form: key of `FORMS`.
        bits: code width.
        group: weights per scale, 0 for one scale per output.
        dtype: of the weight that was quantized, which the scales follow.
    """

    kind = "torchao"
    library = LIBRARY

    def __init__(self, rows: int, cols: int, form: str, bits: int, group: int, dtype: str) -> None:
        """Quantize zeros, for the names, types and shapes of the parts; raises CellError (`unsupported`)."""
        super().__init__(rows, cols)
        self.form, self.bits, self.group, self.dtype = form, bits, group, dtype
        # The layout for tensor cores exists on a GPU only, and so does the check for 8-bit products.
        device = "cuda" if form in ("int4", "fp8-dynamic") and torch.cuda.is_available() else "cpu"
        self._take(_quantized(torch.zeros(rows, cols, dtype=DTYPES[dtype], device=device), form, bits, group))

    @classmethod
    def encode(cls, matrix: Tensor, form: str, bits: int, group: int) -> Self:
        """Quantize a matrix [rows, cols] by the library, on its device."""
        if form == "int4":  # its kernel knows no other type
            matrix = matrix.to(torch.bfloat16)
        name = str(matrix.dtype).removeprefix("torch.")
        rows, cols = matrix.shape
        weight = cls(rows, cols, form, bits, group, name)
        weight._take(_quantized(matrix, form, bits, group))
        return weight

    def _take(self, tensor: Tensor) -> None:
        names, self._attributes = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        self._type: Any = type(tensor)
        self._stored: dict[str, torch.dtype] = {}
        for name in names:
            part = getattr(tensor, name)
            if type(part) is not Tensor or name not in _PARTS:
                raise CellError("unsupported", f"{label(LIBRARY)} stores {self.form} in an unknown layout")
            self._stored[name] = part.dtype
            plain = part.view(torch.uint8) if part.dtype.is_floating_point and part.itemsize == 1 else part
            self.register_buffer(name, plain.clone().contiguous())

    def check(self) -> None:
        """Raise ValueError when a scale is not finite."""
        finite_scales(*(part for name, part in self.named_buffers() if _PARTS[name] == "scales"))

    def build_operand(self) -> Any:
        """Return torchao's tensor [rows, cols]."""
        parts = {name: self.get_buffer(name).view(dtype) for name, dtype in self._stored.items()}
        size = torch.Size((self.rows, self.cols))
        return self._type.__tensor_unflatten__(parts, self._attributes, size, (self.cols, 1))

    def dequantize(self) -> Tensor:
        """Return float32 [rows, cols]; where torchao cannot decode, the product with the unit matrix."""
        if self.form == "int4":
            unit = torch.eye(self.cols, dtype=torch.bfloat16, device=self.get_buffer("qdata").device)
            return self.linear(unit, None).T.float().contiguous()
        values: Tensor = self.operand().dequantize()
        return values.float()

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply through torchao's tensor, in the dtype of the weight it was made from."""
        own = DTYPES[self.dtype]
        return F.linear(x.to(own), self.operand(), None if bias is None else bias.to(own)).to(x.dtype)

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of codes, scales and zero points."""
        sizes = dict.fromkeys(("codes", "scales", "zeros"), 0)
        for name, part in self.named_buffers():
            sizes[_PARTS[name]] += nbytes(part)
        return {name: size for name, size in sizes.items() if size}

    @property
    def mean_bits(self) -> float:
        """Width of a code as stored: plain integers take a byte each."""
        return 8.0 if self.form == "intx" else float(self.bits)

    def spec(self) -> Spec:
        """Return kind, sizes, form, width, group and dtype."""
        shape = {"kind": self.kind, "rows": self.rows, "cols": self.cols}
        return {**shape, "form": self.form, "bits": self.bits, "group": self.group, "dtype": self.dtype}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build an empty weight; raises ValueError on a wrong spec, CellError without the library."""
        rows, cols = spec_int(spec, "rows", 1, LARGEST_SIDE), spec_int(spec, "cols", 1, LARGEST_SIDE)
        form, dtype = spec_choice(spec, "form", tuple(FORMS)), spec_choice(spec, "dtype", tuple(DTYPES))
        group = spec_int(spec, "group", 0, cols)
        return cls(rows, cols, form, spec_int(spec, "bits", 1, 8), group, dtype)


def _quantized(matrix: Tensor, form: str, bits: int, group: int) -> Tensor:
    """Return torchao's tensor of a matrix; raises CellError (`unsupported`) with torchao's reason."""
    module = load_library(LIBRARY, "torchao.quantization")
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(matrix, requires_grad=False)
    try:
        module.quantize_(linear, FORMS[form](module, bits, group))
    except (AssertionError, ImportError, NotImplementedError, AttributeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CellError("unsupported", f"{label(LIBRARY)} on {matrix.device.type}: {first}") from error
    return linear.weight.detach()


def _rows(job: QuantizeJob, form: str) -> None:
    """Quantize every target to rows of int8 or float8; inputs too, in the layers that are asked for it."""

    def encode(matrix: Tensor, target: LayerTarget) -> LibraryWeight:
        rounds = target.kind == "linear" and target.a_bits < UNQUANTIZED
        return TorchaoWeight.encode(matrix, f"{form}-dynamic" if rounds else form, 8, 0)

    replace_all(job, encode)


@library_method(
    "torchao-int8",
    RowsConfig,
    version=1,
    libraries=(LIBRARY,),
    weight_bits=(8,),
    act_bits=(8, 16),
    summary="torchao int8 rows; int8 products at A8",
)
def quantize_int8(job: QuantizeJob, config: RowsConfig) -> None:
    """Store every target's weight as int8 rows; at A8 the inputs are rounded per token."""
    _rows(job, "int8")


@library_method(
    "torchao-fp8",
    RowsConfig,
    version=1,
    libraries=(LIBRARY,),
    weight_bits=(8,),
    act_bits=(8, 16),
    summary="torchao float8 (e4m3) rows; float8 products at A8 (GPU)",
)
def quantize_fp8(job: QuantizeJob, config: RowsConfig) -> None:
    """Store every target's weight as float8 rows; at A8 the inputs are rounded per token."""
    _rows(job, "fp8")


@library_method(
    "torchao-int4",
    GroupsConfig,
    version=1,
    libraries=(LIBRARY,),
    devices=("cuda",),
    weight_only=True,
    weight_bits=(4,),
    act_bits=(16,),
    summary="torchao int4 groups in the tensor-core layout, weight-only (GPU)",
)
def quantize_int4(job: QuantizeJob, config: GroupsConfig) -> None:
    """Store every target's weight as int4 groups; the layers that the policy keeps at 8 bits as int8 rows."""

    def encode(matrix: Tensor, target: LayerTarget) -> LibraryWeight:
        if target.w_bits == 8:
            return TorchaoWeight.encode(matrix, "int8", 8, 0)
        group = next((size for size in (config.group, *INT4_GROUPS[::-1]) if matrix.shape[1] % size == 0), 0)
        if not group:  # torchao itself would leave it in floats without a word
            reason = f"torchao's int4 needs inputs in groups of 32; {target.name} has {matrix.shape[1]}"
            raise CellError("unsupported", reason)
        return TorchaoWeight.encode(matrix, "int4", 4, group)

    replace_all(job, encode)


@library_method(
    "torchao-intx",
    IntxConfig,
    version=1,
    libraries=(LIBRARY,),
    weight_only=True,
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    act_bits=(16,),
    summary="torchao integers of 2-8 bits in groups, weight-only, a byte per code",
)
def quantize_intx(job: QuantizeJob, config: IntxConfig) -> None:
    """Store every target's weight as integers in groups, each code in a byte of its own."""

    def encode(matrix: Tensor, target: LayerTarget) -> LibraryWeight:
        group = config.group if matrix.shape[1] % config.group == 0 else 0
        return TorchaoWeight.encode(matrix, "intx", target.w_bits, group)

    replace_all(job, encode, stored_bits=8)
