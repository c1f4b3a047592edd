"""Down-projection of activations, in parts of their channels, and what quantizing them needs to know first.

Two kernels for one result. `project_held_kernel` holds a part of the factor and walks over tokens, so that
the factor is smoothed once for many of them. That takes inputs of 16 bits, and Hopper's tensor cores, which
read what is held from shared memory. `project_kernel`, for all else, walks over channels. One token that is
not quantized has a kernel of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def after_others(OVERLAP: tl.constexpr):
    """Wait for the kernels before, then let the next one begin, where kernels may overlap.

    In this order in every kernel that another may follow which reads without waiting: what is older than the
    kernel directly before is then complete. Nothing may be written before: memory is given to others as soon
    as its last reader is launched.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def places_in(scratch, tokens, cols, parts, RANK: tl.constexpr):
    """Return where in float32 scratch a projection puts what: the numbers of `scratch_size`.

    In this order all but the last begin at multiples of 16 bytes whatever the number of tokens.

    Returns:
        partial [parts, tokens, RANK], norms [parts, RANK], inverses [cols], peaks [parts, tokens].
    """
    norms = scratch + tl.cast(tokens, tl.int64) * parts * RANK
    inverses = norms + parts * RANK
    return scratch, norms, inverses, inverses + cols


@triton.jit
def source_of(x, ahead, x_stride, ahead_stride, ahead_cols, col, AHEAD: tl.constexpr):
    """Return where the channels from `col` on lie: at or behind a first element, and how rows follow.

    Args:
        x: [tokens, channels from `ahead_cols` on].
        ahead: [tokens, ahead_cols], the channels before, with `AHEAD`; rows `ahead_stride` apart.
        col: a scalar. All channels that are meant are on one side of `ahead_cols`.

    Returns:
        first element, row stride, channel of the first element, whether they are of x.
    """
    if AHEAD:
        ours = col >= ahead_cols
        base = tl.multiple_of(tl.where(ours, x, ahead), 16)
        stride = tl.multiple_of(tl.where(ours, x_stride, ahead_stride), 16)
        return base, stride, tl.multiple_of(tl.where(ours, ahead_cols, 0), 16), ours
    else:
        return x, x_stride, 0, True


@triton.jit
def gelu(x, NATIVE: tl.constexpr):
    """Return GELU by its approximation with tanh: `x / 2 * (1 + tanh(u))`, which is `x / (1 + exp(-2 u))`."""
    # Two to this power is e to the -2 u; u is the root of 2 / pi times the sum of x and 0.044715 x cubed.
    power = x * (-2.302208198144325 - 0.1029432397 * x * x)
    # Triton's own make several instructions of an exponential and more of a division; and what is called pure
    # is worked out again for each way values are spread over threads.
    if NATIVE:
        return x * tl.inline_asm_elementwise(
            "{ .reg .f32 t; ex2.approx.ftz.f32 t, $1; add.f32 t, t, 0f3F800000; rcp.approx.ftz.f32 $0, t; }",
            "=f,f", [power], dtype=tl.float32, is_pure=False, pack=1,
        )  # fmt: skip
    else:
        return x / (1.0 + tl.exp2(power))


@triton.jit
def project_kernel(
    scratch, x, smooth, down,
    tokens, cols, x_stride, span, rank,
    SMOOTH: tl.constexpr, RANK: tl.constexpr, PRECISION: tl.constexpr, ASIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
    TOKENS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Low-rank down-projection `x / smooth @ down.T`, and the tokens' magnitudes, in parts of the channels.

    Args:
        scratch: float32, see `places_in`; the second axis of the grid is the part.
            partial: summed by whoever reads it, in order, so that the result is the same every time. Zero
            from `rank` on: a tensor core multiplies no fewer than 16, and blocks have powers of two.
            peaks: largest |x / smooth|, infinite where x is and blind to NaN; with `ASIDE`.
            norms: sum of the magnitudes of each row of `down`; with `ASIDE`, for which the grid has one block
            of tokens more.
            inverses: `1 / smooth`; with `ASIDE`, too.
        x: [tokens, cols], rows `x_stride` apart.
        smooth: float16 [cols], with `SMOOTH`; it divides the factor here, which has fewer elements than x.
        down: float16 [rank, cols].
        span: channels per part, a multiple of COLS.
        OVERLAP: whether the kernel after this one may begin before it ends.
    """
    after_others(OVERLAP)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here = token < tokens
    direction = tl.arange(0, RANK)
    partial, norms, inverses, peaks = places_in(scratch, tokens, cols, tl.num_programs(1), RANK)
    first = tl.program_id(1) * span
    last = tl.minimum(first + span, cols)
    if ASIDE and tl.program_id(0) * TOKENS >= tokens:
        norm = tl.zeros((RANK,), tl.float32)
        for offset in range(first, last, COLS):
            col = offset + tl.arange(0, COLS)
            held = (direction < rank)[:, None] & (col < cols)[None, :]
            factor = tl.load(down + direction[:, None] * cols + col[None, :], mask=held, other=0.0)
            norm += tl.sum(tl.abs(factor.to(tl.float32)), axis=1)
            if SMOOTH:
                divisor = tl.load(smooth + col, mask=col < cols, other=1.0).to(tl.float32)
                tl.store(inverses + col, tl.math.div_rn(1.0, divisor), mask=col < cols)
        tl.store(norms + tl.program_id(1) * RANK + direction, norm)
    else:
        start = x + token.to(tl.int64)[:, None] * x_stride
        product = tl.zeros((TOKENS, RANK), tl.float32)
        peak = tl.zeros((TOKENS,), tl.float32)
        for offset in range(first, last, COLS):
            col = offset + tl.arange(0, COLS)
            values = tl.load(start + col[None, :], mask=here[:, None] & (col < cols)[None, :], other=0.0)
            held = (direction < rank)[None, :] & (col < cols)[:, None]
            factor = tl.load(down + direction[None, :] * cols + col[:, None], mask=held, other=0.0)
            factor = factor.to(tl.float32)
            inverse = tl.full((COLS,), 1.0, tl.float32)
            if SMOOTH:
                divisor = tl.load(smooth + col, mask=col < cols, other=1.0).to(tl.float32)
                inverse = tl.math.div_rn(1.0, divisor)
                factor *= inverse[:, None]
            if ASIDE:
                smoothed = values.to(tl.float32) * inverse[None, :]
                peak = tl.maximum(peak, tl.max(tl.abs(smoothed), axis=1))
            if PRECISION == "ieee":
                product = tl.dot(values.to(tl.float32), factor, product, input_precision="ieee")
            else:
                product = tl.dot(values, factor.to(values.dtype), product)
        where = (tl.program_id(1).to(tl.int64) * tokens + token)[:, None] * RANK + direction[None, :]
        tl.store(partial + where, product, mask=here[:, None])
        if ASIDE:
            tl.store(peaks + tl.program_id(1).to(tl.int64) * tokens + token, peak, mask=here)


@triton.jit
def project_held_kernel(
    scratch, whole, x, ahead, smooth, down,
    tokens, cols, x_stride, ahead_stride, ahead_cols, rank,
    AHEAD: tl.constexpr, GELU: tl.constexpr, NATIVE: tl.constexpr,
    SMOOTH: tl.constexpr, RANK: tl.constexpr, ASIDE: tl.constexpr, OVERLAP: tl.constexpr,
    TOKENS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Do what `project_kernel` does, a part being COLS channels: held, while the tokens pass by.

    Args:
        scratch: see `project_kernel`, and the others; with `ASIDE` everything, else `partial` alone.
        whole: [tokens, cols], of the type of x, with `AHEAD` or `GELU`: the input in one piece, activated.
        ahead: with `AHEAD`, see `source_of`; `ahead_cols` is a multiple of COLS.
        GELU: whether x is given before that activation, which `ahead` is never.
        NATIVE: whether there are a GPU's instructions; Triton's interpreter has none.
        OVERLAP: whether the kernel after this one may begin before it ends.
    """
    partial, norms, inverses, peaks = places_in(scratch, tokens, cols, tl.num_programs(1), RANK)
    part = tl.program_id(1)
    direction = tl.arange(0, RANK)
    col = part * COLS + tl.arange(0, COLS)
    inside = col < cols
    held = (direction < rank)[None, :] & inside[:, None]
    factor = tl.load(down + direction[None, :] * cols + col[:, None], mask=held, other=0.0).to(tl.float32)
    norm = factor
    inverse = tl.full((COLS,), 1.0, tl.float32)
    if SMOOTH:
        inverse = tl.math.div_rn(1.0, tl.load(smooth + col, mask=inside, other=1.0).to(tl.float32))
        factor *= inverse[:, None]
    factor = factor.to(x.dtype.element_ty)
    after_others(OVERLAP)
    if ASIDE and tl.program_id(0) == tl.num_programs(0) - 1:
        tl.store(norms + part * RANK + direction, tl.sum(tl.abs(norm), axis=0))
        if SMOOTH:
            tl.store(inverses + col, inverse, mask=inside)
    token = tl.arange(0, TOKENS)
    base, stride, before, ours = source_of(x, ahead, x_stride, ahead_stride, ahead_cols, part * COLS, AHEAD)
    offset = token[:, None] * stride + (col - before)[None, :]
    for first in range(tl.program_id(0) * TOKENS, tokens, tl.num_programs(0) * TOKENS):
        here = first + token < tokens
        start = base + tl.cast(first, tl.int64) * stride
        values = tl.load(start + offset, mask=here[:, None] & inside[None, :], other=0.0)
        if GELU:  # noqa: SIM102
            if ours:  # a branch at run time, not two conditions
                values = gelu(values.to(tl.float32), NATIVE).to(values.dtype)
        if AHEAD or GELU:
            goal = whole + tl.cast(first, tl.int64) * cols + token[:, None] * cols + col[None, :]
            tl.store(goal, values, mask=here[:, None] & inside[None, :])
        product = tl.dot(values, factor)
        place = part.to(tl.int64) * tokens + first
        target = partial + place * RANK + token[:, None] * RANK + direction[None, :]
        tl.store(target, product, mask=here[:, None])
        if ASIDE:
            smoothed = values.to(tl.float32) * inverse[None, :]
            tl.store(peaks + place + token, tl.max(tl.abs(smoothed), axis=1), mask=here)


@triton.jit
def project_one_kernel(
    projected, x, smooth, down,
    cols, rank,
    SMOOTH: tl.constexpr, RANK: tl.constexpr, OVERLAP: tl.constexpr, PIECES: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Project a token for its branch, a program per PIECES * COLS columns.

    Args:
        projected: float32 [programs, RANK]: `x / smooth @ down.T` of the program's columns.
        x: [cols].
        smooth: float16 [cols], with `SMOOTH`: divides x.
        down: float16 [rank, cols].
        OVERLAP: whether the kernels before and after may overlap with this one.
    """
    after_others(OVERLAP)  # in that order: the product reads its weight without waiting
    direction = tl.arange(0, RANK)
    part = tl.zeros((RANK,), tl.float32)
    for piece in tl.static_range(PIECES):
        col = (tl.program_id(0) * PIECES + piece) * COLS + tl.arange(0, COLS)
        held = (direction < rank)[:, None] & (col < cols)[None, :]
        rows = tl.load(down + direction[:, None] * cols + col[None, :], mask=held, other=0.0)
        value = tl.load(x + col, mask=col < cols, other=0.0).to(tl.float32)
        if SMOOTH:
            value *= 1.0 / tl.load(smooth + col, mask=col < cols, other=1.0).to(tl.float32)
        part += tl.sum(rows.to(tl.float32) * value[None, :], axis=1)
    tl.store(projected + tl.program_id(0) * RANK + direction, part)
