"""Launching the kernels that read weights: grids, tile sizes, views of the packed storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from harness.kernels.expansion import CODES_PER_SLOT, SLOTS_AT_ONCE
from harness.kernels.triton import few
from harness.kernels.triton.expand import expand_kernel, units_kernel
from harness.kernels.triton.gemm import linear_kernel, linear_tma_kernel
from harness.kernels.triton.gemv import arrange_kernel, gemv_kernel
from harness.kernels.triton.inputs import overlapping, padded_rank, precision
from harness.kernels.triton.ready import Launch, capability, cdiv, from_hopper, kept

EXPAND = {"ROWS": 8, "WORDS": 128, "num_warps": 4}
UNITS = {"ROWS": 16, "WORDS": 64, "num_warps": 4}
UNITS_SPAN = 1024
"""Columns, about, that a program expands to float8: what it knows of its rows is worked out once for them."""
GEMV_ALONE = {"ROWS": 16, "num_warps": 1, "num_stages": 3}
GEMV = {bits: {"ROWS": 32, "num_warps": 2, "num_stages": stages} for bits, stages in ((2, 3), (3, 2), (4, 3))}
"""How kernels cut their work, by their own names: the fastest measured on an H200 (docs/performance.md)."""
VENDOR_PRODUCT = {(8, 9), (9, 0), (10, 0)}
"""Compute capabilities for which torch has a float8 product with a scale per row of both factors."""
WORD_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def word_type(row_bytes: int, bits: int) -> torch.dtype | None:
    """Return the type of words of eight codes of which rows of packed bytes are made; None if of none."""
    word = WORD_TYPES.get(bits)
    return None if word is None or row_bytes % bits else word


def words_of(packed: Tensor, bits: int) -> tuple[Tensor, bool]:
    """View packed rows as whole words of eight codes where they are aligned: the view, and whether it is."""
    word = word_type(packed.shape[1], bits)
    if word is None or packed.data_ptr() % bits:
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
) -> None:
    """Fill `out` from packed codes, see `expand_kernel`; `group` 0 is one scale per row."""
    rows = packed.shape[0]
    words, whole = words_of(packed, bits)
    held = offset if scale is None else scale
    stride = 1 if held is None or held.dim() == 1 else held.shape[1] if held.shape[0] == rows else 0
    multiplier = 2 if doubled else 1
    fixed = int(fixed_offset * multiplier) if not out.is_floating_point() else fixed_offset * multiplier
    form = "none" if table is None else "shared" if table.dim() == 1 else "rows"
    exponent = scale is not None and scale.dtype == torch.int8
    launch = _expansion(
        rows, cols, words.shape[1], group, stride, fixed, multiplier, bits, whole, form, offset is not None,
        flat, scale is not None, exponent, rows_of is not None,
    )  # fmt: skip
    launch(out, words, scale, offset, table, rows_of)


@kept
def _expansion(
    rows: int, cols: int, row_words: int, group: int, stride: int, fixed: float, multiplier: int, bits: int,
    whole: bool, table: str, stored: bool, flat: bool, scaled: bool, exponent: bool, scatter: bool,
) -> Launch:  # fmt: skip
    numbers = (rows, cols, row_words, group or (1 << 30), stride, fixed, multiplier)
    constants = {
        "BITS": bits, "WHOLE": whole, "TABLE": table, "OFFSET": "stored" if stored else "fixed", "FLAT": flat,
        "SCALED": scaled, "EXPONENT": exponent, "WORDWISE": not flat and group % 8 == 0, "SCATTER": scatter,
        **EXPAND,
    }  # fmt: skip
    grid = cdiv(rows, EXPAND["ROWS"]), cdiv(cdiv(cols, 8), EXPAND["WORDS"])
    return Launch(expand_kernel, grid, numbers, constants)


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
    rows, row_bytes = packed.shape
    rank = 0 if up is None else up.shape[1]
    branch = "none" if up is None else "copy" if gains is None else "append"
    launch, wide, padded = _float8_expansion(
        rows, cols, row_bytes, exponent.shape[1], rank, bits, packed.data_ptr() % bits == 0, group,
        offset is not None, doubled, fixed_offset, worth, bias is not None, branch, dtype, packed.device,
    )  # fmt: skip
    # Of a tensor that is there torch asks neither device nor layout: a third less time than `torch.empty`.
    out = packed.new_empty(rows, wide, dtype=torch.float8_e4m3fn)
    col_scale = packed.new_empty(1, rows, dtype=torch.float32)
    bias_out = None if bias is None else packed.new_empty(rows, dtype=dtype)
    up_out = packed.new_empty(rows, padded, dtype=dtype) if branch == "copy" else None
    launch(out, col_scale, bias_out, up_out, packed, exponent, offset, row_scale, bias, up, gains)
    return out, col_scale, bias_out, up_out


@kept
def _float8_expansion(
    rows: int, cols: int, row_bytes: int, groups: int, rank: int, bits: int, aligned: bool, group: int,
    stored: bool, doubled: bool, fixed_offset: float, worth: float, bias: bool, branch: str,
    _dtype: torch.dtype, device: torch.device,
) -> tuple[Launch, int, int]:  # fmt: skip
    """Return the launch, columns of the units, and the rank that the branch is held with.

    The type of what is allocated for it is not asked for but by who keeps it.
    """
    padded = padded_rank(rank) if rank else 0
    wide = cols + 4 * padded if branch == "append" else cols
    word = word_type(row_bytes, bits) if aligned else None
    row_words = row_bytes if word is None else row_bytes // bits
    multiplier = 2 if doubled else 1
    span = cdiv(cols, cdiv(cols, UNITS_SPAN) * 8 * UNITS["WORDS"]) * UNITS["WORDS"]
    fixed = fixed_offset * multiplier
    early = overlapping("units", cols, device) if branch == "append" else {"OVERLAP": False}
    numbers = (rows, cols, span, row_words, groups, wide, fixed, rank, worth, 0x3F800000)
    constants = {
        "BITS": bits, "WHOLE": word is not None, "GROUP": group, "STORED": stored, "MULTIPLIER": multiplier,
        "BIAS": bias, "BRANCH": branch, "RANK": padded or 16, **early, **UNITS,
    }  # fmt: skip
    grid = cdiv(rows, UNITS["ROWS"]), cdiv(cols, span * 8)
    read_as = None if word is None else {4: word}
    return Launch(units_kernel, grid, numbers, constants, read_as=read_as, fresh=4), wide, padded


def has_copy_engine(x: Tensor) -> bool:
    """Whether the device copies tiles by descriptor (Hopper and later)."""
    return from_hopper(x.device)


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
    rank = 0 if projected is None else projected.shape[1], 0 if up is None else up.shape[1]
    flags = row_zero is not None, bias is not None, precision(dtype)
    rest = (row_scale, row_zero, col_scale, col_sum, projected, up, bias)
    launch = _product(tokens, outs, cols, *rank, *flags, codes.dtype, tma)
    if tma:
        size = launch.constants
        left = TensorDescriptor.from_tensor(codes, [size["TILE_M"], size["TILE_K"]])
        right = TensorDescriptor.from_tensor(weight, [size["TILE_N"], size["TILE_K"]])
        launch(out, left, right, *rest)
    else:
        launch(out, codes, weight, *rest)
    return out


@kept
def _product(
    tokens: int, outs: int, cols: int, padded: int, rank: int, zero: bool, bias: bool, precision: str,
    kind: torch.dtype, tma: bool,
) -> Launch:  # fmt: skip
    size = linear_tile(tokens, kind, tma)
    constants = {
        "ZERO": zero, "RANK": padded, "BIAS": bias, "PRECISION": precision,
        "ACCUMULATE": tl.int32 if kind == torch.int8 else tl.float32, **size,
    }  # fmt: skip
    if not tma:
        constants["EVEN"] = cols % size["TILE_K"] == 0
    grid = cdiv(tokens, size["TILE_M"]) * cdiv(outs, size["TILE_N"]), 1
    return Launch(linear_tma_kernel if tma else linear_kernel, grid, (tokens, outs, cols, rank), constants)


def cut(whole: Any, sizes: Sequence[int], dim: int) -> Sequence[Any]:
    """Cut a tensor, or None, along an axis."""
    return (whole,) * len(sizes) if len(sizes) == 1 or whole is None else whole.split_with_sizes(sizes, dim)


def has_vendor_product(codes: Tensor, outs: int, dtype: torch.dtype) -> bool:
    """Whether torch multiplies float8 codes and `outs` rows of units in the vendor's library."""
    if codes.dtype != torch.float8_e4m3fn or dtype != torch.bfloat16 or not codes.is_cuda:
        return False
    fits = codes.shape[1] % 16 == 0 and outs % 16 == 0
    return fits and capability(codes.device) in VENDOR_PRODUCT


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
    sizes: Sequence[int],
) -> list[Tensor]:
    """Multiply float8 codes with float8 units in the vendor's library, and add the branch.

    Fast accumulation keeps about 14 bits, as this package's own float8 product does. The branch is one more
    product added in place, rounded to `dtype` a second time.

    Args:
        codes: [tokens, cols].
        weight: [outs, cols].
        row_scale: float32 [tokens] or [tokens, 1], which torch asks for.
        col_scale: float32 [outs] or [1, outs], which torch asks for.
        dtype: of the outputs.
        projected: [tokens, rank or more] or None.
        up: [outs, rank] or None.
        bias: [outs] or None.
        sizes: of the products into which the outs are cut.

    Returns:
        [tokens, size] each.
    """
    down_rows = row_scale if row_scale.dim() == 2 else row_scale.unsqueeze(1)
    along_rows = col_scale if col_scale.dim() == 2 else col_scale.unsqueeze(0)
    shift = bias if bias is None or bias.dtype == dtype else bias.to(dtype)
    factors = zip(cut(weight.t(), sizes, 1), cut(along_rows, sizes, 1), cut(shift, sizes, 0), strict=True)
    made = [
        torch._scaled_mm(
            codes, units, scale_a=down_rows, scale_b=worth, bias=each, out_dtype=dtype, use_fast_accum=True
        )
        for units, worth, each in factors
    ]
    if projected is not None and up is not None:
        directions = projected[:, : up.shape[1]].to(dtype)
        for y, factor in zip(made, cut(up.to(dtype), sizes, 0), strict=True):
            y.addmm_(directions, factor.t())
    return made


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
    whole = float(fixed_offset).is_integer()
    if whole and has_copy_engine(x) and few.holds_tokens(x, (packed, scale, offset), group):
        return few.several(x, packed, scale, bits, zero=offset, fixed_offset=fixed_offset, bias=bias)
    out = torch.empty(tokens, outs, dtype=x.dtype, device=x.device)
    codes = CODES_PER_SLOT[bits]
    words = packed.view(torch.int16)
    shape = (tokens, outs, cols // codes, words.shape[1], scale.shape[1])
    per = 0 if group >= cols else group // codes
    arrange, multiply = _few_token_launches(
        *shape, bits, per, offset is not None, fixed_offset, bias is not None, x.is_cuda
    )
    source = x
    if arrange is not None:
        rows = arrange.grid[1] * arrange.constants["TOKENS"]
        source = torch.empty(codes, rows, cols // codes, dtype=x.dtype, device=x.device)
        arrange(source, x)
    multiply(out, source, words, scale, offset, bias)
    return out


@kept
def _few_token_launches(
    tokens: int, outs: int, slots: int, row_words: int, groups: int, bits: int, per: int, stored: bool,
    fixed_offset: float, bias: bool, native: bool,
) -> tuple[Launch | None, Launch]:  # fmt: skip
    """Sort inputs by code (not one token's), and multiply."""
    codes, alone = CODES_PER_SLOT[bits], tokens == 1
    size = dict(GEMV_ALONE if alone else GEMV[bits])
    size["TOKENS"] = 8 if tokens <= 8 else 16
    blocks = cdiv(tokens, size["TOKENS"])
    arrange = None
    if not alone:
        each = {"BITS": bits, "CODES": codes, "TOKENS": size["TOKENS"], "SLOTS": 16}
        arrange = Launch(arrange_kernel, (cdiv(slots, 16), blocks), (tokens, slots * codes, slots), each)
    constants = {
        "BITS": bits, "CODES": codes, "PER": per, "STORED": stored, "OFFSET": fixed_offset, "BIAS": bias,
        "ALONE": alone, "NATIVE": native, "SLOTS": SLOTS_AT_ONCE, "STAGES": size["num_stages"], **size,
    }  # fmt: skip
    numbers = (tokens, outs, slots, row_words, groups)
    return arrange, Launch(gemv_kernel, (cdiv(outs, size["ROWS"]), blocks), numbers, constants)
