r"""Typst: one figure per table, to be compiled or included as it is.

Every text is a string literal, never markup: in a string only `\` and `"` mean something.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from harness.reports.formats.layout import LEFT_ALIGNED, STRONG_NOTE, Column, Document, Entry, Sheet, lay_out
from harness.reports.formats.spans import spans
from harness.reports.record import Record

_SETTINGS = """#set table(stroke: none, inset: (x: 4pt, y: 3pt))
#set text(size: 7pt)
#show figure.where(kind: table): set figure.caption(position: top)
"""


def literal(text: str) -> str:
    """Return `text` as a Typst string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def render(records: Iterable[Record]) -> str:
    """Return one figure per model, the footnotes after the last."""
    document = lay_out(records)
    notes = (*document.notes, STRONG_NOTE) if document.sheets else document.notes
    return render_document(Document(document.sheets, notes))


def render_document(document: Document) -> str:
    """Return one figure for each table, the footnotes after the last, in a block with its own settings."""
    figures = "\n".join(_sheet(sheet) for sheet in document.sheets)
    notes = "\n".join(f"#par(text(size: 6pt, {literal(note)}))" for note in document.notes)
    return f"#[\n{_SETTINGS}\n{figures}\n{notes}\n]\n"


def _sheet(sheet: Sheet) -> str:
    """Return one table, its caption and its label."""
    label = re.sub(r"[^A-Za-z0-9]+", "-", sheet.title).strip("-").lower()
    alignment = ", ".join("left" if column.key in LEFT_ALIGNED else "right" for column in sheet.columns)
    lines = []
    for index, entries in enumerate(sheet.entries):
        if index in sheet.rules:
            lines.append("table.hline(stroke: 0.5pt)")
        lines.append(", ".join(map(_entry, entries)))
    body = "".join(f"    {line},\n" for line in lines)
    return f"""#figure(
  table(
    columns: {len(sheet.columns)},
    align: ({alignment},),
    table.hline(),
{_heading(sheet.columns)}
    table.hline(stroke: 0.5pt),
{body}    table.hline(),
  ),
  caption: {literal(sheet.caption)},
) <tab-{label}>
"""


def _heading(columns: Sequence[Column]) -> str:
    """Return the headings, under a row of spans where there are some."""
    names = ", ".join(literal(column.heading) for column in columns)
    if not any(column.span for column in columns):
        return f"    table.header({names}),"
    over = ", ".join(
        f"table.cell(colspan: {count}, align: center, {literal(span)})" for span, count in spans(columns)
    )
    return f"    table.header({over}, {names}),"


def _entry(entry: Entry) -> str:
    """Return one entry with its emphasis and its sign."""
    text = literal(entry.text)
    if entry.strong or entry.failed:
        text = f"strong({text})"
    return f"{text} + super({literal(entry.mark)})" if entry.mark else text
