"""What became of a cell's figures from entry to entry: series, steps, and between which commits they lie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from harness.reports.formats.layout import bits_label, clean, method_label
from harness.reports.gate.costs import MEMORY_GROWTH
from harness.reports.gate.quality import LEAST_MARGINS
from harness.reports.leaderboard.chain import Board
from harness.reports.leaderboard.entry import Entry
from harness.reports.statistics import ALPHA, change_points

TIME = "step_ratio"
"""Time of a step by the reference's: what is left of a latency when the machine's speed is divided out."""
LEAST_TIME = 0.05
"""Growth of it that is never called a step."""
BYTES = ("weight_bytes", "peak_bytes")
_TESTED = 3


class Series(NamedTuple):
    """What entries have in common whose figures are comparable: one cell, whatever code made it."""

    model: str
    dataset: str
    device: str
    method: str
    variant: str
    wbits: int
    abits: int
    backend: str
    dtype: str
    n: int
    machine: str

    def __str__(self) -> str:
        """Return what reports call it."""
        names = {"method": self.method, "variant": self.variant, "wbits": self.wbits, "abits": self.abits}
        bits = "" if self.method == "reference" else f" {bits_label(names)}"
        return clean(
            f"{self.model} {method_label(names)}{bits} on {self.dataset}, N = {self.n}, {self.machine}"
        )


@dataclass(frozen=True)
class Step:
    """A figure that is no longer what it was.

    Attributes:
        series: of which cell.
        figure: its name.
        before: the last entry before it.
        after: the first entry behind it.
        old: the figure's level before; the mean of a stretch for times.
        new: its level behind.
        p: for times, the p-value of the test; None for what is compared as it stands.
    """

    series: Series
    figure: str
    before: Entry
    after: Entry
    old: float
    new: float
    p: float | None = None


def series_of(entry: Entry) -> Series:
    """Return the series an entry continues."""
    identity = entry.record.identity
    shared = {name: getattr(identity, name) for name in Series._fields if hasattr(identity, name)}
    return Series(**shared, n=entry.record.result.n, machine=entry.machine)


def histories(entries: Iterable[Entry]) -> dict[Series, list[Entry]]:
    """Return entries by series, each in the order they were added."""
    found: dict[Series, list[Entry]] = {}
    for entry in entries:
        found.setdefault(series_of(entry), []).append(entry)
    return found


def latest(board: Board) -> list[Entry]:
    """Return the newest entry of each series, whatever machine or N it has, in the order they were added."""
    found: dict[tuple[object, ...], Entry] = {}
    for entry in board.entries:
        found.pop(series_of(entry)[:-2], None)
        found[series_of(entry)[:-2]] = entry
    return list(found.values())


def steps(board: Board, alpha: float = ALPHA) -> list[Step]:
    """Return every step of a board's figures, in the order of the entries they begin with.

    Images and bytes of one machine repeat exactly, so a quality has made a step when it left the level of its
    stretch by the gate's least margin, and bytes when they did by 1 %. Times scatter: `change_points` finds
    their steps, of which those below 5 % are left out.

    Args:
        board: the rows of one protocol.
        alpha: chance that any stretch of times that did not change is divided; shared evenly by its series.
    """
    series = histories(board.entries)
    tested = sum(len(_times(entries)) >= _TESTED for entries in series.values())
    found: list[Step] = []
    for name, entries in series.items():
        found += _levels(name, entries)
        found += _time_steps(name, _times(entries), alpha / max(1, tested))
    place = {id(entry): index for index, entry in enumerate(board.entries)}
    return sorted(found, key=lambda step: (place[id(step.after)], step.figure))


def value(entry: Entry, figure: str) -> float | None:
    """Return a figure of an entry: a metric, one of `BYTES` or `TIME`."""
    record = entry.record
    held = {
        TIME: record.measured.step_ratio,
        "weight_bytes": record.result.weight_bytes,
        "peak_bytes": record.measured.peak_bytes,
    }
    if figure in held:
        return held[figure]
    metric = record.result.metrics.get(figure)
    return None if metric is None else metric.value


def _levels(name: Series, entries: Sequence[Entry]) -> list[Step]:
    """Return the steps of figures that repeat exactly."""
    found = []
    figures = [metric for metric in LEAST_MARGINS if any(metric in e.record.result.metrics for e in entries)]
    for figure in (*figures, *BYTES):
        level: float | None = None
        before: Entry | None = None
        for entry in entries:
            now = value(entry, figure)
            if now is None:
                continue
            if level is None or before is None:
                level = now
            elif abs(now - level) > _margin(figure, level):
                found.append(Step(name, figure, before, entry, level, now))
                level = now
            before = entry
    return found


def _margin(figure: str, level: float) -> float:
    return MEMORY_GROWTH * abs(level) if figure in BYTES else LEAST_MARGINS[figure]


def _times(entries: Sequence[Entry]) -> list[tuple[Entry, float]]:
    """Return the logarithms of an entry's times: ratios scatter by factors."""
    pairs = ((entry, entry.record.measured.step_ratio) for entry in entries)
    return [(entry, math.log(ratio)) for entry, ratio in pairs if ratio is not None and ratio > 0.0]


def _time_steps(name: Series, times: Sequence[tuple[Entry, float]], alpha: float) -> list[Step]:
    changes = change_points([time for _, time in times], alpha)
    return [
        Step(
            name, TIME, times[change.start - 1][0], times[change.start][0], math.exp(change.before),
            math.exp(change.after), change.p,
        )
        for change in changes
        if abs(change.after - change.before) > math.log1p(LEAST_TIME)
    ]  # fmt: skip


def commit_range(step: Step) -> str | None:
    """Return the commits a step lies between as git names them, or None when one of them is not known."""
    before, after = step.before.commit, step.after.commit
    if before is None or after is None or before == after:
        return None
    return f"{before}..{after}"


def hints(step: Step) -> list[str]:
    """Return what differs between the entries a step lies between: where to look first."""
    before, after = step.before, step.after
    found = [_commits(before, after)]
    found += _fingerprints(before.fingerprint, after.fingerprint)
    if before.weights != after.weights:
        found.append("the model's weights differ")
    if before.record.identity.config != after.record.identity.config:
        found.append("the method's settings differ")
    if before.images == after.images and step.figure in LEAST_MARGINS:
        found.append("the images are the same: the metric's code or weights changed")
    return found


def _commits(before: Entry, after: Entry) -> str:
    if before.commit is None or after.commit is None:
        return "a commit is not known"
    tree = " and changes that were not committed" if before.dirty or after.dirty else ""
    if before.commit == after.commit:
        return f"the same commit {after.commit[:12]}{tree}"
    return f"commits {before.commit[:12]}..{after.commit[:12]}{tree}"


def _fingerprints(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return which sources and libraries differ; versions are named, digests would say nothing."""
    words = {"method": "the method's code or kernels differ", "generating": "the code that generates differs"}
    found = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, "none"), after.get(key, "none")
        if old != new:
            found.append(words.get(key, clean(f"{key} {old} → {new}")))
    return found


def step_line(step: Step) -> str:
    """Return a step in one line: cell, figure, levels, when, and hints."""
    how = "" if step.p is None else f" (p = {step.p:.1g})"
    day = step.after.date[:10]
    levels = f"{_written(step.figure, step.old)} → {_written(step.figure, step.new)}{how}"
    return f"{step.series}: {step.figure} {levels}, added {day}; {'; '.join(hints(step))}"


def _written(figure: str, level: float) -> str:
    return f"{level:.0f}" if figure in BYTES else f"{level:.3f}"
