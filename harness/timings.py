"""What cells took in a run that was seen: seconds and bytes per image, and the spread that decides on N."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.errors import UserError
from harness.plan import Cell
from harness.reports.record import Record, read_records
from harness.store import RunStore

Key = tuple[str, str, int]
"""Model, method, weight bits."""


@dataclass(frozen=True)
class Timings:
    """Times and sizes of a run; empty when none was seen.

    Attributes:
        seconds: per image, by cell.
        sizes: bytes per image, by model.
        spreads: standard deviations of the PSNR differences of pairs of cells of one model, in dB.
    """

    seconds: Mapping[Key, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    spreads: Sequence[float] = ()

    def applied(self, cell: Cell) -> Cell:
        """Return the cell with what was seen of it, or else of other cells of its model, in its facts."""
        identity = cell.identity
        same = [value for key, value in self.seconds.items() if key[0] == identity.model]
        seconds = self.seconds.get((identity.model, identity.method, identity.wbits))
        if seconds is None and same:
            seconds = statistics.median(same)
        facts = cell.setting.model
        if seconds is not None:
            facts = replace(facts, seconds_per_image=seconds)
        if identity.model in self.sizes:
            facts = replace(facts, bytes_per_image=self.sizes[identity.model])
        return replace(cell, setting=replace(cell.setting, model=facts))


def read_timings(run: Path) -> Timings:
    """Return what the finished cells of a run took.

    Raises:
        UserError: the folder is no run, or a record in it is damaged.
    """
    try:
        records = [record for record in read_records(run) if record.result.state == "ok"]
    except ValueError as error:
        raise UserError(str(error)) from error
    seconds: dict[Key, float] = {}
    sizes: dict[str, int] = {}
    store = RunStore(run)
    for record in records:
        identity, total = record.identity, record.measured.generate_s
        if total is not None and record.result.n:
            seconds[identity.model, identity.method, identity.wbits] = total / record.result.n
        images = sorted((store.cell(identity.cell).folder / "blocks").glob("*/*.png"))
        if images:
            sizes[identity.model] = sum(path.stat().st_size for path in images) // len(images)
    return Timings(seconds, sizes, _spreads(records))


def _spreads(records: Sequence[Record]) -> list[float]:
    """Return the standard deviation of the PSNR difference of every pair of cells of one model."""
    found = []
    for i, one in enumerate(records):
        for other in records[:i]:
            if one.identity.model != other.identity.model:
                continue
            ours, theirs = (r.result.per_prompt.get("psnr", []) for r in (one, other))
            pairs = [a - b for a, b in zip(ours, theirs, strict=False) if a is not None and b is not None]
            if len(pairs) > 1:
                found.append(statistics.stdev(pairs))
    return found
