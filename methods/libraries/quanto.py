"""optimum-quanto: symmetric int8 and float8 rows, asymmetric int4 and int2 in groups, all weight-only.

A weight is quantized by quanto's own `QLinear`, the layer of diffusers' `QuantoConfig`, with its group rule:
128 inputs, or 96, 64 or 32 where those divide, else one scale per output. Decoding 2 and 4 bits compiles a
small extension the first time, which takes about a minute and a C++ compiler.
"""

from __future__ import annotations

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
from harness.methods.libraries.layer import LibraryWeight, finite_scales, replace_all, stored_kind

LIBRARY = "optimum-quanto"
TYPES = {"qint2": 2, "qint4": 4, "qint8": 8, "qfloat8": 8}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PARTS = {"data": "codes", "scale": "scales", "shift": "zeros"}


@dataclass(frozen=True)
class QuantoConfig(MethodConfig):
    """`quanto` and `quanto-fp8` have no settings: quanto chooses its groups by the layer's shape."""


@stored_kind
class QuantoWeight(LibraryWeight):
    """What quanto stores of a weight: `data` (int8, or uint8 for packed and float8 codes), `scale`, `shift`.

    Attributes:
        form: key of `TYPES`.
        group: weights per scale, 0 for one per output.
        dtype: of the weight that was quantized, which scales follow.
    """

    kind = "quanto"
    library = LIBRARY

    def __init__(self, rows: int, cols: int, form: str, dtype: str) -> None:
        """Quantize ones, for the types and shapes of the parts; raises CellError (`unsupported`)."""
        super().__init__(rows, cols)
        self.form, self.dtype = form, dtype
        self._take(torch.ones(rows, cols, dtype=DTYPES[dtype]))

    @classmethod
    def encode(cls, matrix: Tensor, form: str) -> Self:
        """Quantize a matrix [rows, cols] by the library, on its device.

        Raises:
            CellError: `unsupported`, when the library's extension cannot be built.
        """
        rows, cols = matrix.shape
        weight = cls(rows, cols, form, str(matrix.dtype).removeprefix("torch."))
        weight._take(matrix)
        try:
            weight.dequantize()
        except (RuntimeError, OSError, ImportError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CellError("unsupported", f"{label(LIBRARY)} cannot decode {form} here: {first}") from error
        return weight

    def _take(self, matrix: Tensor) -> None:
        quanto = load_library(LIBRARY, "optimum.quanto")
        linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(matrix, requires_grad=False)
        with torch.no_grad():
            layer = quanto.QLinear.from_module(linear, weights=getattr(quanto, self.form))
            layer.weight = linear.weight
            layer.freeze()
            state: dict[str, Tensor] = {}
            layer.weight.save_to_state_dict(state, "", keep_vars=False)
        self.group = int(layer.weight_group_size or 0)
        self._names = {key.rpartition("_")[2]: key for key in state}
        self._stored = {name: state[key].dtype for name, key in self._names.items()}
        for name, key in self._names.items():
            part = state[key]
            plain = part.view(torch.uint8) if part.dtype.is_floating_point and part.itemsize == 1 else part
            self.register_buffer(name, plain.clone().contiguous())

    def check(self) -> None:
        """Raise ValueError when a scale is not finite."""
        finite_scales(*(part for name, part in self.named_buffers() if name != "data"))

    def build_operand(self) -> Any:
        """Return quanto's tensor [rows, cols] in the layout of its device."""
        quanto = load_library(LIBRARY, "optimum.quanto")
        state = {key: self.get_buffer(name).view(self._stored[name]) for name, key in self._names.items()}
        about = {"qtype": getattr(quanto, self.form), "axis": 0, "missing_keys": []}
        about |= {"size": torch.Size((self.rows, self.cols)), "stride": (self.cols, 1)}
        if TYPES[self.form] == 8:
            tensor = quanto.WeightQBytesTensor.load_from_state_dict(state, "", activation_qtype=None, **about)
        else:
            tensor = quanto.WeightQBitsTensor.load_from_state_dict(
                state, "", group_size=self.group or None, **about
            )
        return tensor.optimize()

    def dequantize(self) -> Tensor:
        """Return float32 [rows, cols]."""
        values: Tensor = self.operand().dequantize()
        return values.float()

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply through quanto's tensor, in the dtype of the weight it was made from."""
        own = DTYPES[self.dtype]
        # quanto transposes its tensor in the forward, which torch refuses for a subclass in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            y = F.linear(x.to(own), self.operand(), None if bias is None else bias.to(own))
        return y.to(x.dtype)

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of codes, scales and shifts."""
        return {_PARTS[name]: nbytes(part) for name, part in self.named_buffers()}

    @property
    def mean_bits(self) -> float:
        """Width of a code."""
        return float(TYPES[self.form])

    def spec(self) -> Spec:
        """Return kind, sizes, form and dtype; the group follows from the sizes."""
        shape = {"kind": self.kind, "rows": self.rows, "cols": self.cols}
        return {**shape, "form": self.form, "dtype": self.dtype}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build an empty weight; raises ValueError on a wrong spec, CellError without the library."""
        rows, cols = spec_int(spec, "rows", 1, LARGEST_SIDE), spec_int(spec, "cols", 1, LARGEST_SIDE)
        return cls(
            rows, cols, spec_choice(spec, "form", tuple(TYPES)), spec_choice(spec, "dtype", tuple(DTYPES))
        )


@library_method(
    "quanto",
    QuantoConfig,
    version=1,
    libraries=(LIBRARY,),
    weight_only=True,
    weight_bits=(2, 4, 8),
    act_bits=(16,),
    summary="optimum-quanto int2, int4, int8, weight-only",
)
def quantize(job: QuantizeJob, config: QuantoConfig) -> None:
    """Store every target's weight as quanto's integers."""

    def encode(matrix: Tensor, target: LayerTarget) -> LibraryWeight:
        return QuantoWeight.encode(matrix, f"qint{target.w_bits}")

    replace_all(job, encode)


@library_method(
    "quanto-fp8",
    QuantoConfig,
    version=1,
    libraries=(LIBRARY,),
    weight_only=True,
    weight_bits=(8,),
    act_bits=(16,),
    summary="optimum-quanto float8 (e4m3), weight-only",
)
def quantize_fp8(job: QuantizeJob, config: QuantoConfig) -> None:
    """Store every target's weight as quanto's float8 rows."""

    def encode(matrix: Tensor, target: LayerTarget) -> LibraryWeight:
        return QuantoWeight.encode(matrix, "qfloat8")

    replace_all(job, encode)
