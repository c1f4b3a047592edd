"""What the page's grid and plots can show: columns of a row, how they are written, which way is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.reports.formats.layout import MIB
from harness.reports.rows import REFERENCE

Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class PageColumn:
    """One column of the grid.

    Attributes:
        key: the column's name in a row; see docs/reports.md.
        label: its heading.
        unit: unit of what is written, empty for a bare number or for words.
        digits: decimals written; None for words.
        scale: what a value is divided by before it is written.
        better: which direction is better; empty where neither is, or where it is not known.
        interval: keys of the ends of its interval, or None.
        shown: whether the grid shows it before the reader chooses.
        axis: whether plots offer it: `x` for costs, `y` for quality, empty for neither.
    """

    key: str
    label: str
    unit: str = ""
    digits: int | None = None
    scale: float = 1.0
    better: Better = ""
    interval: tuple[str, str] | None = None
    shown: bool = True
    axis: Literal["x", "y", ""] = ""


def _words(key: str, label: str, *, shown: bool = True) -> PageColumn:
    return PageColumn(key, label, shown=shown)


def _cost(key: str, label: str, unit: str, digits: int, scale: float = 1.0, **more: Any) -> PageColumn:
    return PageColumn(key, label, unit, digits, scale, "lower", axis="x", **more)


def _quality(key: str, label: str, unit: str, digits: int, better: Better, **more: Any) -> PageColumn:
    return PageColumn(key, label, unit, digits, 1.0, better, axis="y", **more)


def _ends(key: str) -> tuple[str, str]:
    return f"{key}_lo", f"{key}_hi"


KNOWN: tuple[PageColumn, ...] = (
    _words("model", "Model"),
    _words("dataset", "Prompts"),
    _words("device", "Device"),
    PageColumn("wbits", "W", "", 0),
    PageColumn("abits", "A", "", 0),
    PageColumn("n", "N", "", 0),
    _cost("effective_bits", "Eff. bits", "", 2),
    _cost("weight_bytes", "Weights", "MiB", 2, MIB),
    _quality("psnr", "PSNR", "dB", 2, "higher", interval=_ends("psnr")),
    _quality("ssim", "SSIM", "", 3, "higher", interval=_ends("ssim")),
    _quality("lpips", "LPIPS", "", 3, "lower"),
    _quality("lpips_scene", "LPIPS-scene", "", 3, "lower"),
    _quality("fid", "FID", "", 2, "lower"),
    _quality("fid_ref", "FID to reference", "", 2, "lower", shown=False),
    _quality("kid", "KID", "", 4, "lower"),
    _quality("precision", "Precision", "", 3, "higher", shown=False),
    _quality("recall", "Recall", "", 3, "higher", shown=False),
    _quality("prompt_accuracy", "Prompt accuracy", "", 3, "higher", interval=_ends("prompt_accuracy")),
    _cost("step_ms", "Step", "ms", 1, interval=_ends("step_ms")),
    _cost("step_ms_ref", "Step of the reference", "ms", 1, shown=False),
    _cost("peak_bytes", "Peak", "MiB", 1, MIB),
    _cost("checkpoint_bytes", "Checkpoint", "MiB", 2, MIB, shown=False),
    _cost("quantize_s", "Quantize", "s", 1),
    _cost("generate_s", "Generate", "s", 1, shown=False),
    _words("execution", "Execution", shown=False),
    _words("backend", "Backend", shown=False),
    _words("library", "Library"),
    _words("dtype", "dtype", shown=False),
    PageColumn("seed", "Seed", "", 0, shown=False),
    _words("protocol", "Protocol", shown=False),
    _words("protocol_hash", "Protocol hash", shown=False),
    _words("cell", "Key", shown=False),
    _words("state", "State"),
)

_ELSEWHERE = frozenset({"method", "variant", "config", "reconstruction", "message", "notes", "twin"})
"""What a cell carries beside its columns."""


def page_columns(
    flats: Sequence[Mapping[str, Any]], better: Mapping[str, str] | None = None
) -> list[PageColumn]:
    """Return the columns of a page over these rows.

    Metrics that are not among `KNOWN` follow, so that a metric added later needs nothing here. A column of
    figures that no row has, and words that are the same in every row, are there but not shown at first.

    Args:
        flats: rows as `harness.reports.rows.row` makes them.
        better: per metric, `higher` or `lower`, for those that are not among `KNOWN`.
    """
    ends = {end for column in KNOWN for end in column.interval or ()}
    known = {column.key for column in KNOWN} | ends | _ELSEWHERE
    names = dict.fromkeys(name for flat in flats for name in flat if name not in known)
    extra = [_extra(name, names, (better or {}).get(name)) for name in names if not _is_end(name, names)]
    return [_chosen(column, flats) for column in (*KNOWN[:-1], *extra, KNOWN[-1])]


def _is_end(name: str, names: Iterable[str]) -> bool:
    """Whether a column is the end of another one's interval."""
    return name.endswith(("_lo", "_hi")) and name[:-3] in names


def _extra(name: str, names: Iterable[str], better: str | None) -> PageColumn:
    """Return the column of a metric that is not among `KNOWN`."""
    direction: Better = "higher" if better == "higher" else "lower" if better == "lower" else ""
    interval = _ends(name) if f"{name}_lo" in names else None
    return _quality(name, name.replace("_", " "), "", 3, direction, interval=interval)


def _chosen(column: PageColumn, flats: Sequence[Mapping[str, Any]]) -> PageColumn:
    """Hide a column that would tell the reader nothing."""
    values = {
        flat.get(column.key) for flat in flats if column.digits is not None or flat["method"] != REFERENCE
    }
    empty = values <= {None, ""}
    alike = len(values) == 1 and column.key in {"dataset", "device"}
    if not column.shown or not (empty or alike):
        return column
    return PageColumn(**{**column.__dict__, "shown": False})
