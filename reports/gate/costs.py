"""Memory and latency of a cell against its baseline, and of benchmarks against theirs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.reports.record import Record

MEMORY_GROWTH = 0.01
"""Growth of stored or peak bytes that is still let through."""
LATENCY_GROWTH = 0.10
"""Growth of a step's time, relative to the reference's measured in turns with it, that is let through."""
_FEWEST = 5
"""Benchmarks from which the speed of the machine is told."""


@dataclass(frozen=True)
class Cost:
    """One cost that was compared.

    Attributes:
        name: which.
        new: its value now.
        base: its value in the baseline.
        growth: relative growth that counts: for times the least that both intervals allow.
        bound: growth that is let through.
    """

    name: str
    new: float
    base: float
    growth: float
    bound: float

    @property
    def fails(self) -> bool:
        """Whether it grew beyond its bound."""
        return self.growth > self.bound


def compare_memory(new: Record, base: Record) -> list[Cost]:
    """Return the bytes that both records hold. Peak bytes count only on the same kind of device."""
    pairs = {
        "weight bytes": (new.result.weight_bytes, base.result.weight_bytes),
        "checkpoint bytes": (new.result.checkpoint_bytes, base.result.checkpoint_bytes),
    }
    if new.identity.device == base.identity.device:
        pairs["peak bytes"] = (new.measured.peak_bytes, base.measured.peak_bytes)
    return [Cost(name, a, b, (a - b) / b, MEMORY_GROWTH) for name, (a, b) in pairs.items() if a and b]


def compare_latency(new: Record, base: Record, bound: float = LATENCY_GROWTH) -> Cost | None:
    """Compare how many times the reference's step a step takes.

    Each ratio is a median over rounds in which cell and reference were timed one right after the other, with
    a 95 % interval. The growth counted is that of the new interval's lower end over the old one's upper end:
    what is left when both are given the benefit of the doubt.

    Returns:
        None when either record lacks its ratio, or they were taken on different kinds of device or backends.
    """
    ours, theirs = new.measured, base.measured
    same = all(getattr(new.identity, k) == getattr(base.identity, k) for k in ("device", "backend"))
    if not same or ours.step_ratio is None or theirs.step_ratio is None:
        return None
    lo = ours.step_ratio if ours.step_ratio_lo is None else ours.step_ratio_lo
    hi = theirs.step_ratio if theirs.step_ratio_hi is None else theirs.step_ratio_hi
    return Cost("step time", ours.step_ratio, theirs.step_ratio, lo / hi - 1.0, bound)


def read_benchmarks(path: Path) -> dict[str, dict[str, float]]:
    """Read the results of pytest-benchmark (`--benchmark-json`).

    Returns:
        By full name: `median`, `q1`, `q3` in seconds.

    Raises:
        ValueError: the file cannot be read or is none; one line naming it.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        found = {
            str(entry["fullname"]): {key: float(entry["stats"][key]) for key in ("median", "q1", "q3")}
            for entry in data["benchmarks"]
        }
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} holds no results of pytest-benchmark") from error
    if not all(math.isfinite(v) and v > 0.0 for stats in found.values() for v in stats.values()):
        raise ValueError(f"{path} holds a time that is not positive")
    return found


def compare_benchmarks(
    new: Mapping[str, Mapping[str, float]],
    base: Mapping[str, Mapping[str, float]],
    bound: float = LATENCY_GROWTH,
) -> list[Cost]:
    """Compare the benchmarks that both files hold.

    Two files are two machines, or one at two times: from five benchmarks on, the median of the ratios is
    taken as the speed of the machine and divided out, so that what fails became slower than the others did.
    The growth counted is from the old upper quartile to the new lower quartile.
    """
    names = sorted(new.keys() & base.keys())
    logs = [math.log(new[name]["median"] / base[name]["median"]) for name in names]
    speed = math.exp(float(np.median(logs))) if len(names) >= _FEWEST else 1.0
    return [
        Cost(
            name,
            new[name]["median"] / speed,
            base[name]["median"],
            new[name]["q1"] / speed / base[name]["q3"] - 1.0,
            bound,
        )
        for name in names
    ]
