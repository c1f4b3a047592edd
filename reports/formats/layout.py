"""What every printed table shows, as plain text: columns, entries, titles, footnotes. Formats escape it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.reports.record import Record, Result
from harness.reports.rows import REFERENCE, grouped, mark_twins, row
from harness.reports.significance import RANKED, TIED_MARK, entrant, standings

MIB = 2**20
MISSING = "–"
RECONSTRUCTION_MARK = "†"
SIMULATED_MARK = "‡"
STRONG_NOTE = (
    "Bold: better than every other row of the same weight bits, significant at 5 % (paired t-test "
    "over prompts, "
    "McNemar's exact test for prompt accuracy, Holm's correction over the column)."
)
INFLUENCE_NOTE = "FID and KID are compared by a paired t-test of each prompt's influence on them."

_AGAINST_REFERENCE = ("psnr", "ssim", "lpips", "lpips_scene")
_NOTE_LIMIT = 40
_TIED = f" {TIED_MARK}"
_MESSAGE_LIMIT = 160


@dataclass(frozen=True)
class Entry:
    """One entry of a table.

    Attributes:
        text: plain text in one line, not escaped for any format.
        value: what a reader sorts the column by; None sorts last.
        strong: it deserves emphasis.
        failed: it is the typed state of a failed cell.
        ends: the ends of the interval that the text shows, in the unit of `value`.
        mark: a sign beside the text that a footnote explains; formats raise it where they can.
    """

    text: str
    value: float | str | None = None
    strong: bool = False
    failed: bool = False
    mark: str = ""
    ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: its name, unique in the table.
        heading: its heading in one line.
        stacked: the heading in two lines, for narrow places.
        span: what it has in common with its neighbours.
        entry: makes the entry of a row.
    """

    key: str
    heading: str
    stacked: tuple[str, str]
    span: str
    entry: Callable[[dict[str, Any]], Entry]


@dataclass(frozen=True)
class Sheet:
    """One table: a model on a prompt set and a device, or what a table's description makes of the records.

    Attributes:
        title: its heading.
        model: the model, where it holds one.
        columns: its columns.
        entries: `entries[i][j]` belongs to `columns[j]`.
        caption: what stands over it in print: sentences, with N and the protocol's hash.
        rules: rows before which a rule is drawn.
    """

    title: str
    model: str
    columns: tuple[Column, ...]
    entries: tuple[tuple[Entry, ...], ...]
    caption: str = ""
    rules: tuple[int, ...] = ()


@dataclass(frozen=True)
class Document:
    """All tables of a report and the footnotes they share."""

    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...]


def clean(text: str) -> str:
    """Return `text` in one line without control, format or surrogate characters: those become escapes.

    Names come from records, and a record is data: escape sequences would reach the terminal, and
    right-to-left marks would rearrange the line.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def method_label(flat: dict[str, Any]) -> str:
    """Return `method`, `method (variant)` for a variant other than the default, and ` [key]` for a twin."""
    variant = "" if flat["variant"] == "default" else f" ({flat['variant']})"
    twin = f" [{flat['twin']}]" if "twin" in flat else ""
    return clean(flat["method"] + variant + twin)


def bits_label(flat: dict[str, Any]) -> str:
    """Return e.g. `W4A8`."""
    return f"W{flat['wbits']}A{flat['abits']}"


def _method(flat: dict[str, Any]) -> Entry:
    marks = RECONSTRUCTION_MARK * flat["reconstruction"] + SIMULATED_MARK * (flat["execution"] == "simulated")
    return Entry(method_label(flat) + marks, method_label(flat))


def _figure(name: str, digits: int, scale: float = 1.0) -> Callable[[dict[str, Any]], Entry]:
    """Return the maker of entries for one figure, in units of `scale`; a missing one shows its note."""

    def entry(flat: dict[str, Any]) -> Entry:
        value = flat[name]
        if value is None and flat["method"] == REFERENCE and name in _AGAINST_REFERENCE:
            return Entry(MISSING)
        if value is None:
            return Entry(clean(flat["notes"].get(name, MISSING))[:_NOTE_LIMIT])
        standing = flat.get("standings", {}).get(name)
        return Entry(
            f"{value / scale:.{digits}f}" + _TIED * (standing == "tied"), value, strong=standing == "best"
        )

    return entry


def _with_interval(name: str, digits: int, end_digits: int) -> Callable[[dict[str, Any]], Entry]:
    """Return the maker of entries such as `27.50 [26.9, 28.1]`."""
    plain = _figure(name, digits)

    def entry(flat: dict[str, Any]) -> Entry:
        base = plain(flat)
        lo, hi = flat[f"{name}_lo"], flat[f"{name}_hi"]
        if base.value is None or lo is None or hi is None:
            return base
        figure = base.text.removesuffix(_TIED)
        text = f"{figure} [{lo:.{end_digits}f}, {hi:.{end_digits}f}]{base.text[len(figure) :]}"
        return Entry(text, base.value, base.strong)

    return entry


def _step(flat: dict[str, Any]) -> Entry:
    step, reference = flat["step_ms"], flat["step_ms_ref"]
    if step is None:
        return Entry(MISSING)
    digits = 1 if step < 100 else 0
    ratio = f" ({step / reference:.2f}×)" if reference else ""
    return Entry(f"{step:.{digits}f}{ratio}", step)


def _state(flat: dict[str, Any]) -> Entry:
    return Entry(flat["state"], flat["state"], failed=flat["state"] != "ok")


_PAIRED = "Against the reference"
_BITS = Column("bits", "W/A", ("", "W/A"), "", lambda flat: Entry(bits_label(flat), flat["wbits"]))
_N = Column("n", "N", ("", "N"), "", lambda flat: Entry(str(flat["n"]), flat["n"]))
_ACCURACY = _with_interval("prompt_accuracy", 3, 2)

COLUMNS = (
    Column("method", "Method", ("", "Method"), "", _method),
    _BITS,
    _N,
    Column("effective_bits", "Eff. bits", ("Eff.", "bits"), "Weights", _figure("effective_bits", 2)),
    Column("weight_bytes", "MiB", ("", "MiB"), "Weights", _figure("weight_bytes", 2, MIB)),
    Column("psnr", "PSNR ↑ (dB)", ("PSNR ↑", "dB [95 %]"), _PAIRED, _with_interval("psnr", 2, 1)),
    Column("ssim", "SSIM ↑", ("", "SSIM ↑"), _PAIRED, _figure("ssim", 3)),
    Column("lpips", "LPIPS ↓", ("", "LPIPS ↓"), _PAIRED, _figure("lpips", 3)),
    Column("lpips_scene", "LPIPS-scene ↓", ("LPIPS-", "scene ↓"), _PAIRED, _figure("lpips_scene", 3)),
    Column("fid", "FID ↓", ("", "FID ↓"), "Distribution", _figure("fid", 2)),
    Column("kid", "KID ↓", ("", "KID ↓"), "Distribution", _figure("kid", 4)),
    Column("prompt_accuracy", "Prompt accuracy ↑", ("Prompt accuracy ↑", "[95 %]"), "", _ACCURACY),
    Column("peak_bytes", "Peak MiB", ("Peak", "MiB"), "Cost", _figure("peak_bytes", 1, MIB)),
    Column("step_ms", "ms/step (ratio)", ("ms/step", "(ratio)"), "Cost", _step),
    Column("quantize_s", "Quantize s", ("Quant.", "s"), "Cost", _figure("quantize_s", 1)),
    Column("state", "State", ("", "State"), "", _state),
)

LEFT_ALIGNED = frozenset({"method", "bits", "state", "model", "dataset", "device", "execution", "source"})
"""Keys of the columns of words; the others hold figures and align right."""


def lay_out(records: Iterable[Record]) -> Document:
    """Return the tables and footnotes of `records`: one table per model, prompt set and device, sorted."""
    records = list(records)
    groups = grouped(records)
    flats = {key: [row(record) for record in group] for key, group in groups.items()}
    everything = [flat for group in flats.values() for flat in group]
    mark_twins(everything)
    used = {"n": len(_counts(everything)) > 1}
    used["lpips"] = any(flat["lpips"] is not None for flat in everything)
    columns = tuple(column for column in COLUMNS if used.get(column.key, True))
    several = len({key[0] for key in flats}) < len(flats)
    _rank(flats.values(), {record.identity.cell: record.result for record in records})
    sheets = []
    for (model, dataset, device), group in flats.items():
        title = clean(f"{model} · {dataset} · {device}" if several else model)
        entries = tuple(tuple(column.entry(flat) for column in columns) for flat in group)
        rules = (1,) if group[0]["method"] == REFERENCE and len(group) > 1 else ()
        sheets.append(Sheet(title, clean(model), columns, entries, _caption(title, group), rules))
    return Document(tuple(sheets), tuple(_notes(everything)) if everything else ("No cell is finished yet.",))


def _caption(title: str, group: Sequence[dict[str, Any]]) -> str:
    """Return the caption of one table, with N and the protocol's hash."""
    protocols = _distinct(f"{flat['protocol']} ({flat['protocol_hash']})" for flat in group)
    counts = ", ".join(map(str, _counts(group)))
    return clean(
        f"Quantization of {title}: size, quality and cost. N = {counts} prompts; protocol {protocols}."
    )


def _rank(groups: Iterable[Sequence[dict[str, Any]]], samples: Mapping[str, Result]) -> None:
    """Set `standings`, by metric, of the rows of each table among those of equal weight bits."""
    widths: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for number, group in enumerate(groups):
        for flat in group:
            if flat["method"] != REFERENCE:
                widths.setdefault((number, flat["wbits"]), []).append(flat)
    for name, (better, test) in RANKED.items():
        ranked = [[flat for flat in rows if flat.get(name) is not None] for rows in widths.values()]
        entrants = [[entrant(name, samples[flat["cell"]]) for flat in rows] for rows in ranked]
        for rows, found in zip(ranked, standings(entrants, better, test), strict=True):
            for flat, standing in zip(rows, found, strict=True):
                flat.setdefault("standings", {})[name] = standing


def how_computed(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the footnotes on packed, simulated and reconstructed cells."""
    notes = []
    executions = {flat["execution"] for flat in flats if flat["method"] != REFERENCE}
    if executions == {"packed"}:
        notes.append("Every quantized cell is computed from its packed codes.")
    elif "simulated" in executions:
        notes.append(
            f"{SIMULATED_MARK} simulated: floats rounded to the grid; the others compute from packed codes."
        )
    if any(flat["reconstruction"] for flat in flats):
        notes.append(f"{RECONSTRUCTION_MARK} reconstruction: built from the paper, not its authors' code.")
    by_library: dict[str, list[str]] = {}
    for flat in flats:
        if flat["library"] and flat["state"] == "ok":
            by_library.setdefault(flat["library"], []).append(flat["method"])
    if by_library:
        named = (f"{_distinct(methods)} by {library}" for library, methods in by_library.items())
        notes.append(f"Quantized and multiplied by a library: {'; '.join(named)}.")
    return notes


def _notes(flats: Sequence[dict[str, Any]]) -> list[str]:
    """Return the footnotes, each a sentence or two in one line."""
    protocols = _distinct(f"{flat['protocol']} ({flat['protocol_hash']})" for flat in flats)
    counts = ", ".join(map(str, _counts(flats)))
    settings = {"prompt set": "dataset", "seed": "seed", "device": "device", "dtype": "dtype"}
    settings["kernel backend"] = "backend"
    named = [f"{word} {_distinct(flat[key] for flat in flats)}" for word, key in settings.items()]
    notes = [
        f"N = {counts} prompts per cell; protocol {protocols}; {'; '.join(named)}.",
        "[lo, hi]: 95 % interval over the prompts, Student's t for PSNR, Wilson's for prompt accuracy. PSNR, "
        "SSIM and LPIPS compare with the reference's image of the same prompt and noise.",
        "Eff. bits: bits stored per weight of the quantized layers, with scales, tables and branches. "
        "MiB: 2^20 bytes of the whole denoiser's weights, packed, or 16 bits each where left alone. "
        "Ratio: to the reference.",
    ]
    notes += how_computed(flats)
    if any("tied" in flat.get("standings", {}).values() for flat in flats):
        notes.append(f"{TIED_MARK} cannot be told from the best row of the same weight bits.")
    if any({"fid", "kid"} & flat.get("standings", {}).keys() for flat in flats):
        notes.append(INFLUENCE_NOTE)
    if any("twin" in flat for flat in flats):
        notes.append(
            "[key]: the same settings, run with other versions of the code, the libraries or the model's "
            "weights; `harness show RUN KEY` tells which."
        )
    for flat in flats:
        if flat["state"] != "ok":
            message = f": {' '.join(flat['message'].split())}" if flat["message"] else ""
            line = f"{method_label(flat)} {bits_label(flat)} on {flat['model']}: {flat['state']}{message}"
            notes.append(line if len(line) <= _MESSAGE_LIMIT else line[: _MESSAGE_LIMIT - 1] + "…")
    return [clean(note) for note in notes]


def _counts(flats: Sequence[dict[str, Any]]) -> list[int]:
    """Return the different N, those of cells that failed (0) only when there is no other."""
    return sorted({flat["n"] for flat in flats if flat["n"]}) or [0]


def _distinct(values: Iterable[object]) -> str:
    """Join the different values in order of first appearance."""
    return ", ".join(dict.fromkeys(str(value) for value in values))
