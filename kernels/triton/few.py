"""Launching the weight-only product of one token."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.kernels.triton.inputs import can_overlap
from harness.kernels.triton.ready import Launch, cdiv, kept
from harness.kernels.triton.single import LANES, ROWS_FIRST, RUN, single_kernel, split_kernel

CHUNK = LANES.value * RUN.value
"""Columns that a warp reads at once."""
MOST_CHUNKS = 4
"""Chunks that are asked for before the first is used."""
SPLIT = {"AT_ONCE": 16, "num_warps": 4}
SINGLE = {4: {"ROWS": 16, "num_warps": 4}, 3: {"ROWS": 16, "num_warps": 4}, 2: {"ROWS": 8, "num_warps": 4}}
"""How kernels cut their work, by their own names: the fastest measured on an H200 (docs/performance.md)."""
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
    split, multiply = _launches(
        outs, cols, words.shape[1], scale.numel() // outs, bits, group, zero is not None, fixed_offset,
        bias is not None, smooth is not None, rank, x.is_cuda, can_overlap(x.device),
    )  # fmt: skip
    programs = split.grid[0]
    lanes = programs * SPLIT["AT_ONCE"]
    halves = x.new_empty(16 * lanes, dtype=torch.int32)
    unit = x.new_empty(lanes, dtype=torch.float32)
    total = x.new_empty(lanes, dtype=torch.int32)
    projected = x.new_empty(programs * split.constants["RANK"], dtype=torch.float32) if rank else None
    out = x.new_empty(1, outs)
    split(halves, unit, total, projected, x, smooth, down)
    multiply(out, halves, unit, total, projected, words, scale, zero, bias, up)
    return out


@kept
def _launches(
    outs: int, cols: int, row_words: int, groups: int, bits: int, group: int, stored: bool,
    fixed_offset: float, bias: bool, smooth: bool, rank: int, native: bool, overlap: bool,
) -> tuple[Launch, Launch]:  # fmt: skip
    """Make a token integers, and multiply."""
    chunks = cdiv(cols, CHUNK)
    turns = cdiv(chunks, MOST_CHUNKS)
    each = cdiv(chunks, turns)
    programs = turns * each * LANES.value // SPLIT["AT_ONCE"]
    both = {
        "BITS": bits,
        "BRANCH": rank > 0,
        "RANK": cdiv(rank or 1, LANES.value) * LANES.value,
        "OVERLAP": overlap,
    }
    if overlap:
        both["launch_pdl"] = True
    split = Launch(split_kernel, (programs, 1), (cols, rank), {**both, "SMOOTH": smooth, **SPLIT})
    constants = {
        **both, "PER": WHOLE_ROW if group >= cols else group // RUN.value, "STORED": stored,
        "OFFSET": int(fixed_offset), "BIAS": bias, "PARTS": programs,
        "EVEN": cols == turns * each * CHUNK, "NATIVE": native, "FLIP": ROWS_FIRST.value, "CHUNKS": each,
        **SINGLE[bits],
    }  # fmt: skip
    numbers = (outs, cols, row_words, groups, turns, rank)
    return split, Launch(single_kernel, (cdiv(outs, SINGLE[bits]["ROWS"]), 1), numbers, constants)
