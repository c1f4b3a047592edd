"""LaTeX with booktabs: one table per model, to be input as it is. Plain ASCII, every name escaped."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby

from harness.reports.formats.layout import LEFT_ALIGNED, STRONG_NOTE, Column, Entry, Sheet, lay_out
from harness.reports.record import Record

_COMMANDS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    '"': r"\textquotedbl{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$",
    "–": r"\textendash{}", "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}", "·": r"$\cdot$", "…": r"\ldots{}",
    "±": r"$\pm$",
    "[": "{[}", "]": "{]}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r", "\u030c": "v",
    "\u0327": "c",
}  # fmt: skip
_HEADER = """% The preamble needs:
%   \\usepackage[T1]{fontenc}
%   \\usepackage{textcomp}
%   \\usepackage{booktabs}
%   \\usepackage{graphicx}
"""


def escape(text: str) -> str:
    """Return `text` as ASCII LaTeX that prints it; characters without a command print as U+XXXX."""
    return "".join(_character(char) for char in text).replace("--", "-{}-")


def _character(char: str) -> str:
    """Return the LaTeX of one character."""
    if char in _COMMANDS:
        return _COMMANDS[char]
    if char.isascii():
        return char
    base, *marks = list(unicodedata.normalize("NFD", char))
    if base.isascii() and base.isalpha() and len(marks) == 1 and marks[0] in _ACCENTS:
        return f"\\{_ACCENTS[marks[0]]}{{{base}}}"
    return f"\\texttt{{U+{ord(char):04X}}}"


def render(records: Iterable[Record]) -> str:
    """Return one table environment per model, the footnotes under each."""
    document = lay_out(records)
    if not document.sheets:
        return "".join(f"% {escape(note)}\n" for note in document.notes)
    notes = [escape(note) for note in (*document.notes, STRONG_NOTE)]
    return _HEADER + "\n".join(_sheet(sheet, notes) for sheet in document.sheets)


def _sheet(sheet: Sheet, notes: Sequence[str]) -> str:
    """Return one table environment."""
    alignment = "".join("l" if column.key in LEFT_ALIGNED else "r" for column in sheet.columns)
    label = re.sub(r"[^A-Za-z0-9]+", "-", sheet.title).strip("-").lower()
    lines = [_row(entries) for entries in sheet.entries]
    if sheet.entries[0][0].value == "reference" and len(lines) > 1:
        lines.insert(1, r"\midrule")
    body = "\n".join(f"    {line}" for line in lines)
    return f"""\\begin{{table*}}[t]
  \\centering
  \\caption{{Quantization of {escape(sheet.title)}: size, quality and cost.}}
  \\label{{tab:{label}}}
  \\resizebox{{\\linewidth}}{{!}}{{%
  \\begin{{tabular}}{{@{{}}{alignment}@{{}}}}
    \\toprule
{_heading(sheet.columns)}
    \\midrule
{body}
    \\bottomrule
  \\end{{tabular}}}}

  \\vspace{{2pt}}
  \\parbox{{\\linewidth}}{{\\scriptsize\\raggedright
{chr(10).join(f"    {note}{chr(92)}par" for note in notes)}
  }}
\\end{{table*}}
"""


def _heading(columns: Sequence[Column]) -> str:
    """Return the two rows of the heading: what columns have in common over rules, then their names."""
    spans, rules, position = [], [], 1
    for span, members in groupby(columns, key=lambda column: column.span):
        count = len(list(members))
        if span:
            spans.append(f"\\multicolumn{{{count}}}{{c}}{{{escape(span)}}}")
            rules.append(f"\\cmidrule(lr){{{position}-{position + count - 1}}}")
        else:
            spans.extend([""] * count)
        position += count
    names = " & ".join(escape(column.heading) for column in columns)
    return f"    {' & '.join(spans)} \\\\\n    {''.join(rules)}\n    {names} \\\\"


def _row(entries: Sequence[Entry]) -> str:
    """Return one row."""
    cells = (
        f"\\textbf{{{escape(entry.text)}}}" if entry.strong or entry.failed else escape(entry.text)
        for entry in entries
    )
    return " & ".join(cells) + r" \\"
