"""Launching the kernels that read activations: quantizing tokens, projecting them, both at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.kernels.triton.project import project_held_kernel, project_kernel
from harness.kernels.triton.quantize import quantize_kernel, scaled_kernel
from harness.kernels.triton.ready import Launch, capability, cdiv, from_hopper, kept, next_power_of_2

PARTS = 8
"""Into how many parts the channels of a down-projection are cut, to have work for the whole device."""
PROJECT = {"TOKENS": 64, "COLS": 64, "num_warps": 4, "num_stages": 3}
HELD = {"TOKENS": 64, "COLS": 256, "num_warps": 4, "num_stages": 2}
HELD_PROGRAMS = 528
"""Programs that walk over tokens, unless there are more parts: four for each processor of a Hopper."""
HELD_GELU = {"num_warps": 16, "num_stages": 3, "maxnreg": 64}
"""What is different where GELU is applied as well, and half as many programs."""
SCALED = {"TOKENS": 16, "COLS": 512, "num_warps": 4}
"""How kernels cut their work, by their own names: the fastest measured on an H200 (docs/performance.md)."""
HOLDS = 9
"""Major compute capability whose tensor cores read what a projection holds from shared memory."""
MOST_HELD = 64
"""Largest rank of what is held: shared memory has room for no more."""
FARTHEST = 1 << 23
"""Elements from one row to the next from which on a block of rows is too long for 32-bit places in it."""
OVERLAPPED = frozenset({"scaled", "units"})
"""Kernels of a layer that are launched so. Not `project`: quantization reads x without waiting."""
OVERLAPPED_COLS = 8192
"""Channels up to which they are: programs that wait take room from those of a long projection."""


def padded_rank(rank: int) -> int:
    """Return how many directions a projection is held with: a power of two, and enough for a tensor core."""
    return max(16, next_power_of_2(rank))


def code_type(grid: str) -> torch.dtype:
    """Return what the codes of a grid of activations are held in."""
    return torch.float8_e4m3fn if grid == "e8m0" else torch.int8


def precision(dtype: torch.dtype) -> str:
    """Return how a kernel multiplies operands of a type."""
    return "ieee" if dtype == torch.float32 else "same"


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
    per_range = 1 if lo is None else tokens // lo.numel()
    launch = _quantization(
        tokens, cols, x.stride(0), per_range, bits, grid, given is not None, group, largest_k,
        smooth is not None,
    )  # fmt: skip
    launch(codes, row_scale, row_zero, x, smooth, lo, hi)
    return codes, row_scale, row_zero


@kept
def _quantization(
    tokens: int, cols: int, x_stride: int, tokens_per_range: int, bits: int, grid: str, given: bool,
    group: int, largest_k: int, smooth: bool,
) -> Launch:  # fmt: skip
    wide = next_power_of_2(cols)
    block = max(1, 4096 // wide)
    numbers = (tokens, cols, x_stride, cols, tokens_per_range)
    constants = {
        "BITS": bits, "GRID": grid, "GIVEN": given, "GROUP": group, "LARGEST_K": largest_k, "SMOOTH": smooth,
        "TOKENS": block, "COLS": wide, "num_warps": 8 if wide > 4096 else 4,
    }  # fmt: skip
    return Launch(quantize_kernel, (cdiv(tokens, block), 1), numbers, constants)


def overlapping(kernel: str, cols: int, device: torch.device) -> dict[str, bool]:
    """Return what a kernel that may overlap with others is launched with: constants and options."""
    able = from_hopper(device) and cols <= OVERLAPPED_COLS
    return overlap_options(able, kernel in OVERLAPPED)


def overlap_options(able: bool, early: bool = True) -> dict[str, bool]:
    """Say whether kernels before and after may overlap with one, and whether it is launched early itself."""
    return {"OVERLAP": able, **({"launch_pdl": True} if able and early else {})}


def holds(x: Tensor, rank: int) -> bool:
    """Whether the projection of an input holds its factor, see `harness.kernels.triton.project`."""
    if x.dtype == torch.float32 or x.stride(0) >= FARTHEST or rank > MOST_HELD:
        return False
    return x.is_cuda and capability(x.device)[0] == HOLDS


def parts_of(cols: int, held: bool) -> tuple[int, int]:
    """Return into how many parts channels are cut, and how many channels a part has."""
    span = HELD["COLS"] if held else cdiv(cdiv(cols, PARTS), PROJECT["COLS"]) * PROJECT["COLS"]
    return cdiv(cols, span), span


def scratch_size(tokens: int, cols: int, rank: int, parts: int) -> int:
    """Return how many numbers a projection leaves for quantizing, see `places_in` of the kernels."""
    return parts * (tokens * rank + rank + tokens) + cols


def project(x: Tensor, down: Tensor, smooth: Tensor | None = None) -> Tensor:
    """Down-project tokens [tokens, cols]: float32 [parts, tokens, rank], to be summed."""
    held = holds(x, len(down))
    parts, _ = parts_of(x.shape[1], held)
    partial = x.new_empty(parts, len(x), padded_rank(len(down)), dtype=torch.float32)
    _project(partial, None, x, None, smooth, down, gelu=False, held=held, aside=False)
    return partial


def _project(
    scratch: Tensor, whole: Tensor | None, x: Tensor, ahead: Tensor | None, smooth: Tensor | None,
    down: Tensor, *, gelu: bool, held: bool, aside: bool,
) -> None:  # fmt: skip
    """Down-project tokens in parts; `aside` fills what quantizing needs besides."""
    rank, cols = down.shape
    if held:
        launch = _held_projection(
            len(x), cols, x.stride(0), *row_of(ahead), gelu, rank, smooth is not None, aside, x.dtype,
            x.device,
        )  # fmt: skip
        launch(scratch, whole, x, ahead, smooth, down)
    else:
        launch = _projection(len(x), cols, x.stride(0), rank, smooth is not None, aside, x.dtype, x.device)
        launch(scratch, x, smooth, down)


def row_of(ahead: Tensor | None) -> tuple[int, int]:
    """Return how far rows of leading channels are apart, and how many channels they have."""
    return (0, 0) if ahead is None else (ahead.stride(0), ahead.shape[1])


@kept
def _projection(
    tokens: int, cols: int, x_stride: int, rank: int, smooth: bool, aside: bool, dtype: torch.dtype,
    device: torch.device,
) -> Launch:  # fmt: skip
    parts, span = parts_of(cols, held=False)
    constants = {
        "SMOOTH": smooth, "RANK": padded_rank(rank), "ASIDE": aside, "PRECISION": precision(dtype),
        **overlapping("project", cols, device), **PROJECT,
    }  # fmt: skip
    grid = cdiv(tokens, PROJECT["TOKENS"]) + aside, parts
    return Launch(project_kernel, grid, (tokens, cols, x_stride, span, rank), constants, fresh=1)


@kept
def _held_projection(
    tokens: int, cols: int, x_stride: int, ahead_stride: int, ahead_cols: int, gelu: bool, rank: int,
    smooth: bool, aside: bool, dtype: torch.dtype, device: torch.device,
) -> Launch:  # fmt: skip
    parts, _ = parts_of(cols, held=True)
    blocks = cdiv(tokens, HELD["TOKENS"])
    turns = cdiv(blocks, max(1, HELD_PROGRAMS // (2 if gelu else 1) // parts))
    numbers = (tokens, cols, x_stride, ahead_stride, ahead_cols, rank)
    constants = {
        "AHEAD": ahead_cols > 0, "GELU": gelu, "NATIVE": device.type == "cuda", "SMOOTH": smooth,
        "RANK": padded_rank(rank), "ASIDE": aside, **overlapping("project", cols, device), **HELD,
        **(HELD_GELU if gelu else {}),
    }  # fmt: skip
    return Launch(project_held_kernel, (cdiv(blocks, turns), parts), numbers, constants, fresh=2)


def in_parts(x: Tensor, ahead: Tensor | None) -> bool:
    """Whether the kernels read an input whose leading channels lie elsewhere as it is."""
    if ahead is None:
        return True
    if ahead.dtype != x.dtype or ahead.stride(0) >= FARTHEST or ahead.shape[1] % HELD["COLS"]:
        return False
    return not any(each.stride(0) % 16 or each.data_ptr() % 16 for each in (x, ahead))


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
    ahead: Tensor | None = None,
    gelu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize tokens to groups of two-level scales, and project.

    Args:
        x: [tokens, cols].
        bits: of the codes.
        grid: `integer` or `e8m0`.
        down: float16 [rank, cols].
        group: channels that share a multiplier.
        largest_k: the largest of these.
        smooth: float16 [cols] or None.
        append: see below.
        ahead: [tokens, some]: the first of the channels, x being the others.
        gelu: whether x (not `ahead`) is given before that activation, by its approximation with tanh.

    Returns:
        codes, row_scale [tokens, 1], and `projected` [tokens, rank] in the type of `x`; with `append` the
        projection in further columns of codes instead, and the directions' gains (see `scaled_kernel`).
    """
    held = holds(x, len(down))
    ahead = None if ahead is None or not ahead.shape[1] else ahead
    made = gelu or ahead is not None
    if made and not (held and in_parts(x, ahead)):
        x, ahead, gelu, made = whole_input(x, ahead, gelu=gelu), None, False, False
        held = holds(x, len(down))
    tokens, (rank, cols) = len(x), down.shape
    rank = padded_rank(rank)
    parts, _ = parts_of(cols, held)
    launch, wide = _quantization_of_parts(
        tokens, cols, cols if made else x.stride(0), bits, grid, group, largest_k, smooth is not None, rank,
        append, parts, made, x.dtype, x.device,
    )  # fmt: skip
    codes = x.new_empty(tokens, wide, dtype=code_type(grid))
    row_scale = x.new_empty(tokens, 1, dtype=torch.float32)
    last = x.new_empty(rank, dtype=torch.float32) if append else x.new_empty(tokens, rank)
    scratch = x.new_empty(scratch_size(tokens, cols, rank, parts), dtype=torch.float32)
    whole = x.new_empty(tokens, cols) if made else None
    _project(scratch, whole, x, ahead, smooth, down, gelu=gelu, held=held, aside=True)
    projected, gains = (None, last) if append else (last, None)
    launch(codes, row_scale, projected, gains, scratch, x if whole is None else whole)
    return codes, row_scale, last


def whole_input(x: Tensor, ahead: Tensor | None, *, gelu: bool) -> Tensor:
    """Return an input of one part, its activation applied: [..., all channels]."""
    values = F.gelu(x, approximate="tanh") if gelu else x
    return values if ahead is None else torch.cat([ahead, values], dim=-1)


@kept
def _quantization_of_parts(
    tokens: int, cols: int, x_stride: int, bits: int, grid: str, group: int, largest_k: int, smooth: bool,
    rank: int, append: bool, parts: int, made: bool, dtype: torch.dtype, device: torch.device,
) -> tuple[Launch, int]:  # fmt: skip
    """Return the launch, and how many columns of codes there are; x may be `made` by the projection."""
    wide = cols + 4 * rank if append else cols
    overlap = {"OVERLAP": False} if made else overlapping("scaled", cols, device)
    constants = {
        "BITS": bits, "GRID": grid, "GROUP": group, "LARGEST_K": largest_k, "SMOOTH": smooth, "RANK": rank,
        "PARTS": parts, "PARTS_HELD": next_power_of_2(parts), "APPEND": append, **overlap, **SCALED,
    }  # fmt: skip
    programs = (cdiv(cols, SCALED["COLS"]) + 1) * cdiv(tokens, SCALED["TOKENS"])
    numbers = (tokens, cols, x_stride, wide)
    return Launch(scaled_kernel, (programs, 1), numbers, constants, fresh=5), wide
