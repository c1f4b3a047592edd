"""What cells took in a run that was seen: seconds and bytes per image, and the spread that decides on N."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.errors import UserError
from harness.outlook import times_of
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
        sizes: bytes per image with its features, by model.
        spreads: standard deviations of the PSNR differences of pairs of cells of one model, in dB.
        quantizing: seconds the method took, by cell.
    """

    seconds: Mapping[Key, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    spreads: Sequence[float] = ()
    quantizing: Mapping[Key, float] = field(default_factory=dict)

    def applied(self, cell: Cell) -> Cell:
        """Return the cell with what was seen of it, or else of other cells of its model, in its facts.

        Other cells are scaled by what their methods are expected to take. On a CPU the machine's speed also
        scales what is not seen (calibrating, measuring); on a GPU that is mostly other work.
        """
        identity, facts = cell.identity, cell.setting.model
        key = (identity.model, identity.method, identity.wbits)
        own = self.seconds.get(key)
        of_model = [s / times_of(name) for (model, name, _), s in self.seconds.items() if model == key[0]]
        if own is not None or of_model:
            expected = facts.seconds_per_image
            seconds = statistics.median(of_model) if own is None else own / times_of(identity.method)
            on_cpu = expected is not None and cell.setting.device == "cpu"
            slowness = statistics.median(of_model) / expected if expected and on_cpu else facts.slowness
            facts = replace(facts, seconds_per_image=seconds, slowness=slowness)
        if identity.model in self.sizes:
            facts = replace(facts, bytes_per_image=self.sizes[identity.model])
        setting = replace(cell.setting, model=facts)
        return replace(cell, setting=setting, quantize_seconds=self.quantizing.get(key))


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
    quantizing: dict[Key, float] = {}
    sizes: dict[str, int] = {}
    store = RunStore(run)
    for record in records:
        identity, total = record.identity, record.measured.generate_s
        if total is not None and record.result.n:
            seconds[identity.model, identity.method, identity.wbits] = total / record.result.n
        if record.measured.quantize_s is not None:
            quantizing[identity.model, identity.method, identity.wbits] = record.measured.quantize_s
        stored = list((store.cell(identity.cell).folder / "blocks").glob("*/*"))
        if images := sum(path.suffix == ".png" for path in stored):
            sizes[identity.model] = sum(path.stat().st_size for path in stored) // images
    return Timings(seconds, sizes, _spreads(records), quantizing)


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
