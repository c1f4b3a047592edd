"""HTML fragments: tables to be set into a page of one's own, without style or script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from harness.reports.formats.layout import LEFT_ALIGNED, STRONG_NOTE, Column, Document, Entry, Sheet, lay_out
from harness.reports.formats.spans import spans
from harness.reports.record import Record


def render(records: Iterable[Record]) -> str:
    """Return one figure per model, the footnotes after the last."""
    document = lay_out(records)
    notes = (*document.notes, STRONG_NOTE) if document.sheets else document.notes
    return render_document(Document(document.sheets, notes))


def render_document(document: Document) -> str:
    """Return one `<figure class="harness-table">` for each table, the footnotes after the last.

    All text is escaped. The first row of each section has the class `rule`, entries that deserve emphasis
    stand in `<strong>`, signs in `<sup>`.
    """
    figures = "".join(_sheet(sheet) for sheet in document.sheets)
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in document.notes)
    return f'{figures}<ul class="harness-notes">\n{notes}</ul>\n'


def _sheet(sheet: Sheet) -> str:
    """Return one table."""
    body = "\n".join(_row(sheet, index) for index in range(len(sheet.entries)))
    return f"""<figure class="harness-table">
<table>
<caption>{escape(sheet.caption)}</caption>
<thead>
{_heading(sheet.columns)}
</thead>
<tbody>
{body}
</tbody>
</table>
</figure>
"""


def _heading(columns: Sequence[Column]) -> str:
    """Return the headings, under a row of spans where there are some."""
    names = "".join(f'<th scope="col"{_align(column)}>{escape(column.heading)}</th>' for column in columns)
    if not any(column.span for column in columns):
        return f"<tr>{names}</tr>"
    over = "".join(
        f'<th colspan="{count}" scope="colgroup">{escape(span)}</th>'
        if span
        else f'<td colspan="{count}"></td>'
        for span, count in spans(columns)
    )
    return f"<tr>{over}</tr>\n<tr>{names}</tr>"


def _row(sheet: Sheet, index: int) -> str:
    """Return one row."""
    cells = "".join(
        f"<td{_align(column)}>{_entry(entry)}</td>"
        for column, entry in zip(sheet.columns, sheet.entries[index], strict=True)
    )
    return f'<tr class="rule">{cells}</tr>' if index in sheet.rules else f"<tr>{cells}</tr>"


def _align(column: Column) -> str:
    """Return the attribute that aligns a column of figures."""
    return "" if column.key in LEFT_ALIGNED else ' style="text-align: right"'


def _entry(entry: Entry) -> str:
    """Return one entry with its emphasis and its sign."""
    text = escape(entry.text)
    if entry.strong or entry.failed:
        text = f"<strong>{text}</strong>"
    return f"{text}<sup>{escape(entry.mark)}</sup>" if entry.mark else text
