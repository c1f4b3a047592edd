"""Packed weight matrices: modules of buffers only, which decode to float32 in every forward.

A convolution's kernel [out, in, kh, kw] is stored as the matrix [out, in*kh*kw]; a row is always an output
channel.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Self, cast

import torch
from torch import Tensor, nn

from harness.kernels.packing import pack_codes, packed_columns, unpack_codes
from harness.kernels.quantizers import nvfp4
from harness.kernels.quantizers.grid import GRIDS, ZERO_POINTS, Grid, check_grid
from harness.kernels.quantizers.normal_float import (
    BLOCK,
    NormalFloatCodes,
    dequantize_normal_float,
    nf_codebook,
)
from harness.kernels.quantizers.residual import MAX_PLANES, BinaryPlanes, dequantize_planes
from harness.kernels.quantizers.scales import (
    SCALE_FORMATS,
    SMALLEST_EXPONENT,
    ScaleFormat,
    largest_multiplier,
    largest_unit,
)
from harness.kernels.quantizers.uniform import (
    Group,
    UniformCodes,
    check_group,
    check_weight_scales,
    dequantize_uniform,
    expand_uniform,
    scale_shape,
)
from harness.kernels.stored import Spec, StoredModule, nbytes, spec_choice, spec_dict, spec_int

LARGEST_SIDE = 1 << 24


class PackedWeight(StoredModule):
    """A weight matrix in packed storage.

    Attributes:
        kind: its name in a spec.
        rows: output channels.
        cols: values per output channel.
    """

    kind: str
    rows: int
    cols: int

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__()
        self.rows, self.cols = rows, cols

    @abstractmethod
    def dequantize(self) -> Tensor:
        """Return the matrix the codes stand for: float32 [rows, cols]."""

    @abstractmethod
    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes held under `codes`, `scales`, `zeros`, `codebooks` and `index`, where present."""

    @property
    @abstractmethod
    def mean_bits(self) -> float:
        """Mean width of a code, in bits, without scales and the like."""

    @abstractmethod
    def spec(self) -> Spec:
        """Return the JSON object `from_spec` builds an empty copy from."""

    @classmethod
    @abstractmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build an empty weight whose state can then be loaded; raises ValueError on a wrong spec."""

    def check(self) -> None:
        """Raise ValueError when loaded buffers contradict each other (shapes are checked on loading)."""


class UniformWeight(PackedWeight):
    """Codes on a uniform grid: `packed` uint8, `scale` float16 [rows, groups], `zero` alike or absent.

    With scales of two levels (`harness.kernels.quantizers.scales`) `scale` is the rows', float16 [rows, 1],
    beside `multiplier` [rows, groups]: uint8 for `integer`, int8 exponents for `e8m0`.
    """

    kind = "uniform"
    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    multiplier: Tensor | None

    def __init__(
        self,
        rows: int,
        cols: int,
        bits: int,
        grid: Grid,
        group: Group = None,
        scale_format: ScaleFormat = "float",
    ) -> None:
        check_grid(bits, grid)
        check_group(group)
        check_weight_scales(scale_format, bits, grid, group)
        super().__init__(rows, cols)
        self.bits, self.grid, self.group = bits, grid, group
        self.scale_format: ScaleFormat = scale_format
        shape = scale_shape(rows, cols, group)
        held = {"float": None, "integer": torch.uint8, "e8m0": torch.int8}[scale_format]
        self.register_buffer("packed", torch.zeros(rows, packed_columns(bits, cols), dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(shape if held is None else (rows, 1), dtype=torch.float16))
        zero = torch.zeros(shape, dtype=ZERO_POINTS[grid]) if grid in ZERO_POINTS else None
        self.register_buffer("zero", zero)
        self.register_buffer("multiplier", None if held is None else torch.zeros(shape, dtype=held))

    @classmethod
    def pack(cls, codes: UniformCodes, bits: int, grid: Grid, group: Group = None) -> Self:
        """Pack the output of `quantize_uniform`, called with the same width, grid and group."""
        rows, cols = codes.codes.shape
        weight = cls(rows, cols, bits, grid, group, codes.scale_format)
        if codes.scale.shape != weight.scale.shape:
            raise ValueError(f"scales of shape {tuple(codes.scale.shape)} do not belong to group {group!r}")
        if codes.multiplier is not None and codes.multiplier.shape != cast(Tensor, weight.multiplier).shape:
            raise ValueError(
                f"multipliers of shape {tuple(codes.multiplier.shape)} do not belong to group {group!r}"
            )
        if (None if codes.zero is None else codes.zero.dtype) != ZERO_POINTS.get(grid):
            raise ValueError(f"zero points and grid {grid!r} do not belong together")
        weight.packed = pack_codes(codes.codes, bits)
        weight.scale = codes.scale.to(torch.float16)
        weight.zero, weight.multiplier = codes.zero, codes.multiplier
        return weight

    def codes(self) -> UniformCodes:
        """Return the codes, unpacked, with their scales and zero points."""
        unpacked = unpack_codes(self.packed, self.bits, self.cols)
        return UniformCodes(unpacked, self.scale, self.zero, self.multiplier)

    def dequantize(self) -> Tensor:
        """Return float32 [rows, cols]."""
        return dequantize_uniform(self.codes(), self.bits, grid=self.grid, group=self.group)

    def expand(self) -> tuple[Tensor, Tensor]:
        """Return integer products and rows' scales; see `expand_uniform`, also for what it raises."""
        return expand_uniform(self.codes(), self.bits, grid=self.grid, group=self.group)

    def check(self) -> None:
        """Raise ValueError when a multiplier, or a code beside it, is outside what its format holds."""
        if self.multiplier is None:
            return
        least, most = 0, largest_multiplier(largest_unit(self.bits, self.grid))
        if self.scale_format == "e8m0":
            least, most = SMALLEST_EXPONENT, 0
        if int(self.multiplier.min()) < least or int(self.multiplier.max()) > most:
            raise ValueError(f"a multiplier of the {self.scale_format} scales is outside {least}..{most}")
        if self.zero is not None and int(self.zero.max()) >= 2**self.bits:
            raise ValueError(f"a zero point is outside 0..{2**self.bits - 1}")
        if self.scale_format == "e8m0" or self.grid != "narrow" or not bool(self.multiplier.any()):
            return  # an empty weight is valid: its multipliers are 0
        if not bool(unpack_codes(self.packed, self.bits, self.cols).all()):
            raise ValueError("a code of the narrow grid is 0: its product may not fit int8")

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of codes, scales (of both levels) and zero points."""
        scales = nbytes(self.scale) + nbytes(self.multiplier)
        return _present(codes=nbytes(self.packed), scales=scales, zeros=nbytes(self.zero))

    @property
    def mean_bits(self) -> float:
        """Width of a code."""
        return float(self.bits)

    def spec(self) -> Spec:
        """Return kind, sizes, width, grid, group, and the format of the scales unless it is `float`."""
        shape = {"kind": self.kind, "rows": self.rows, "cols": self.cols}
        spec = {**shape, "bits": self.bits, "grid": self.grid, "group": self.group}
        return spec if self.scale_format == "float" else {**spec, "scale_format": self.scale_format}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build an empty weight; raises ValueError on a wrong spec."""
        group = spec.get("group")
        check_group(group)
        bits = spec_int(spec, "bits", 1, 8)
        grid = cast(Grid, spec_choice(spec, "grid", GRIDS))
        scale_format = spec_choice({"scale_format": "float", **spec}, "scale_format", SCALE_FORMATS)
        return cls(*_sizes(spec), bits, grid, group, cast(ScaleFormat, scale_format))


class NormalFloatWeight(PackedWeight):
    """Normal-float codes: `packed` uint8, `absmax` float32 [blocks], `codebook` float32 [2**bits]."""

    kind = "normal_float"
    packed: Tensor
    absmax: Tensor
    codebook: Tensor

    def __init__(self, rows: int, cols: int, bits: int, block: int = BLOCK) -> None:
        super().__init__(rows, cols)
        self.bits, self.block = bits, block
        self.register_buffer("packed", torch.zeros(rows, packed_columns(bits, cols), dtype=torch.uint8))
        self.register_buffer("absmax", torch.zeros(-(-rows * cols // block)))
        self.register_buffer("codebook", nf_codebook(bits))

    @classmethod
    def pack(cls, codes: NormalFloatCodes, bits: int, block: int = BLOCK) -> Self:
        """Pack the output of `quantize_normal_float`, called with the same width and block."""
        rows, cols = codes.codes.shape
        weight = cls(rows, cols, bits, block)
        if codes.absmax.shape != weight.absmax.shape:
            raise ValueError(f"{codes.absmax.numel()} magnitudes do not belong to blocks of {block}")
        weight.packed = pack_codes(codes.codes, bits)
        weight.absmax = codes.absmax.to(torch.float32)
        weight.codebook = weight.codebook.to(codes.codes.device)
        return weight

    def dequantize(self) -> Tensor:
        """Return float32 [rows, cols]."""
        codes = NormalFloatCodes(unpack_codes(self.packed, self.bits, self.cols), self.absmax)
        return dequantize_normal_float(codes, self.codebook, self.block)

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of codes, block magnitudes and the code book."""
        return _present(
            codes=nbytes(self.packed), scales=nbytes(self.absmax), codebooks=nbytes(self.codebook)
        )

    @property
    def mean_bits(self) -> float:
        """Width of a code."""
        return float(self.bits)

    def spec(self) -> Spec:
        """Return kind, sizes, width and block."""
        shape = {"kind": self.kind, "rows": self.rows, "cols": self.cols}
        return {**shape, "bits": self.bits, "block": self.block}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build an empty weight; raises ValueError on a wrong spec."""
        rows, cols = _sizes(spec)
        return cls(rows, cols, spec_int(spec, "bits", 2, 8), spec_int(spec, "block", 1, LARGEST_SIDE))


class BinaryPlanesWeight(PackedWeight):
    """Residual binary planes: `packed` uint8 (one bit per plane), `alphas` float16 [rows, planes]."""

    kind = "binary_planes"
    packed: Tensor
    alphas: Tensor

    def __init__(self, rows: int, cols: int, planes: int) -> None:
        super().__init__(rows, cols)
        self.planes = planes
        self.register_buffer("packed", torch.zeros(rows, packed_columns(planes, cols), dtype=torch.uint8))
        self.register_buffer("alphas", torch.zeros(rows, planes, dtype=torch.float16))

    @classmethod
    def pack(cls, planes: BinaryPlanes) -> Self:
        """Pack the output of `fit_binary_planes`."""
        rows, cols = planes.codes.shape
        weight = cls(rows, cols, planes.alphas.shape[1])
        if planes.alphas.shape != weight.alphas.shape:
            raise ValueError(f"alphas of shape {tuple(planes.alphas.shape)} for {weight.rows} rows")
        weight.packed = pack_codes(planes.codes, weight.planes)
        weight.alphas = planes.alphas.to(torch.float16)
        return weight

    def dequantize(self) -> Tensor:
        """Return float32 [rows, cols]."""
        return dequantize_planes(unpack_codes(self.packed, self.planes, self.cols), self.alphas)

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of the planes and of their alphas."""
        return _present(codes=nbytes(self.packed), scales=nbytes(self.alphas))

    @property
    def mean_bits(self) -> float:
        """Number of planes."""
        return float(self.planes)

    def spec(self) -> Spec:
        """Return kind, sizes and the number of planes."""
        return {"kind": self.kind, "rows": self.rows, "cols": self.cols, "planes": self.planes}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build an empty weight; raises ValueError on a wrong spec."""
        rows, cols = _sizes(spec)
        return cls(rows, cols, spec_int(spec, "planes", 1, MAX_PLANES))


class Nvfp4Weight(PackedWeight):
    """NVFP4: `packed` uint8, `scale` uint8 [rows, groups] (E4M3 bytes), `tensor_scale` float32 [1]."""

    kind = "nvfp4"
    packed: Tensor
    scale: Tensor
    tensor_scale: Tensor

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__(rows, cols)
        self.register_buffer("packed", torch.zeros(rows, packed_columns(nvfp4.BITS, cols), dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(rows, -(-cols // nvfp4.GROUP), dtype=torch.uint8))
        self.register_buffer("tensor_scale", torch.zeros(1))

    @classmethod
    def pack(cls, codes: nvfp4.Nvfp4Codes) -> Self:
        """Pack the output of `quantize_nvfp4`."""
        weight = cls(*codes.codes.shape)
        if codes.scale.shape != weight.scale.shape:
            raise ValueError(
                f"scales of shape {tuple(codes.scale.shape)} are not one per {nvfp4.GROUP} columns"
            )
        weight.packed = pack_codes(codes.codes, nvfp4.BITS)
        weight.scale, weight.tensor_scale = codes.scale, codes.tensor_scale
        return weight

    def check(self) -> None:
        """Raise ValueError when a scale is not finite."""
        if not nvfp4.finite_e4m3(self.scale) or not bool(torch.isfinite(self.tensor_scale).all()):
            raise ValueError("a scale of the NVFP4 weight is not finite")

    def dequantize(self) -> Tensor:
        """Return float32 [rows, cols]."""
        codes = unpack_codes(self.packed, nvfp4.BITS, self.cols)
        return nvfp4.dequantize_nvfp4(nvfp4.Nvfp4Codes(codes, self.scale, self.tensor_scale))

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of codes and of both levels of scales."""
        return _present(codes=nbytes(self.packed), scales=nbytes(self.scale) + nbytes(self.tensor_scale))

    @property
    def mean_bits(self) -> float:
        """Width of a code."""
        return float(nvfp4.BITS)

    def spec(self) -> Spec:
        """Return kind and sizes."""
        return {"kind": self.kind, "rows": self.rows, "cols": self.cols}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build an empty weight; raises ValueError on a wrong spec."""
        return cls(*_sizes(spec))


class RowMixedWeight(PackedWeight):
    """Rows of mixed width: each row belongs to one of several packed weights.

    Attributes:
        parts: packed weights of equal cols; part i holds the rows with `row_part == i`, in increasing order.
        row_part: uint8 [rows].
    """

    kind = "row_mixed"
    row_part: Tensor

    def __init__(self, parts: list[PackedWeight], row_part: Tensor) -> None:
        if not parts or any(isinstance(part, RowMixedWeight) for part in parts):
            raise ValueError(
                "a row-mixed weight is made of one or more weights that are not row-mixed themselves"
            )
        if len({part.cols for part in parts}) != 1:
            raise ValueError("the parts of a row-mixed weight differ in their number of columns")
        super().__init__(sum(part.rows for part in parts), parts[0].cols)
        self.parts = nn.ModuleList(parts)
        self.register_buffer("row_part", row_part.to(torch.uint8))
        self.check()

    def check(self) -> None:
        """Raise ValueError unless `row_part` gives every part as many rows as it holds."""
        counts = torch.bincount(self.row_part.reshape(-1).to(torch.int64), minlength=len(self.parts)).tolist()
        if counts != [part.rows for part in self._parts()]:
            raise ValueError(
                f"row_part gives the parts {counts} rows, they hold {[p.rows for p in self._parts()]}"
            )

    def dequantize(self) -> Tensor:
        """Return float32 [rows, cols]."""
        held = torch.cat([part.dequantize() for part in self._parts()])
        order = torch.argsort(self.row_part, stable=True)
        return torch.empty_like(held).index_copy_(0, order, held)

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of all parts together, and of `row_part` under `index`."""
        total = {"index": nbytes(self.row_part)}
        for part in self._parts():
            for name, size in part.bytes_by_part().items():
                total[name] = total.get(name, 0) + size
        return total

    @property
    def mean_bits(self) -> float:
        """Mean width over the rows."""
        return sum(part.mean_bits * part.rows for part in self._parts()) / self.rows

    def spec(self) -> Spec:
        """Return kind, sizes and the specs of the parts."""
        shape = {"kind": self.kind, "rows": self.rows, "cols": self.cols}
        return {**shape, "parts": [part.spec() for part in self._parts()]}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build an empty weight, its rows dealt to the parts in order; raises ValueError on a wrong spec."""
        rows, cols = _sizes(spec)
        specs = spec.get("parts")
        if not isinstance(specs, list) or not 1 <= len(specs) <= 255:
            raise ValueError("parts must be a list of 1 to 255 weights")
        specs = [spec_dict(part, "a part") for part in specs]
        if any(part.get("kind") == cls.kind for part in specs):
            raise ValueError("a row-mixed weight cannot be a part of another")
        sizes = [_sizes(part) for part in specs]
        if sum(size[0] for size in sizes) != rows or any(size[1] != cols for size in sizes):
            raise ValueError(f"the parts do not make up a matrix of {rows} x {cols}")
        dealt = torch.repeat_interleave(torch.tensor([size[0] for size in sizes]))
        return cls([weight_from_spec(part) for part in specs], dealt)

    def _parts(self) -> list[PackedWeight]:
        return [cast(PackedWeight, part) for part in self.parts]


WEIGHTS: dict[str, type[PackedWeight]] = {
    cls.kind: cls
    for cls in (UniformWeight, NormalFloatWeight, BinaryPlanesWeight, Nvfp4Weight, RowMixedWeight)
}


def weight_from_spec(spec: Spec) -> PackedWeight:
    """Build an empty packed weight from its spec; raises ValueError on an unknown kind or a wrong spec."""
    return WEIGHTS[spec_choice(spec, "kind", tuple(WEIGHTS))].from_spec(spec)


def _sizes(spec: Spec) -> tuple[int, int]:
    return spec_int(spec, "rows", 1, LARGEST_SIDE), spec_int(spec, "cols", 1, LARGEST_SIDE)


def _present(**parts: int) -> dict[str, int]:
    return {name: size for name, size in parts.items() if size}
