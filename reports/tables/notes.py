"""Captions and footnotes: N, protocol, what bold and every sign mean, where published figures come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.reports.formats.layout import bits_label, how_computed, method_label
from harness.reports.significance import TIED_MARK
from harness.reports.tables.figures import figure
from harness.reports.tables.select import Flat, TableRow
from harness.reports.tables.spec import ColumnSpec, TableSpec

SECOND_HAND = "§"
DERIVED = "¶"

_MESSAGE_LIMIT = 160
_TESTS = {
    "paired t": "paired t-test over prompts",
    "McNemar": "McNemar's exact test for shares",
    "influence": "a paired t-test of each prompt's influence for FID and KID",
}
_COMPARED = {"wbits": "weight bits", "abits": "activation bits", "dataset": "prompt set"}


def caption(spec: TableSpec, title: str, shown: Sequence[ColumnSpec], rows: Sequence[TableRow]) -> str:
    """Return a table's caption: its sentence, what it holds, N and the protocol's hash."""
    formed = [
        flat
        for line in rows
        for index, flat in line.chosen.items()
        if figure(shown[index].figure).kind not in {"word", "stored"}
    ]
    sentence = spec.caption.rstrip(".") + (f": {title}." if title else ".")
    if not formed:
        return f"{sentence} No cell of it has been run."
    counts = sorted({flat["n"] for flat in formed if flat["n"]}) or [0]
    protocols = _distinct(
        f"{flat['protocol']} ({flat['protocol_hash']}) on {flat['dataset']}" for flat in formed
    )
    return f"{sentence} N = {', '.join(map(str, counts))} prompts; protocol {protocols}."


def footnotes(spec: TableSpec, shown: Sequence[ColumnSpec], rows: Sequence[TableRow]) -> list[str]:
    """Return the footnotes that the entries of a table call for, each in one line."""
    flats = list({flat["cell"]: flat for line in rows for flat in line.chosen.values()}.values())
    return [
        *_ranking_notes(spec, shown, rows),
        *_column_notes(shown, flats),
        *_cell_notes(flats),
        *_published_notes(shown, rows),
        *spec.notes,
        *_failures(flats),
    ]


def _ranking_notes(spec: TableSpec, shown: Sequence[ColumnSpec], rows: Sequence[TableRow]) -> list[str]:
    """Say what bold and ties mean, and which columns have neither."""
    used = {index for line in rows for index in line.standings}
    tests = {figure(shown[index].figure).test for index in used}
    notes = []
    if used:
        tested = _listed([text for test, text in _TESTS.items() if test in tests])
        among = _listed([_COMPARED.get(name, name) for name in spec.compare])
        notes.append(
            f"Bold: better than every other row of the same {among}, significant at 5 % ({tested}; Holm's "
            f"correction over the column). {TIED_MARK} cannot be told from the best. The reference is "
            "not ranked."
        )
    untested = _distinct(
        figure(column.figure).heading.rstrip(" ↑↓")
        for column in shown
        if figure(column.figure).kind == "distribution"
        and not column.published
        and figure(column.figure).test is None
    )
    if untested:
        notes.append(f"Never bold, because formed of all images at once: {untested}.")
    return notes


def _column_notes(shown: Sequence[ColumnSpec], flats: Sequence[Flat]) -> list[str]:
    """Explain intervals, sizes and times."""
    figures = {column.figure for column in shown if not column.published}
    notes = []
    if any(column.interval for column in shown) and flats:
        notes.append("[lo, hi]: 95 % interval over the prompts (Student's t; Wilson's for shares).")
    if figures & {"effective_bits", "weight_bytes"} and flats:
        notes.append(
            "Eff. bits: bits stored per weight of the quantized layers, with scales, tables and "
            "branches. MiB: "
            "2^20 bytes of the whole denoiser's weights, packed, or 16 bits each where left alone."
        )
    if figures & {"step_ms", "step_ratio"} and flats:
        notes.append(
            "ms/step: median of one denoiser step with one prompt; ratio: to the reference, in turns with it."
        )
    return notes


def _cell_notes(flats: Sequence[Flat]) -> list[str]:
    """Say how the cells were computed."""
    if not flats:
        return []
    settings = {"seed": "seed", "device": "device", "dtype": "dtype", "kernel backend": "backend"}
    notes = [
        "; ".join(f"{word} {_distinct(flat[key] for flat in flats)}" for word, key in settings.items()) + "."
    ]
    notes[0] = notes[0][0].upper() + notes[0][1:]
    notes += how_computed(flats)
    if any("twin" in flat for flat in flats):
        notes.append("[key]: the same settings, run with other versions of the code, libraries or weights.")
    return notes


def _published_notes(shown: Sequence[ColumnSpec], rows: Sequence[TableRow]) -> list[str]:
    """Explain the signs of published figures and the blanks."""
    keys = {column.published for column in shown if column.published}
    if not keys:
        return []
    listed = [line.line.published.get(key) for line in rows if line.line is not None for key in keys]
    marks = "".join(published.mark for published in listed if published is not None)
    notes = ["Blank: not run, or not published. Published and own figures follow different protocols."]
    if SECOND_HAND in marks:
        notes.append(f"{SECOND_HAND} known second-hand, from reading notes; not checked against the paper.")
    if DERIVED in marks:
        notes.append(f"{DERIVED} derived by arithmetic from published differences.")
    return notes


def _failures(flats: Sequence[Flat]) -> list[str]:
    """Say why cells failed."""
    notes = []
    for flat in flats:
        if flat["state"] != "ok":
            message = f": {' '.join(flat['message'].split())}" if flat["message"] else ""
            name = f"{method_label(dict(flat))} {bits_label(dict(flat))}"
            line = f"{name} on {flat['model']}: {flat['state']}{message}"
            notes.append(line if len(line) <= _MESSAGE_LIMIT else line[: _MESSAGE_LIMIT - 1] + "…")
    return notes


def _listed(words: Sequence[str]) -> str:
    """Join words as a sentence does."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _distinct(values: Iterable[object]) -> str:
    """Join the different values in order of first appearance."""
    return ", ".join(dict.fromkeys(str(value) for value in values))
