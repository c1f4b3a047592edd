"""Milliseconds of one denoising step of several models, in turns within one process."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.measure.latency import median_ratio, time_ms
from harness.truesize.walk import chain_blocks

RECOMPILE_LIMIT = 256
_CLOCKS = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "clocks_throttle_reasons.active",
)


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


def times_in_turns(
    steps: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """Time several functions in turns, so that heat and other load meet all alike.

    Every round runs each once; the order is rotated from round to round and reversed every other one.

    Args:
        steps: one denoising step by name of the model.
        device: where they run.
        rounds: timed runs of each, at least 1.
        warm_up: untimed runs of each before.

    Returns:
        Milliseconds by name, in order of the rounds.
    """
    names = list(steps)
    for _ in range(warm_up):
        for name in names:
            steps[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        order = names[start:] + names[:start]
        for name in order if turn % 2 == 0 else reversed(order):
            times[name].append(time_ms(steps[name], device))
    return times


def against(times: Mapping[str, list[float]], reference: str) -> dict[str, StepTime]:
    """Summarise times; speed-ups are over `reference`, round by round."""
    base, found = times[reference], {}
    for name, values in times.items():
        lo, median, hi = np.percentile(np.asarray(values), [25, 50, 75])
        ratio = median_ratio([b / v for b, v in zip(base, values, strict=True)])
        found[name] = StepTime(float(median), float(lo), float(hi), ratio.median, ratio.lo, ratio.hi)
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


def clocks() -> dict[str, str] | None:
    """Return clocks, temperature, power and throttling of the first GPU by nvidia-smi; None without it."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in answer.stdout.strip().split(",")]
    return dict(zip(_CLOCKS, values, strict=False))
