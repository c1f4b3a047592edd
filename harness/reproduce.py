"""Whether rows of the leaderboard come out again: their first images by digest, else their figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from harness import run as runner
from harness.errors import UserError
from harness.leaderboard import first_images
from harness.metrics import METRICS
from harness.plan import Cell
from harness.remake import fixes_seed, settings_of
from harness.reports.gate.quality import LEAST_MARGINS, compare_metric, paired_differences
from harness.reports.gate.sides import Name, name_of
from harness.reports.gate.verdict import ALPHA
from harness.reports.leaderboard import IMAGES, Entry, board_name
from harness.reports.record import Record
from harness.request import REFERENCE, Request
from harness.store import RunStore

Finding = Literal["same", "agrees", "unclear", "differs", "failed"]
REPRODUCED, NOT_REPRODUCED, UNCLEAR = 0, 1, 3


@dataclass(frozen=True)
class Reproduced:
    """What became of one row.

    Attributes:
        entry: the row.
        finding: `same`: every image has its digest. `agrees`: some has not, but the figures are within the
            margins. `unclear`: they scatter too much to tell. `differs`: they do, or the bytes do. `failed`:
            the cell could not be made.
        detail: how, in one line; empty for `same`.
        sources: whether sources, libraries and weights are those of the row.
    """

    entry: Entry
    finding: Finding
    detail: str = ""
    sources: bool = True


def exit_code(found: Iterable[Reproduced]) -> int:
    """Return 1 when a row differs or failed, else 3 when one is unclear, else 0."""
    findings = {one.finding for one in found}
    if findings & {"differs", "failed"}:
        return NOT_REPRODUCED
    return UNCLEAR if "unclear" in findings else REPRODUCED


def reproduce(entries: Sequence[Entry], out: Path, options: Request, console: Console) -> list[Reproduced]:
    """Make the first images of rows again and compare.

    Args:
        entries: the rows, of any protocols.
        out: folder in which a run is made for each protocol; what it holds of them already is used.
        options: device, workers and paths.
        console: where progress is printed.

    Returns:
        One finding for each entry, in their order.
    """
    found: dict[int, Reproduced] = {}
    for group in _groups(entries):
        members = [entries[index] for index in group]
        try:
            asked = _request(members, out / board_name(members[0]), options)
            _check_protocol(members[0], asked)
            records = _make(members, asked, console)
        except UserError as error:
            found |= {index: Reproduced(entries[index], "failed", str(error)) for index in group}
            continue
        for index in group:
            found[index] = _compare(entries[index], records, RunStore(asked.out or out))
    return [found[index] for index in range(len(entries))]


def _groups(entries: Sequence[Entry]) -> list[list[int]]:
    """Return the numbers of the entries that one request can make: cells of one method's settings, mostly."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, entry in enumerate(entries):
        identity = entry.record.identity
        method = None if identity.variant == "default" else (identity.method, repr(identity.config))
        key = (board_name(entry), identity.dataset, identity.device, entry.block, method)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _request(members: Sequence[Entry], out: Path, options: Request) -> Request:
    identities = [entry.record.identity for entry in members]
    first = identities[0]
    quantized = [one for one in identities if one.method != REFERENCE]
    bits = dict.fromkeys(f"w{one.wbits}a{one.abits}" for one in quantized)
    return replace(
        options,
        models=tuple(dict.fromkeys(one.model for one in identities)),
        methods=tuple(dict.fromkeys(one.method for one in quantized)) or (REFERENCE,),
        bits=",".join(bits) or "w4a8",
        datasets=(first.dataset,),
        protocol=first.protocol,
        seed=None if fixes_seed(first.protocol) else first.seed,
        block=members[0].block,
        prompts=min(IMAGES, max(entry.record.result.n for entry in members)),
        device=first.device,
        settings=settings_of(first),
        out=out,
    )


def _check_protocol(entry: Entry, asked: Request) -> None:
    """Refuse what could not be compared, before anything is generated."""
    from harness.protocols import settle

    ours = settle(asked.protocol, asked.seed, asked.block).hash
    if ours != entry.record.identity.protocol_hash:
        theirs = entry.record.identity.protocol_hash
        raise UserError(f"protocol {asked.protocol} is {ours} here and {theirs} in the row")


def _make(members: Sequence[Entry], asked: Request, console: Console) -> dict[Name, Record]:
    """Make the cells with their references and return their records by name."""
    names = {name_of(entry.record) for entry in members}

    def wanted(cell: Cell) -> bool:
        return Name(*(getattr(cell.identity, part) for part in Name._fields)) in names

    return {name_of(record): record for record in runner.extend(asked, console, wanted)}


def _compare(entry: Entry, records: Mapping[Name, Record], store: RunStore) -> Reproduced:
    """Compare a row with the cell that was made anew."""
    new = records.get(name_of(entry.record))
    if new is None:
        return Reproduced(entry, "failed", "no such cell was made")
    if new.result.state != "ok":
        return Reproduced(entry, "failed", f"{new.result.state}: {new.result.message}")
    sources = new.identity.cell == entry.record.identity.cell
    try:
        images = first_images(store.cell(new.identity.cell), len(entry.images))
    except UserError as error:
        return Reproduced(entry, "failed", str(error), sources)
    stored = _stored(entry.record, new)
    if stored:
        return Reproduced(entry, "differs", stored, sources)
    if images == entry.images:
        return Reproduced(entry, "same", "", sources)
    alike = sum(a == b for a, b in zip(images, entry.images, strict=True))
    finding, figures = _figures(entry, new)
    return Reproduced(entry, finding, f"{alike} of {len(images)} images are the same; {figures}", sources)


def _stored(old: Record, new: Record) -> str:
    """Return how bits or bytes differ, which do not depend on the machine; empty when they do not."""
    for name in ("effective_bits", "weight_bytes"):
        before, after = getattr(old.result, name), getattr(new.result, name)
        if before != after:
            return f"{name} is {after}, not {before}"
    return ""


def _figures(entry: Entry, new: Record) -> tuple[Finding, str]:
    """Compare the figures of the first images, by the gate's test and least margins."""
    kinds, lines = set(), []
    count = len(entry.images)
    for metric, margin in LEAST_MARGINS.items():
        values = new.result.per_prompt.get(metric, [])[:count]
        if metric not in entry.first or metric not in METRICS or len(values) != count:
            continue
        differences = paired_differences(metric, METRICS[metric].better, values, entry.first[metric])
        if differences.size == 0:
            continue
        kind, change = _judge(metric, differences, margin)
        kinds.add(kind)
        lines.append(f"{metric} {change:+.3g}{'' if kind == 'agrees' else ' ' + kind}")
    text = ", ".join(lines) or "no figure can be compared"
    for finding in ("differs", "unclear", "agrees"):
        if finding in kinds:
            return finding, text
    return "differs", text


def _judge(metric: str, differences: np.ndarray[tuple[int], np.dtype[np.float64]], margin: float) -> tuple[
    Finding, float
]:  # fmt: skip
    """Return whether differences are within the margin, and their mean; positive is better than the row."""
    mean = float(differences.mean())
    if len(differences) == 1:
        return ("agrees" if abs(mean) <= margin else "differs"), mean
    verdict = compare_metric(metric, differences, margin, ALPHA, len(differences)).verdict
    findings: dict[str, Finding] = {
        "pass": "agrees", "fail": "differs", "suspicious": "differs", "undecided": "unclear",
    }  # fmt: skip
    return findings[verdict], mean
