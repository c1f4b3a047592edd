"""Launching the kernels that read activations: quantizing tokens, projecting them, both at once."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.kernels.triton.project import project_held_kernel, project_kernel
from harness.kernels.triton.quantize import quantize_kernel, scaled_kernel
from harness.kernels.triton.ready import Launch, capability, cdiv, kept, next_power_of_2

PARTS = 8
"""Into how many parts the channels of a down-projection are cut, to have work for the whole device."""
PROJECT = {"TOKENS": 64, "COLS": 64, "num_warps": 4, "num_stages": 3}
HELD = {"TOKENS": 64, "COLS": 256, "num_warps": 4, "num_stages": 2}
HELD_PROGRAMS = 528
"""Programs that walk over tokens, unless there are more parts: four for each processor of a Hopper."""
SCALED = {"TOKENS": 16, "COLS": 512, "num_warps": 4}
"""How kernels cut their work, by their own names: the fastest measured on an H200 (docs/performance.md)."""
HOLDS = 9
"""Major compute capability whose tensor cores read what a projection holds from shared memory."""
MOST_HELD = 64
"""Largest rank of what is held: shared memory has room for no more."""
FARTHEST = 1 << 23
"""Elements from one row to the next from which on a block of rows is too long for 32-bit places in it."""
OVERLAPS_FROM = 9
"""Major compute capability from which a kernel can be launched before the one ahead of it has ended."""
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


def can_overlap(device: torch.device) -> bool:
    """Whether a kernel can be launched on a device before the one ahead of it has ended."""
    return device.type == "cuda" and capability(device)[0] >= OVERLAPS_FROM


def overlapping(kernel: str, cols: int, device: torch.device) -> dict[str, bool]:
    """Return what a kernel that may overlap with others is launched with: constants and options."""
    able = can_overlap(device) and cols <= OVERLAPPED_COLS
    return {"OVERLAP": able, **({"launch_pdl": True} if able and kernel in OVERLAPPED else {})}


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
    partial = torch.empty(parts, len(x), padded_rank(len(down)), dtype=torch.float32, device=x.device)
    _project(x, down, smooth, partial, held=held, aside=False)
    return partial


def _project(
    x: Tensor, down: Tensor, smooth: Tensor | None, scratch: Tensor, *, held: bool, aside: bool
) -> None:
    """Down-project tokens in parts; `aside` fills what quantizing needs besides."""
    (tokens, cols), kind = x.shape, precision(x.dtype)
    smoothed, rank = smooth is not None, down.shape[0]
    launch = _projection(tokens, cols, x.stride(0), rank, smoothed, kind, aside, held, x.device)
    launch(scratch, x, smooth, down)


@kept
def _projection(
    tokens: int, cols: int, x_stride: int, rank: int, smooth: bool, precision: str, aside: bool, held: bool,
    device: torch.device,
) -> Launch:  # fmt: skip
    parts, span = parts_of(cols, held)
    constants: dict[str, object] = {"SMOOTH": smooth, "RANK": padded_rank(rank), "ASIDE": aside}
    constants |= overlapping("project", cols, device)
    if held:
        blocks = cdiv(tokens, HELD["TOKENS"])
        turns = cdiv(blocks, max(1, HELD_PROGRAMS // parts))
        grid = cdiv(blocks, turns), parts
        return Launch(project_held_kernel, grid, (tokens, cols, x_stride, rank), {**constants, **HELD})
    grid = cdiv(tokens, PROJECT["TOKENS"]) + aside, parts
    constants["PRECISION"] = precision
    return Launch(project_kernel, grid, (tokens, cols, x_stride, span, rank), {**constants, **PROJECT})


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
    (tokens, cols), rank = x.shape, padded_rank(down.shape[0])
    wide = cols + 4 * rank if append else cols
    codes = torch.empty(tokens, wide, dtype=code_type(grid), device=x.device)
    row_scale = torch.empty(tokens, dtype=torch.float32, device=x.device)
    projected = None if append else torch.empty(tokens, rank, dtype=x.dtype, device=x.device)
    gains = torch.empty(rank, dtype=torch.float32, device=x.device) if append else None
    held = holds(x, len(down))
    parts, _ = parts_of(cols, held)
    room = scratch_size(tokens, cols, rank, parts)
    scratch = torch.empty(room, dtype=torch.float32, device=x.device)
    _project(x, down, smooth, scratch, held=held, aside=True)
    launch = _quantization_of_parts(
        tokens, cols, x.stride(0), wide, bits, grid, group, largest_k, smooth is not None, rank, append,
        parts, x.device,
    )  # fmt: skip
    launch(codes, row_scale, projected, gains, x, scratch)
    last = gains if projected is None else projected
    assert last is not None
    return codes, row_scale, last


@kept
def _quantization_of_parts(
    tokens: int, cols: int, x_stride: int, out_stride: int, bits: int, grid: str, group: int, largest_k: int,
    smooth: bool, rank: int, append: bool, parts: int, device: torch.device,
) -> Launch:  # fmt: skip
    constants = {
        "BITS": bits, "GRID": grid, "GROUP": group, "LARGEST_K": largest_k, "SMOOTH": smooth, "RANK": rank,
        "PARTS": parts, "PARTS_HELD": next_power_of_2(parts), "APPEND": append,
        **overlapping("scaled", cols, device), **SCALED,
    }  # fmt: skip
    programs = (cdiv(cols, SCALED["COLS"]) + 1) * cdiv(tokens, SCALED["TOKENS"])
    return Launch(scaled_kernel, (programs, 1), (tokens, cols, x_stride, out_stride), constants)
