"""Launching the kernels: grids, tile sizes, views of the packed storage."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from harness.kernels.expansion import CODES_PER_SLOT, SLOTS_AT_ONCE
from harness.kernels.triton.expand import expand_kernel, units_kernel
from harness.kernels.triton.gemm import linear_kernel, linear_tma_kernel
from harness.kernels.triton.gemv import arrange_kernel, gemv_kernel
from harness.kernels.triton.quantize import project_kernel, quantize_kernel, scaled_kernel
from harness.kernels.triton.ready import Ready, cdiv, next_power_of_2

PARTS = 8
"""Into how many parts the channels of a down-projection are cut, to have work for the whole device."""
EXPAND = {"ROWS": 8, "WORDS": 128, "num_warps": 4}
UNITS = {"ROWS": 16, "WORDS": 64, "num_warps": 4}
UNITS_SPAN = 1024
"""Columns, about, that a program expands to float8: what it knows of its rows is worked out once for them."""
PROJECT = {"TOKENS": 64, "COLS": 64, "num_warps": 4, "num_stages": 3}
SCALED = {"TOKENS": 16, "COLS": 512, "num_warps": 4}
GEMV_ALONE = {bits: {"ROWS": 16, "num_warps": 1, "num_stages": 2 if bits == 3 else 3} for bits in (2, 3, 4)}
GEMV = {bits: {"ROWS": 32, "num_warps": 2, "num_stages": 2 if bits == 3 else 3} for bits in (2, 3, 4)}
"""How kernels cut their work, by their own names: the fastest measured on an H200 (docs/performance.md)."""
VENDOR_PRODUCT = {(8, 9), (9, 0), (10, 0)}
"""Compute capabilities for which torch has a float8 product with a scale per row of both factors."""
WORD_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_arrange, _expand, _gemv, _linear, _project, _quantize, _scaled, _units = map(
    Ready,
    (
        arrange_kernel, expand_kernel, gemv_kernel, linear_kernel, project_kernel, quantize_kernel,
        scaled_kernel, units_kernel,
    ),
)  # fmt: skip


def words_of(packed: Tensor, bits: int) -> tuple[Tensor, bool]:
    """View packed rows as whole words of eight codes where they are aligned: the view, and whether it is."""
    word = WORD_TYPES.get(bits)
    if word is None or packed.shape[1] % bits or packed.data_ptr() % bits:
        return packed, False
    return (packed if bits == 1 else packed.view(word)), True


def padded_rank(down: Tensor) -> int:
    """Return how many directions a projection is held with: a power of two, and enough for a tensor core."""
    return max(16, next_power_of_2(int(down.shape[0])))


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
    grid = (cdiv(rows, EXPAND["ROWS"]), cdiv(cdiv(cols, 8), EXPAND["WORDS"]))
    held = offset if scale is None else scale
    stride = 1 if held is None or held.dim() == 1 else held.shape[1] if held.shape[0] == rows else 0
    multiplier = 2 if doubled else 1
    fixed = int(fixed_offset * multiplier) if not out.is_floating_point() else fixed_offset * multiplier
    form = "none" if table is None else "shared" if table.dim() == 1 else "rows"
    args = (
        out, words, scale, offset, table, rows_of,
        rows, cols, words.shape[1], group or (1 << 30), stride, fixed, multiplier,
    )  # fmt: skip
    constants = {
        "BITS": bits, "WHOLE": whole, "TABLE": form, "OFFSET": "fixed" if offset is None else "stored",
        "FLAT": flat, "SCALED": scale is not None,
        "EXPONENT": scale is not None and scale.dtype == torch.int8, "WORDWISE": not flat and group % 8 == 0,
        "SCATTER": rows_of is not None, **EXPAND,
    }  # fmt: skip
    _expand(grid, args, constants)


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
    wide = next_power_of_2(cols)
    block = max(1, 4096 // wide)
    args = (
        codes, row_scale, row_zero, x, smooth, lo, hi,
        tokens, cols, x.stride(0), cols, 1 if lo is None else tokens // lo.numel(),
    )  # fmt: skip
    constants = {
        "BITS": bits, "GRID": grid, "GIVEN": given is not None, "GROUP": group, "LARGEST_K": largest_k,
        "SMOOTH": smooth is not None, "TOKENS": block, "COLS": wide, "num_warps": 8 if wide > 4096 else 4,
    }  # fmt: skip
    _quantize((cdiv(tokens, block), 1), args, constants)
    return codes, row_scale, row_zero


class Parts(NamedTuple):
    """A down-projection in parts of the channels, as `project_kernel` leaves it.

    Attributes:
        partial: float32 [parts, tokens, rank].
        peaks: float32 [parts, tokens], or None.
        norms: float32 [parts, rank], or None.
        inverses: float32 [cols], or None.
    """

    partial: Tensor
    peaks: Tensor | None = None
    norms: Tensor | None = None
    inverses: Tensor | None = None


def parts_of(cols: int) -> tuple[int, int]:
    """Return into how many parts channels are cut, and how many channels a part has."""
    span = cdiv(cdiv(cols, PARTS), PROJECT["COLS"]) * PROJECT["COLS"]
    return cdiv(cols, span), span


def project_parts(x: Tensor, down: Tensor, smooth: Tensor | None, *, aside: bool) -> Parts:
    """Down-project tokens [tokens, cols] in parts; `aside` fills what quantizing needs besides."""
    (tokens, cols), rank = x.shape, padded_rank(down)
    parts, span = parts_of(cols)
    shapes = ((parts, tokens, rank), (parts, tokens), (parts, rank), (cols,))
    wanted = shapes if aside else shapes[:1]
    found = Parts(*(torch.empty(shape, dtype=torch.float32, device=x.device) for shape in wanted))
    constants = {
        "SMOOTH": smooth is not None, "RANK": rank, "PRECISION": _precision(x.dtype), "PEAKS": aside,
        "ASIDE": aside, **PROJECT,
    }  # fmt: skip
    args = (*found, x, smooth, down, tokens, cols, x.stride(0), span, down.shape[0])
    _project((cdiv(tokens, PROJECT["TOKENS"]) + aside, parts), args, constants)
    return found


def project(x: Tensor, down: Tensor, smooth: Tensor | None = None) -> Tensor:
    """Down-project tokens: float32 [parts, tokens, rank], to be summed."""
    return project_parts(x, down, smooth, aside=False).partial


def quantize_projected(
    x: Tensor,
    bits: int,
    grid: str,
    down: Tensor,
    *,
    group: int = 64,
    largest_k: int = 1,
    smooth: Tensor | None = None,
    append: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize tokens to groups of two-level scales, and project.

    Returns:
        codes, row_scale, and `projected` [tokens, rank] in the type of `x`; with `append` the projection in
        further columns of codes instead, and the directions' gains (see `scaled_kernel`).
    """
    (tokens, cols), rank = x.shape, padded_rank(down)
    wide = cols + 4 * rank if append else cols
    codes = torch.empty(tokens, wide, dtype=code_type(grid), device=x.device)
    row_scale = torch.empty(tokens, dtype=torch.float32, device=x.device)
    projected = None if append else torch.empty(tokens, rank, dtype=x.dtype, device=x.device)
    gains = torch.empty(rank, dtype=torch.float32, device=x.device) if append else None
    found = project_parts(x, down, smooth, aside=True)
    quantize_into(
        codes, row_scale, projected, gains, x, found,
        bits=bits, grid=grid, group=group, largest_k=largest_k, smoothed=smooth is not None,
    )  # fmt: skip
    last = gains if projected is None else projected
    assert last is not None
    return codes, row_scale, last


def quantize_into(
    codes: Tensor,
    row_scale: Tensor,
    projected: Tensor | None,
    gains: Tensor | None,
    x: Tensor,
    found: Parts,
    *,
    bits: int,
    grid: str,
    group: int,
    largest_k: int,
    smoothed: bool,
) -> None:
    """Quantize tokens whose projection was `found`; with `gains` it goes to further columns of `codes`."""
    (tokens, cols), (parts, _, rank) = x.shape, found.partial.shape
    args = (codes, row_scale, projected, gains, x, *found, tokens, cols, x.stride(0), codes.stride(0))
    constants = {
        "BITS": bits, "GRID": grid, "GROUP": group, "LARGEST_K": largest_k, "SMOOTH": smoothed, "RANK": rank,
        "PARTS": parts, "PARTS_HELD": next_power_of_2(parts), "APPEND": gains is not None, **SCALED,
    }  # fmt: skip
    _scaled((cdiv(tokens, SCALED["TOKENS"]), cdiv(cols, SCALED["COLS"])), args, constants)


def expand_float8(
    packed: Tensor,
    bits: int,
    cols: int,
    exponent: Tensor,
    group: int,
    row_scale: Tensor,
    *,
    worth: float,
    offset: Tensor | None,
    fixed_offset: float,
    doubled: bool,
    bias: Tensor | None,
    up: Tensor | None,
    gains: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Expand to float8: units, col_scale, bias and up of `dtype`; with `gains` up is part of the units."""
    rows, device = packed.shape[0], packed.device
    rank = 0 if up is None else padded_rank(up.T)
    wide = cols if gains is None else cols + 4 * rank
    out = torch.empty(rows, wide, dtype=torch.float8_e4m3fn, device=device)
    col_scale = torch.empty(rows, dtype=torch.float32, device=device)
    bias_out = None if bias is None else torch.empty(rows, dtype=dtype, device=device)
    copied = up is not None and gains is None
    up_out = torch.empty(rows, rank, dtype=dtype, device=device) if copied else None
    words, whole = words_of(packed, bits)
    multiplier = 2 if doubled else 1
    span = cdiv(cols, cdiv(cols, UNITS_SPAN) * 8 * UNITS["WORDS"]) * UNITS["WORDS"]
    args = (
        out, col_scale, bias_out, up_out, words, exponent, offset, row_scale, bias, up, gains,
        rows, cols, span, words.shape[1], exponent.shape[1], wide, fixed_offset * multiplier,
        0 if up is None else up.shape[1], worth, 0x3F800000,
    )  # fmt: skip
    constants = {
        "BITS": bits, "WHOLE": whole, "GROUP": group, "STORED": offset is not None, "MULTIPLIER": multiplier,
        "BIAS": bias is not None, "RANK": rank or 16,
        "BRANCH": "none" if up is None else "append" if gains is not None else "copy", **UNITS,
    }  # fmt: skip
    _units((cdiv(rows, UNITS["ROWS"]), cdiv(cols, span * 8)), args, constants)
    return out, col_scale, bias_out, up_out


def has_copy_engine(x: Tensor) -> bool:
    """Whether the device copies tiles by descriptor (Hopper and later)."""
    return x.is_cuda and _capability(x.device)[0] >= 9


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
    grid = (cdiv(tokens, size["TILE_M"]) * cdiv(outs, size["TILE_N"]), 1)
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
        _linear(grid, (out, codes, weight, *rest), {**flags, "EVEN": even, **size})
    return out


def has_vendor_product(codes: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether torch multiplies float8 codes and units, a scale per row of each, in the vendor's library."""
    if codes.dtype != torch.float8_e4m3fn or dtype != torch.bfloat16 or not codes.is_cuda:
        return False
    fits = codes.shape[1] % 16 == 0 and weight.shape[0] % 16 == 0
    return fits and _capability(codes.device) in VENDOR_PRODUCT


def vendor_linear(
    codes: Tensor,
    weight: Tensor,
    row_scale: Tensor,
    col_scale: Tensor,
    *,
    dtype: torch.dtype,
    projected: Tensor | None = None,
    up: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply float8 codes with float8 units in the vendor's library, and add the branch: [tokens, outs].

    Fast accumulation keeps about 14 bits, as this package's own float8 product does. The branch is one more
    product added in place, rounded to `dtype` a second time.
    """
    y = torch._scaled_mm(
        codes, weight.t(), scale_a=row_scale.unsqueeze(1), scale_b=col_scale.unsqueeze(0),
        bias=bias if bias is None else bias.to(dtype), out_dtype=dtype, use_fast_accum=True,
    )  # fmt: skip
    if projected is not None and up is not None:
        y.addmm_(projected[:, : up.shape[1]].to(dtype), up.to(dtype).t())
    return y


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
    """Multiply few tokens [tokens, cols], of 16 bits, with packed rows: [tokens, outs]."""
    (tokens, cols), outs = x.shape, packed.shape[0]
    out = torch.empty(tokens, outs, dtype=x.dtype, device=x.device)
    codes, alone = CODES_PER_SLOT[bits], tokens == 1
    slots, size = cols // codes, dict(GEMV_ALONE[bits] if alone else GEMV[bits])
    size["TOKENS"] = 8 if tokens <= 8 else 16
    blocks = cdiv(tokens, size["TOKENS"])
    words = packed.view(torch.int32 if bits == 3 else torch.int16)
    source = x
    if not alone:
        source = torch.empty(codes, blocks * size["TOKENS"], slots, dtype=x.dtype, device=x.device)
        each = {"BITS": bits, "CODES": codes, "TOKENS": size["TOKENS"], "SLOTS": 16}
        _arrange((cdiv(slots, 16), blocks), (source, x, tokens, cols, slots), each)
    args = (out, source, words, scale, offset, bias, tokens, outs, slots, words.shape[1], scale.shape[1])
    constants = {
        "BITS": bits, "CODES": codes, "PER": 0 if group >= cols else group // codes,
        "STORED": offset is not None, "OFFSET": fixed_offset, "BIAS": bias is not None, "ALONE": alone,
        "NATIVE": x.is_cuda, "SLOTS": SLOTS_AT_ONCE[bits], "STAGES": size["num_stages"], **size,
    }  # fmt: skip
    _gemv((cdiv(outs, size["ROWS"]), blocks), args, constants)
    return out


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _precision(dtype: torch.dtype) -> str:
    return "ieee" if dtype == torch.float32 else "same"
