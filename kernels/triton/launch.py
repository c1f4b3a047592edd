"""Launching the kernels: grids, tile sizes, views of the packed storage."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.kernels.expansion import CODES_PER_UNIT
from harness.kernels.triton.expand import expand_kernel
from harness.kernels.triton.gemm import linear_kernel, linear_tma_kernel
from harness.kernels.triton.gemv import gemv_kernel
from harness.kernels.triton.quantize import project_kernel, quantize_kernel, scaled_kernel

PARTS = 8
"""Into how many parts the channels of a down-projection are cut, to have work for the whole device."""
EXPAND = {"ROWS": 8, "WORDS": 128, "num_warps": 4}
PROJECT = {"TOKENS": 64, "COLS": 64, "num_warps": 4, "num_stages": 3}
SCALED = {"TOKENS": 4, "COLS": 1024, "num_warps": 4}
"""How kernels cut their work, by their own names: the fastest measured on an H200 (docs/performance.md)."""
WORD_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def words_of(packed: Tensor, bits: int) -> tuple[Tensor, bool]:
    """View packed rows as whole words of eight codes where they are aligned: the view, and whether it is."""
    word = WORD_TYPES.get(bits)
    if word is None or packed.shape[1] % bits or packed.data_ptr() % bits:
        return packed, False
    return (packed if bits == 1 else packed.view(word)), True


def padded_rank(down: Tensor) -> int:
    """Return how many directions a projection is held with: a power of two, and enough for a tensor core."""
    return max(16, int(triton.next_power_of_2(down.shape[0])))


def code_type(grid: str) -> torch.dtype:
    """Return what the codes of a grid of activations are held in."""
    return torch.float8_e4m3fn if grid == "e8m0" else torch.int8


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
) -> None:
    """Fill `out` from packed codes, see `expand_kernel`; `group` 0 is one scale per row."""
    rows = packed.shape[0]
    words, whole = words_of(packed, bits)
    grid = (triton.cdiv(rows, EXPAND["ROWS"]), triton.cdiv(triton.cdiv(cols, 8), EXPAND["WORDS"]))
    held = offset if scale is None else scale
    stride = 1 if held is None or held.dim() == 1 else held.shape[1] if held.shape[0] == rows else 0
    multiplier = 2 if doubled else 1
    fixed = int(fixed_offset * multiplier) if not out.is_floating_point() else fixed_offset * multiplier
    form = "none" if table is None else "shared" if table.dim() == 1 else "rows"
    expand_kernel[grid](
        out, words, scale, offset, table, rows_of,
        rows, cols, words.shape[1], group or (1 << 30), stride, fixed, multiplier,
        BITS=bits, WHOLE=whole, TABLE=form,
        OFFSET="fixed" if offset is None else "stored", FLAT=flat, SCALED=scale is not None,
        EXPONENT=scale is not None and scale.dtype == torch.int8, WORDWISE=not flat and group % 8 == 0,
        SCATTER=rows_of is not None, **EXPAND,
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
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize tokens [tokens, cols]: codes, row_scale, row_zero or None."""
    tokens, cols = x.shape
    codes = torch.empty(tokens, cols, dtype=code_type(grid), device=x.device)
    row_scale = torch.empty(tokens, dtype=torch.float32, device=x.device)
    row_zero = torch.empty_like(row_scale) if grid == "asymmetric" and bits == 8 else None
    lo, hi = given or (None, None)
    wide = triton.next_power_of_2(cols)
    block = max(1, 4096 // wide)
    quantize_kernel[(triton.cdiv(tokens, block),)](
        codes, row_scale, row_zero, x, smooth, lo, hi,
        tokens, cols, x.stride(0), codes.stride(0), 1 if lo is None else tokens // lo.numel(),
        BITS=bits, GRID=grid, GIVEN=given is not None, GROUP=group, LARGEST_K=largest_k,
        SMOOTH=smooth is not None, TOKENS=block, COLS=wide, num_warps=8 if wide > 4096 else 4,
    )  # fmt: skip
    return codes, row_scale, row_zero


def project(
    x: Tensor, down: Tensor, smooth: Tensor | None = None, *, peaks: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Down-project tokens: partial float32 [parts, tokens, rank], and peaks [parts, tokens]."""
    (tokens, cols), rank = x.shape, padded_rank(down)
    span = triton.cdiv(triton.cdiv(cols, PARTS), PROJECT["COLS"]) * PROJECT["COLS"]
    parts = triton.cdiv(cols, span)
    partial = torch.empty(parts, tokens, rank, dtype=torch.float32, device=x.device)
    peak = torch.empty(parts, tokens, dtype=torch.float32, device=x.device) if peaks else None
    project_kernel[(triton.cdiv(tokens, PROJECT["TOKENS"]), parts)](
        partial, peak, x, smooth, down, tokens, cols, x.stride(0), span, down.shape[0],
        SMOOTH=smooth is not None, RANK=rank, PRECISION=_precision(x.dtype), PEAKS=peaks, **PROJECT,
    )  # fmt: skip
    return partial, peak


def quantize_projected(
    x: Tensor,
    bits: int,
    grid: str,
    down: Tensor,
    *,
    group: int = 64,
    largest_k: int = 1,
    smooth: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize tokens to groups of two-level scales, and project: codes, row_scale, projected."""
    tokens, cols = x.shape
    partial, peaks = project(x, down, smooth, peaks=True)
    codes = torch.empty(tokens, cols, dtype=code_type(grid), device=x.device)
    row_scale = torch.empty(tokens, dtype=torch.float32, device=x.device)
    projected = torch.empty(tokens, padded_rank(down), dtype=x.dtype, device=x.device)
    scaled_kernel[(triton.cdiv(tokens, SCALED["TOKENS"]), triton.cdiv(cols, SCALED["COLS"]))](
        codes, row_scale, projected, x, smooth, partial, peaks, tokens, cols, x.stride(0), cols,
        BITS=bits, GRID=grid, GROUP=group, LARGEST_K=largest_k, SMOOTH=smooth is not None,
        RANK=padded_rank(down), PARTS=partial.shape[0], **SCALED,
    )  # fmt: skip
    return codes, row_scale, projected


def has_copy_engine(x: Tensor) -> bool:
    """Whether the device copies tiles by descriptor (Hopper and later)."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 9


def linear_tile(tokens: int, kind: torch.dtype, tma: bool) -> dict[str, int]:
    """Choose how a GEMM is cut, as the constants above."""
    shape = {"TILE_M": 128, "TILE_N": 128, "TILE_K": 128, "GROUP_M": 8, "num_warps": 4, "num_stages": 3}
    if tokens <= 64:
        return {**shape, "TILE_M": 16 if tokens <= 16 else 64, "TILE_N": 64}
    if kind == torch.float8_e4m3fn and tma:
        return {**shape, "TILE_N": 256, "num_warps": 8}
    return shape


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
) -> Tensor:
    """Multiply codes [tokens, cols] with units [outs, cols], both int8 or both float8: [tokens, outs]."""
    (tokens, cols), outs = codes.shape, weight.shape[0]
    out = torch.empty(tokens, outs, dtype=dtype, device=codes.device)
    tma = has_copy_engine(codes) and cols % 16 == 0
    size = linear_tile(tokens, codes.dtype, tma)
    grid = (triton.cdiv(tokens, size["TILE_M"]) * triton.cdiv(outs, size["TILE_N"]),)
    flags = {
        "ZERO": row_zero is not None,
        "RANK": 0 if projected is None else projected.shape[1],
        "BIAS": bias is not None,
        "PRECISION": _precision(dtype),
        "ACCUMULATE": tl.int32 if codes.dtype == torch.int8 else tl.float32,
    }
    rank = 0 if up is None else up.shape[1]
    rest = (row_scale, row_zero, col_scale, col_sum, projected, up, bias, tokens, outs, cols, rank)
    if tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        left = TensorDescriptor.from_tensor(codes, [size["TILE_M"], size["TILE_K"]])
        right = TensorDescriptor.from_tensor(weight, [size["TILE_N"], size["TILE_K"]])
        linear_tma_kernel[grid](out, left, right, *rest, **flags, **size)
    else:
        even = cols % size["TILE_K"] == 0
        linear_kernel[grid](out, codes, weight, *rest, **flags, EVEN=even, **size)
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
) -> Tensor:
    """Multiply few tokens [tokens, cols] with packed rows, a token at a time: [tokens, outs]."""
    (tokens, cols), outs = x.shape, packed.shape[0]
    out = torch.empty(tokens, outs, dtype=x.dtype, device=x.device)
    codes = CODES_PER_UNIT[bits]
    size = {"ROWS": 16, "UNITS": 512 // codes, "num_warps": 4, "num_stages": 1}
    words = packed.view(torch.int32)
    gemv_kernel[(triton.cdiv(outs, size["ROWS"]), tokens)](
        out, x, words, scale, offset, bias, outs, cols, words.shape[1], scale.shape[1], group, fixed_offset,
        BITS=bits, CODES=codes, STORED=offset is not None, PER_ROW=scale.shape[1] == 1, BIAS=bias is not None,
        CHUNKS=triton.cdiv(cols // codes, size["UNITS"]), **size,
    )  # fmt: skip
    return out


def _precision(dtype: torch.dtype) -> str:
    return "ieee" if dtype == torch.float32 else "same"
