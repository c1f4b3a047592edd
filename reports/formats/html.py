"""HTML: one self-contained page, light and dark, with columns that sort on a click."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from harness.reports.formats.layout import (
    LEFT_ALIGNED,
    STRONG_NOTE,
    Column,
    Entry,
    Sheet,
    lay_out,
    sort_value,
)
from harness.reports.record import Record
from harness.reports.rows import REFERENCE

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1c1f; --paper: #fff; --rule: #c9ced6; --soft: #5b6470;
  --stripe: #f5f6f8; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --paper: #15171a; --rule: #3a4049;
    --soft: #9aa3af; --stripe: #1c1f24; --bad: #ff8a80; }
}
body { margin: 2rem auto; max-width: 90rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; font-size: 13px; }
table { border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink); }
th, td { padding: .25rem .6rem; text-align: right; }
th { font-weight: 600; vertical-align: bottom; }
.left { text-align: left; }
thead tr:last-child th { border-bottom: 1px solid var(--ink); }
.span { text-align: center; font-weight: 400; color: var(--soft); border-bottom: 1px solid var(--rule); }
tbody tr:nth-child(even) { background: var(--stripe); }
.reference td { font-style: italic; border-bottom: 1px solid var(--rule); }
.failed { color: var(--bad); font-weight: 700; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\25B4"; }
th[aria-sort=descending] button::after { content: " \\25BE"; }
.notes { color: var(--soft); font-size: 12.5px; max-width: 60rem; padding-left: 1.1rem; }
"""

_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, row = head.parentElement, body = head.closest("table").tBodies[0];
  const index = [...row.cells].indexOf(head);
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const cell of row.cells) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (line) => line.cells[index].dataset.value;
  const order = (a, b) => {
    const x = value(a), y = value(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    const by = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return down ? -by : by;
  };
  body.append(...[...body.rows].sort(order));
});
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render(records: Iterable[Record]) -> str:
    """Return a page that loads nothing, with one table per model and the footnotes."""
    document = lay_out(records)
    notes = [*document.notes, STRONG_NOTE] if document.sheets else document.notes
    items = "\n".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Low-bit quantization of diffusion models</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Low-bit quantization of diffusion models</h1>
{"".join(_sheet(sheet) for sheet in document.sheets)}
<ul class="notes">
{items}
</ul>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _sheet(sheet: Sheet) -> str:
    """Return one headed table."""
    rows = "\n".join(_row(sheet.columns, entries) for entries in sheet.entries)
    return f"""<h2>{escape(sheet.title)}</h2>
<div class="scroll">
<table>
<thead>
{_heading(sheet.columns)}
</thead>
<tbody>
{rows}
</tbody>
</table>
</div>
"""


def _heading(columns: Sequence[Column]) -> str:
    """Return the two rows of the heading."""
    spans = []
    for span, members in groupby(columns, key=lambda column: column.span):
        count = len(list(members))
        spans.append(
            f'<th class="span" colspan="{count}" scope="colgroup">{escape(span)}</th>'
            if span
            else f'<td colspan="{count}"></td>'
        )
    names = "".join(
        f'<th scope="col"{_left(column)}><button type="button">{escape(column.heading)}</button></th>'
        for column in columns
    )
    return f"<tr>{''.join(spans)}</tr>\n<tr>{names}</tr>"


def _row(columns: Sequence[Column], entries: Sequence[Entry]) -> str:
    """Return one row; `data-value` is what it sorts by."""
    cells = "".join(
        f'<td{_left(column)} data-value="{escape(sort_value(entry))}">{_text(entry)}</td>'
        for column, entry in zip(columns, entries, strict=True)
    )
    kind = ' class="reference"' if entries[0].value == REFERENCE else ""
    return f"<tr{kind}>{cells}</tr>"


def _left(column: Column) -> str:
    """Return the attribute that aligns a column of words."""
    return ' class="left"' if column.key in LEFT_ALIGNED else ""


def _text(entry: Entry) -> str:
    """Return the text of an entry with its emphasis."""
    text = escape(entry.text)
    if entry.failed:
        return f'<span class="failed">{text}</span>'
    return f"<strong>{text}</strong>" if entry.strong else text
