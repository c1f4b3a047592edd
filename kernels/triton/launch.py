"""Launching the kernels: grids, tile sizes, views of the packed storage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.kernels.triton.expand import expand_kernel
from harness.kernels.triton.gemm import linear_kernel, linear_persistent_kernel, linear_tma_kernel
from harness.kernels.triton.gemv import gemv_kernel, small_kernel
from harness.kernels.triton.quantize import project_kernel, quantize_kernel

CODES_PER_UNIT = {1: 32, 2: 16, 3: 32, 4: 8}
"""Codes of a unit of whole 32-bit words, see `harness.kernels.triton.gemv`."""
MOST_TOKENS = 16
"""Tokens up to which a weight is decoded where it is multiplied."""
WORD_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Tile:
    """How a kernel cuts its work.

    Attributes:
        sizes: block sizes by the kernel's own names.
        warps: warps per program.
        stages: depth of the software pipeline.
    """

    sizes: tuple[tuple[str, int], ...]
    warps: int = 4
    stages: int = 3

    def options(self) -> dict[str, int]:
        """Return the keyword arguments of a launch."""
        return {**dict(self.sizes), "num_warps": self.warps, "num_stages": self.stages}


def tile(warps: int = 4, stages: int = 3, **sizes: int) -> Tile:
    """Build a `Tile`."""
    return Tile(tuple(sizes.items()), warps, stages)


def words_of(packed: Tensor, bits: int) -> tuple[Tensor, bool]:
    """View packed rows as whole words of eight codes where they are aligned: the view, and whether it is."""
    word = WORD_TYPES.get(bits)
    if word is None or packed.shape[1] % bits or packed.data_ptr() % bits:
        return packed, False
    return (packed if bits == 1 else packed.view(word)), True


def expand(
    out: Tensor,
    packed: Tensor,
    bits: int,
    cols: int,
    *,
    scale: Tensor | None = None,
    group: int = 0,
    flat: bool = False,
    offset: Tensor | None = None,
    fixed_offset: float = 0.0,
    doubled: bool = False,
    table: Tensor | None = None,
    rows_of: Tensor | None = None,
    sums: Tensor | None = None,
    tiles: Tile | None = None,
) -> None:
    """Fill `out` from packed codes, see `expand_kernel`; `group` 0 is one scale per row."""
    rows = packed.shape[0]
    tiles = tiles or tile(ROWS=4, WORDS=128, warps=4)
    words, whole = words_of(packed, bits)
    size = dict(tiles.sizes)
    grid = (triton.cdiv(rows, size["ROWS"]), triton.cdiv(triton.cdiv(cols, 8), size["WORDS"]))
    if scale is not None and scale.dim() == 2 and scale.shape[0] == 1 and rows > 1:
        stride = 0
    else:
        stride = 1 if scale is None or scale.dim() == 1 else scale.shape[1]
    multiplier = 2 if doubled else 1
    fixed = int(fixed_offset * multiplier) if not out.is_floating_point() else fixed_offset * multiplier
    expand_kernel[grid](
        out, words, scale, offset, table, rows_of, sums,
        rows, cols, words.shape[1], group or (1 << 30), stride, fixed, multiplier,
        BITS=bits, WHOLE=whole, TABLE="none" if table is None else "shared" if table.dim() == 1 else "rows",
        OFFSET="fixed" if offset is None else "stored", FLAT=flat, SCALED=scale is not None,
        WORDWISE=not flat and group % 8 == 0, SCATTER=rows_of is not None, SUMS=sums is not None, **tiles.options(),
    )  # fmt: skip


def quantize(
    x: Tensor,
    bits: int,
    grid: str,
    *,
    group: int = 64,
    largest_k: int = 1,
    smooth: Tensor | None = None,
    given: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
    tiles: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize tokens [tokens, cols]: codes, row_scale, row_zero or None."""
    tokens, cols = x.shape
    codes = torch.empty(tokens, cols, dtype=torch.int8, device=x.device) if out is None else out
    row_scale = torch.empty(tokens, dtype=torch.float32, device=x.device)
    row_zero = torch.empty_like(row_scale) if grid == "asymmetric" and bits == 8 else None
    lo, hi = given or (None, None)
    wide = triton.next_power_of_2(cols)
    tiles = tiles or tile(TOKENS=max(1, 4096 // wide), warps=8 if wide > 4096 else 4)
    quantize_kernel[(triton.cdiv(tokens, dict(tiles.sizes)["TOKENS"]),)](
        codes, row_scale, row_zero, x, smooth, lo, hi,
        tokens, cols, x.stride(0), codes.stride(0), 1 if lo is None else tokens // lo.numel(),
        BITS=bits, GRID=grid, GIVEN=given is not None, GROUP=group, LARGEST_K=largest_k,
        SMOOTH=smooth is not None, COLS=wide, **tiles.options(),
    )  # fmt: skip
    return codes, row_scale, row_zero


def project(
    x: Tensor, down: Tensor, smooth: Tensor | None = None, *, parts: int = 0, tiles: Tile | None = None
) -> Tensor:
    """Down-project tokens [tokens, cols]: float32 [parts, tokens, rank]."""
    (tokens, cols), rank = x.shape, down.shape[0]
    tiles = tiles or tile(TOKENS=64, COLS=128, warps=4, stages=3)
    size = dict(tiles.sizes)
    parts = parts or 4
    span = triton.cdiv(triton.cdiv(cols, parts), size["COLS"]) * size["COLS"]
    parts = triton.cdiv(cols, span)
    partial = torch.empty(parts, tokens, rank, dtype=torch.float32, device=x.device)
    project_kernel[(triton.cdiv(tokens, size["TOKENS"]), parts)](
        partial, x, smooth, down, tokens, cols, x.stride(0), span,
        SMOOTH=smooth is not None, RANK=rank, PRECISION=_precision(x), **tiles.options(),
    )  # fmt: skip
    return partial


def linear(
    codes: Tensor,
    weight: Tensor,
    row_scale: Tensor,
    col_scale: Tensor,
    *,
    dtype: torch.dtype,
    row_zero: Tensor | None = None,
    col_sum: Tensor | None = None,
    projected: Tensor | None = None,
    up: Tensor | None = None,
    bias: Tensor | None = None,
    tma: str = "",
    tiles: Tile | None = None,
) -> Tensor:
    """Multiply int8 codes [tokens, cols] with an int8 weight [outs, cols]: [tokens, outs] of `dtype`."""
    (tokens, cols), outs = codes.shape, weight.shape[0]
    out = torch.empty(tokens, outs, dtype=dtype, device=codes.device)
    tiles = tiles or tile(TILE_M=128, TILE_N=128, TILE_K=128, GROUP_M=8, warps=4, stages=3)
    size = dict(tiles.sizes)
    grid = (triton.cdiv(tokens, size["TILE_M"]) * triton.cdiv(outs, size["TILE_N"]),)
    flags = {
        "ZERO": row_zero is not None,
        "RANK": 0 if projected is None else projected.shape[2],
        "PARTS": 0 if projected is None else projected.shape[0],
        "BIAS": bias is not None,
        "PRECISION": "ieee" if dtype == torch.float32 else "same",
        "ACCUMULATE": tl.int32 if codes.dtype == torch.int8 else tl.float32,
    }
    rest = (row_scale, row_zero, col_scale, col_sum, projected, up, bias, tokens, outs, cols)
    if tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        left = TensorDescriptor.from_tensor(codes, [size["TILE_M"], size["TILE_K"]])
        right = TensorDescriptor.from_tensor(weight, [size["TILE_N"], size["TILE_K"]])
        if tma == "tma":
            linear_tma_kernel[grid](out, left, right, *rest, **flags, **tiles.options())
        else:
            programs = torch.cuda.get_device_properties(codes.device).multi_processor_count
            special = tma == "special"
            linear_persistent_kernel[(min(programs, grid[0]),)](
                out, left, right, *rest, **flags, **tiles.options(), PROGRAMS=programs, SPECIALIZE=special
            )
    else:
        even = cols % size["TILE_K"] == 0
        linear_kernel[grid](out, codes, weight, *rest, **flags, EVEN=even, **tiles.options())
    return out


def gemv(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bits: int,
    *,
    group: int,
    offset: Tensor | None = None,
    fixed_offset: float = 0.0,
    bias: Tensor | None = None,
    steps: int = 1,
    tiles: Tile | None = None,
) -> Tensor:
    """Multiply few tokens [tokens, cols] with packed rows, a token at a time: [tokens, outs]."""
    (tokens, cols), outs = x.shape, packed.shape[0]
    out = torch.empty(tokens, outs, dtype=x.dtype, device=x.device)
    codes = CODES_PER_UNIT[bits]
    tiles = tiles or tile(ROWS=16, UNITS=1024 // codes, warps=4, stages=1)
    size = dict(tiles.sizes)
    words = packed.view(torch.int32)
    chunks = triton.cdiv(cols // codes, size["UNITS"])
    gemv_kernel[(triton.cdiv(outs, size["ROWS"] * steps), tokens)](
        out, x, words, scale, offset, bias, 1, outs, cols, words.shape[1], scale.shape[1], group, fixed_offset,
        BITS=bits, CODES=codes, STORED=offset is not None, PER_ROW=scale.shape[1] == 1, BIAS=bias is not None,
        CHUNKS=chunks, STEPS=steps, **tiles.options(),
    )  # fmt: skip
    return out


def small(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bits: int,
    *,
    group: int,
    offset: Tensor | None = None,
    fixed_offset: float = 0.0,
    bias: Tensor | None = None,
    tiles: Tile | None = None,
) -> Tensor:
    """As `gemv` for up to 16 tokens at once, on tensor cores."""
    (tokens, cols), outs = x.shape, packed.shape[0]
    out = torch.empty(tokens, outs, dtype=x.dtype, device=x.device)
    codes = CODES_PER_UNIT[bits]
    columns = torch.zeros(codes, cols // codes, MOST_TOKENS, dtype=x.dtype, device=x.device)
    columns[:, :, :tokens] = x.view(tokens, cols // codes, codes).permute(2, 1, 0)
    tiles = tiles or tile(ROWS=64, UNITS=64, warps=4, stages=2)
    words = packed.view(torch.int32)
    whole = fixed_offset.is_integer() if offset is None else not offset.is_floating_point()
    small_kernel[(triton.cdiv(outs, dict(tiles.sizes)["ROWS"]),)](
        out, columns, words, scale, offset, bias,
        tokens, outs, cols, words.shape[1], scale.shape[1], group, fixed_offset,
        BITS=bits, CODES=codes, STORED=offset is not None, WHOLE=whole, BIAS=bias is not None,
        TOKENS=MOST_TOKENS, **tiles.options(),
    )  # fmt: skip
    return out


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "same"
