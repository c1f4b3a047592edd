"""Times of several functions measured in turns: warm-up, rotation, CUDA graphs, paired ratios.

A packed layer fits in the L2 cache of a large GPU, where a model's layers never are when their turn comes.
Every contestant therefore brings several copies of what it reads; one repetition runs over all of them, and
its time is divided by their number. The repetitions of all contestants are interleaved (A B C, B C A, ...),
so that clocks, heat and other load meet all alike, and ratios are formed by repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness.measure.latency import Quartiles, Ratio, quartiles, time_ms

ROTATED_BYTES = 200 * 10**6
"""Bytes a repetition reads at least, several times the 50 to 60 MB of L2 of an H100 or H200."""
MOST_COPIES = 64
RESAMPLES = 2000

Call = Callable[[], object]


@dataclass(frozen=True)
class Contestant:
    """Something that is timed.

    Attributes:
        name: unique within a race.
        calls: one function per copy of inputs and weights.
        graph: capture all calls in one CUDA graph and time its replay; elsewhere than on CUDA, call them.
    """

    name: str
    calls: tuple[Call, ...]
    graph: bool = False


@dataclass(frozen=True)
class Times:
    """What a race found of one contestant.

    Attributes:
        ms: milliseconds of one call, a value per repetition, in order; empty when it could not be run.
        reason: why not, one line; else empty.
    """

    ms: tuple[float, ...]
    reason: str = ""

    @property
    def quartiles(self) -> Quartiles | None:
        """Median and quartiles, None when it could not be run."""
        return quartiles(self.ms) if self.ms else None


def copies_needed(bytes_per_copy: int, rotated: int = ROTATED_BYTES) -> int:
    """Return how many copies together have at least `rotated` bytes, at most `MOST_COPIES`."""
    return max(1, min(MOST_COPIES, -(-rotated // max(1, bytes_per_copy))))


def race(
    contestants: Sequence[Contestant],
    device: torch.device | str,
    *,
    repetitions: int = 50,
    warm_up: int = 3,
) -> dict[str, Times]:
    """Time contestants in turns.

    Args:
        contestants: names are unique. One that raises is left out of the repetitions, with its reason.
        device: where they run; on CUDA times are taken by events, elsewhere by the clock.
        repetitions: timed runs of each over all its copies, at least 1. Repetition r begins with contestant
            r modulo their number.
        warm_up: untimed runs of each before, at least 1 (kernels are compiled and tuned in the first).

    Returns:
        Times by name, in the order given.

    Raises:
        ValueError: too few repetitions or warm-up runs, or two contestants of one name.
    """
    if repetitions < 1 or warm_up < 1:
        raise ValueError(f"at least one repetition and one warm-up, not {repetitions} and {warm_up}")
    if len({one.name for one in contestants}) != len(contestants):
        raise ValueError("two contestants have one name")
    ready: list[tuple[Contestant, Call]] = []
    found = {one.name: Times(()) for one in contestants}
    for one in contestants:
        try:
            ready.append((one, prepare(one, device, warm_up)))
        except Exception as error:  # a library that cannot run this is a row without a time
            found[one.name] = Times((), one_line(error))
    taken: dict[str, list[float]] = {one.name: [] for one, _ in ready}
    for turn in range(repetitions):
        shift = turn % len(ready) if ready else 0
        for one, run in (*ready[shift:], *ready[:shift]):
            taken[one.name].append(time_ms(run, device) / len(one.calls))
    return {**found, **{name: Times(tuple(ms)) for name, ms in taken.items()}}


def prepare(contestant: Contestant, device: torch.device | str, warm_up: int) -> Call:
    """Warm a contestant up and return the function that runs all its calls once, as a graph where asked.

    Everything a captured call reads must outlive the returned function.
    """

    def every_call() -> None:
        for call in contestant.calls:
            call()

    where = torch.device(device)
    for _ in range(warm_up):
        every_call()
    if where.type != "cuda" or not contestant.graph:
        _settle(where)
        return every_call
    with torch.cuda.device(where):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            every_call()  # libraries allocate their workspaces per stream
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            every_call()
        graph.replay()
        torch.cuda.synchronize()
    return graph.replay


def _settle(device: torch.device) -> None:
    """Wait for the device, so that an error of a warm-up run is raised there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paired_ratio(theirs: Sequence[float], ours: Sequence[float], seed: int = 0) -> Ratio:
    """Return how many times faster `ours` is: the ratio of medians, with a bootstrap interval of 95 %.

    Repetitions are resampled in pairs, since the two times of one repetition share clocks and heat
    (percentile bootstrap, Efron and Tibshirani 1993, chapter 13).

    Args:
        theirs: milliseconds per repetition.
        ours: milliseconds of the same repetitions.
        seed: of the resampling.

    Raises:
        ValueError: no repetitions, or a different number.
    """
    a, b = np.asarray(theirs, dtype=np.float64), np.asarray(ours, dtype=np.float64)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"{a.size} and {b.size} repetitions make no pairs")
    picks = np.random.default_rng(seed).integers(0, a.size, (RESAMPLES, a.size))
    ratios = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
    lo, hi = np.percentile(ratios, [2.5, 97.5])
    return Ratio(float(np.median(a) / np.median(b)), float(lo), float(hi))


def one_line(error: BaseException) -> str:
    """Return an exception as one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__
