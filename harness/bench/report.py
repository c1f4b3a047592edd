"""The result of `harness bench kernels`: a JSON file that several commands share, and Markdown tables.

The file is one object. Headline figures stand at its top, each under a name of its own
(`w4a4_linear_geomean`, `gemv_w4_m1`, ...), beside `commit`, `driver`, `gpu` and `versions`; everything a
command measured stands under its name (`kernels`), so that another command can add its own to the same file.
A run of `harness bench kernels` that is not finished stands under `kernels unfinished`, which leaves figures,
stamp and section of the last finished one together.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.bench.kernels import FEW, LAUNCHES, Row
from harness.errors import UserError
from harness.files import replace_file
from harness.git import commit_of
from harness.reports.validation import build, finite

SECTION, UNFINISHED = "kernels", "kernels unfinished"
_LONGEST_REASON = 60
MANY_ROWS, FEW_ROWS = "linear", "gemv"
_HEADINGS = ("layer", "rows", "contestant", "format", "ms", "quartiles", "× bf16", "95 %", "× floor", "error")


def merge(
    path: Path,
    section: str,
    content: Mapping[str, Any],
    figures: Mapping[str, Any],
    outdates: Callable[[str], bool] = lambda _: False,
) -> None:
    """Write a section and its headline figures into a file, keeping what others wrote there.

    Args:
        path: made when missing, with its folder.
        section: name of the command.
        content: replaces what the file holds under that name.
        figures: replace the values of their names at the top of the file.
        outdates: says of a key of the file whether it goes, as what it holds is of an earlier run.

    Raises:
        UserError: the file is there and is no JSON object, or it cannot be written.
    """
    held: Any = {}
    if path.exists():
        held = {key: value for key, value in read(path).items() if not outdates(key)}
    merged = {**held, **finite(dict(figures)), section: finite(dict(content))}
    text = json.dumps(merged, indent=1, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # UTF-8 has no bytes for half of a surrogate pair; written out as \udc80 it is JSON's own escape.
        replace_file(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def read(path: Path) -> dict[str, Any]:
    """Return a result file; raises UserError when it cannot be read or is no JSON object."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON file: {error}") from error
    if not isinstance(held, dict):
        raise UserError(f"{path} holds no JSON object")
    return held


def rows_of(held: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a result file, checked; raises UserError when it holds none.

    Those of an unfinished run where no run was finished.
    """
    section = held.get(SECTION, held.get(UNFINISHED))
    rows = section.get("rows") if isinstance(section, dict) else None
    if not isinstance(rows, list):
        raise UserError("the file holds no rows of `harness bench kernels`")
    try:
        return [build(Row, row, f"row {i}") for i, row in enumerate(rows)]
    except ValueError as error:
        raise UserError(str(error)) from error


def rows_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as JSON objects."""
    return [asdict(row) for row in rows]


def commit() -> str | None:
    """Return the commit of the source tree this runs from, with `+` when files differ; None outside one."""
    found = commit_of(Path(__file__).parent)
    return None if found is None else found.name + "+" * found.dirty


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """Return Markdown tables by name: `linear`, `gemv`, each also with `-eager` and `-compiled`."""
    found = {}
    for name, chosen in ((MANY_ROWS, False), (FEW_ROWS, True)):
        for launch in LAUNCHES:
            part = [row for row in rows if row.launch == launch and (row.rows <= FEW) is chosen]
            if part:
                found[name if launch == "graph" else f"{name}-{launch}"] = markdown(part)
    return found


def figures(held: Mapping[str, Any]) -> dict[str, str]:
    """Return the table `figures` of the numbers at the top of a result file; none where it has none."""
    found = {name: value for name, value in held.items() if isinstance(value, float)}
    if not found:
        return {}
    return {"figures": _aligned([("figure", "value"), *((name, f"{found[name]:.4g}") for name in found)])}


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as an aligned Markdown table."""
    return _aligned([_HEADINGS, *(_cells(row) for row in rows)])


def _aligned(cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of lines of cells, the first the headings."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]

    def line(parts: Sequence[str]) -> str:
        padded = (part.ljust(width) for part, width in zip(parts, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([line(cells[0]), rule, *(line(part) for part in cells[1:])]) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    name = row.contestant + (f" ({row.road})" if row.road else "")
    numbers = f"{row.format} {row.scales}".rstrip()
    head = (f"{row.layer} {row.k} → {row.n}", str(row.rows), name, numbers)
    if row.state != "ok":
        reason = textwrap.shorten(row.reason.replace("|", "/"), _LONGEST_REASON, placeholder="…")
        return (*head, f"n/a: {reason}", "", "", "", "", _error(row))
    interval = (
        "" if row.ratio_lo is None or row.contestant == "bf16" else f"{row.ratio_lo:.2f}–{row.ratio_hi:.2f}"
    )
    return (
        *head,
        _ms(row.ms),
        f"{_ms(row.ms_lo)}–{_ms(row.ms_hi)}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        interval,
        "" if row.of_floor is None else f"{row.of_floor:.2f}",
        _error(row),
    )


def _error(row: Row) -> str:
    """Error against the layer before quantization, and in brackets against the layer's own numbers."""
    text = "" if row.error is None else f"{row.error:.2g}"
    return text if row.kernel_error is None else f"{text} ({row.kernel_error:.2g})"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
