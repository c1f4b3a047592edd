"""Launching the weight-only products of one token and of several that are held."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from harness.kernels.expansion import CODES_PER_SLOT
from harness.kernels.triton.inputs import overlap_options
from harness.kernels.triton.project import project_one_kernel
from harness.kernels.triton.ready import Launch, cdiv, from_hopper, kept, next_power_of_2
from harness.kernels.triton.several import GROUP, ROWS, several_kernel
from harness.kernels.triton.several import LANES as SHARING
from harness.kernels.triton.single import ROWS_FIRST, single_kernel
from harness.kernels.triton.token import LANES, RUN

CHUNK = LANES.value * RUN.value
"""Columns that a warp reads at once."""
MOST_CHUNKS = 4
"""Chunks that are asked for together: a warp holds their part of the token."""
MOST_ROWS = 6
"""Rows that a warp asks for together: of as many chunks as that, half of them, for want of registers."""
PROGRAMS = 264
"""Programs that walk over rows that are held whole: two for each processor of a Hopper."""
PROJECT_ONE = {"PIECES": 4, "COLS": 128, "num_warps": 4}
SINGLE = {"WARPS": 4, "maxnreg": 255}
SEVERAL = {"WARPS": 8, "STAGES": 3}
"""How kernels cut their work, by their own names: the fastest measured on an H200 (docs/performance.md)."""
HOLDING_PROGRAMS = 132
"""Programs that hold tokens: one for each processor."""
MOST_TOKENS = 16
"""Tokens that are held."""
MOST_COLS = 3072
"""Columns up to which they are: 96 registers of a thread."""
COPIED = 16
"""Bytes of which rows are made that are copied by descriptor."""
WHOLE_ROW = 1 << 30
"""Lanes that share a scale where a row has one."""


def single(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bits: int,
    *,
    group: int,
    zero: Tensor | None = None,
    fixed_offset: float = 0.0,
    bias: Tensor | None = None,
    smooth: Tensor | None = None,
    down: Tensor | None = None,
    up: Tensor | None = None,
) -> Tensor:
    """Multiply one token [1, cols], of 16 bits, with packed rows, and add its branch: [1, outs].

    `group` columns share a scale, all of a row where there are no fewer. `smooth` divides the token.
    """
    (outs, row_bytes), device = packed.shape, x.device
    project, multiply = _launches(
        outs, x.shape[1], row_bytes, scale.numel(), bits, group, zero is not None, fixed_offset,
        bias is not None, smooth is not None, 0 if down is None else down.shape[0], device,
    )  # fmt: skip
    out = x.new_empty(1, outs)
    projected = None
    if project is not None:
        projected = x.new_empty(project.grid[0] * project.constants["RANK"], dtype=torch.float32)
        project(projected, x, smooth, down)
    multiply(out, projected, x, smooth, packed, scale, zero, bias, up)
    return out


@kept
def _launches(
    outs: int, cols: int, row_bytes: int, scales: int, bits: int, group: int, stored: bool,
    fixed_offset: float, bias: bool, smooth: bool, rank: int, device: torch.device,
) -> tuple[Launch | None, Launch]:  # fmt: skip
    """Project, where there is a branch, and multiply."""
    both: dict[str, object] = {"SMOOTH": smooth, "RANK": cdiv(rank or 1, LANES.value) * LANES.value}
    both |= overlap_options(from_hopper(device))
    parts = cdiv(cols, PROJECT_ONE["PIECES"] * PROJECT_ONE["COLS"])
    project = None
    if rank:
        project = Launch(project_one_kernel, (parts, 1), (cols, rank), {**both, **PROJECT_ONE}, fresh=1)
    chunks = cdiv(cols, CHUNK)
    long = chunks > MOST_CHUNKS
    parts_of_row = cdiv(chunks, MOST_CHUNKS)
    each, warps = cdiv(chunks, parts_of_row), SINGLE["WARPS"] * PROGRAMS
    most = MOST_ROWS if each < MOST_CHUNKS else MOST_ROWS // 2
    steps = parts_of_row if long else cdiv(outs, warps * most)
    rows = min(most, cdiv(outs, warps * (1 if long else steps)))
    at_once = SINGLE["WARPS"] * rows
    constants = {
        **both, "BITS": bits, "PER": WHOLE_ROW if group >= cols else group // RUN.value, "STORED": stored,
        "OFFSET": int(fixed_offset), "BIAS": bias, "BRANCH": rank > 0, "PARTS": parts,
        "EVEN": cols == (steps if long else 1) * each * CHUNK, "NATIVE": device.type == "cuda",
        "FLIP": ROWS_FIRST.value, "LONG": long, "CHUNKS": each, "ROWS": rows,
        **SINGLE, "num_warps": SINGLE["WARPS"],
    }  # fmt: skip
    programs = cdiv(outs, at_once * (1 if long else steps))
    numbers = (outs, cols, row_bytes // 4, scales // outs, steps, rank)
    read_as = {4: torch.int32}
    fresh = 1 + (rank > 0)
    return project, Launch(single_kernel, (programs, 1), numbers, constants, read_as=read_as, fresh=fresh)


def holds_tokens(x: Tensor, rows: Iterable[Tensor | None], group: int) -> bool:
    """Whether `several` takes tokens [tokens, cols], and a weight of these codes, scales and zero points.

    On a GPU it takes bfloat16 alone: float16 has not the exponents for inputs that are lifted.
    """
    cols = x.shape[1]
    if len(x) > MOST_TOKENS or cols > MOST_COLS or group != GROUP.value or cols % group:
        return False
    if x.is_cuda and x.dtype != torch.bfloat16:
        return False
    place = x.get_device()
    return all(
        each is None
        or (
            each.get_device() == place
            and each.is_contiguous()
            and not (each.data_ptr() % COPIED or each.stride(0) * each.element_size() % COPIED)
        )
        for each in rows
    )


def several(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bits: int,
    *,
    zero: Tensor | None = None,
    fixed_offset: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply tokens [tokens, cols] that `holds_tokens` takes with packed rows: [tokens, outs]."""
    (tokens, cols), outs = x.shape, len(packed)
    launch = _several(tokens, outs, cols, bits, zero is not None, fixed_offset, bias is not None, x.device)
    held = launch.constants["HELD"] * launch.constants["WARPS"]
    rows, words, of = ROWS.value, packed.view(torch.int16), TensorDescriptor.from_tensor
    out = x.new_empty(tokens, outs)
    launch(
        out, x,
        of(words, [rows, held * GROUP.value // CODES_PER_SLOT[bits]]),
        of(words, [rows, held * SHARING.value]) if bits == 3 else None,
        of(scale, [rows, held]), None if zero is None else of(zero, [rows, held]), bias,
    )  # fmt: skip
    return out


@kept
def _several(
    tokens: int, outs: int, cols: int, bits: int, stored: bool, fixed_offset: float, bias: bool,
    device: torch.device,
) -> Launch:  # fmt: skip
    tiles = cdiv(outs, ROWS.value)
    steps = cdiv(tiles, HOLDING_PROGRAMS)
    chunks = cdiv(cols, GROUP.value * SEVERAL["WARPS"])
    constants = {
        "BITS": bits, "CODES": CODES_PER_SLOT[bits], "STORED": stored, "OFFSET": int(fixed_offset),
        "BIAS": bias, "NATIVE": device.type == "cuda", **overlap_options(from_hopper(device)),
        "TOKENS": 8 if tokens <= 8 else MOST_TOKENS, "CHUNKS": chunks, "HELD": next_power_of_2(chunks),
        **SEVERAL, "num_warps": SEVERAL["WARPS"],
    }  # fmt: skip
    plane = cols // CODES_PER_SLOT[bits]
    numbers = (tokens, outs, cols, plane, steps)
    return Launch(several_kernel, (cdiv(tiles, steps), 1), numbers, constants, fresh=1)
