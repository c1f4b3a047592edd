"""Milliseconds of one denoising step of several models, and compiling them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from harness.measure.latency import median_ratio, quartiles
from harness.truesize.walk import chain_blocks

RECOMPILE_LIMIT = 256


@dataclass(frozen=True)
class StepTime:
    """Times of one model.

    Attributes:
        median: milliseconds.
        lo: first quartile.
        hi: third quartile.
        speedup: median over rounds of the reference's time by this one's, both of one round; above 1 this
            model is faster.
        speedup_lo: lower end of its distribution-free 95 % interval.
        speedup_hi: upper end.
    """

    median: float
    lo: float
    hi: float
    speedup: float
    speedup_lo: float
    speedup_hi: float


def against(times: Mapping[str, Sequence[float]], reference: str) -> dict[str, StepTime]:
    """Summarise times; speed-ups are over `reference`, round by round."""
    base, found = times[reference], {}
    for name, values in times.items():
        spread = quartiles(values)
        ratio = median_ratio([b / v for b, v in zip(base, values, strict=True)])
        found[name] = StepTime(spread.median, spread.lo, spread.hi, ratio.median, ratio.lo, ratio.hi)
    return found


def compile_blocks(denoiser: Any) -> str:
    """Compile the repeated blocks of a denoiser in place, whole graphs only; return what was compiled.

    One graph then serves all blocks of a class (diffusers' `compile_repeated_blocks`, or the same for a
    transformer that names no such blocks).
    """
    config: Any = importlib.import_module("torch._dynamo.config")
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, limit, RECOMPILE_LIMIT)
    if getattr(denoiser, "_repeated_blocks", None):
        denoiser.compile_repeated_blocks(fullgraph=True)
        return f"repeated blocks: {', '.join(denoiser._repeated_blocks)}"
    blocks: list[nn.Module] = [denoiser.get_submodule(name) for name in chain_blocks(denoiser)]
    for block in blocks:
        block.compile(fullgraph=True)  # type: ignore[no-untyped-call]
    return f"repeated blocks: {', '.join(sorted({type(block).__name__ for block in blocks}))}"
