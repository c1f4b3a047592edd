"""Launching the weight-only product of one token."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.kernels.triton.inputs import can_overlap
from harness.kernels.triton.project import project_one_kernel
from harness.kernels.triton.ready import Launch, cdiv, kept
from harness.kernels.triton.single import ROWS_FIRST, single_kernel
from harness.kernels.triton.token import LANES, RUN

CHUNK = LANES.value * RUN.value
"""Columns that a warp reads at once."""
MOST_CHUNKS = 4
"""Chunks that are asked for together: a warp holds their part of the token."""
PROGRAMS = 132
"""Programs that walk over rows, one for each processor of a Hopper; more where rows are too long to hold."""
PROJECT_ONE = {"PIECES": 4, "COLS": 128, "num_warps": 4}
SINGLE = {4: {"WARPS": 8, "ROWS": 2}, 3: {"WARPS": 8, "ROWS": 2}, 2: {"WARPS": 8, "ROWS": 2}}
"""How kernels cut their work, by their own names."""
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
    cols, outs = x.shape[1], packed.shape[0]
    words = packed.view(torch.int32)
    rank = 0 if down is None else down.shape[0]
    project, multiply = _launches(
        outs, cols, words.shape[1], scale.numel() // outs, bits, group, zero is not None, fixed_offset,
        bias is not None, smooth is not None, rank, x.is_cuda, can_overlap(x.device),
    )  # fmt: skip
    projected = None
    if project is not None:
        projected = x.new_empty(project.grid[0] * project.constants["RANK"], dtype=torch.float32)
        project(projected, x, smooth, down)
    out = x.new_empty(1, outs)
    multiply(out, x, smooth, projected, words, scale, zero, bias, up)
    return out


@kept
def _launches(
    outs: int, cols: int, row_words: int, groups: int, bits: int, group: int, stored: bool,
    fixed_offset: float, bias: bool, smooth: bool, rank: int, native: bool, overlap: bool,
) -> tuple[Launch | None, Launch]:  # fmt: skip
    """Project, where there is a branch, and multiply."""
    both: dict[str, object] = {"SMOOTH": smooth, "RANK": cdiv(rank or 1, LANES.value) * LANES.value}
    both |= {"OVERLAP": overlap, **({"launch_pdl": True} if overlap else {})}
    parts = cdiv(cols, PROJECT_ONE["PIECES"] * PROJECT_ONE["COLS"])
    project = Launch(project_one_kernel, (parts, 1), (cols, rank), {**both, **PROJECT_ONE}) if rank else None
    chunks, at_once = cdiv(cols, CHUNK), SINGLE[bits]["WARPS"] * SINGLE[bits]["ROWS"]
    long = chunks > MOST_CHUNKS
    steps = cdiv(chunks, MOST_CHUNKS) if long else cdiv(outs, at_once * PROGRAMS)
    each = cdiv(chunks, steps) if long else chunks
    constants = {
        **both, "BITS": bits, "PER": WHOLE_ROW if group >= cols else group // RUN.value, "STORED": stored,
        "OFFSET": int(fixed_offset), "BIAS": bias, "BRANCH": rank > 0, "PARTS": parts,
        "EVEN": cols == (steps if long else 1) * each * CHUNK, "NATIVE": native, "FLIP": ROWS_FIRST.value,
        "LONG": long, "CHUNKS": each, **SINGLE[bits], "num_warps": SINGLE[bits]["WARPS"],
    }  # fmt: skip
    programs = cdiv(outs, at_once * (1 if long else steps))
    numbers = (outs, cols, row_words, groups, steps, rank)
    return project, Launch(single_kernel, (programs, 1), numbers, constants)
