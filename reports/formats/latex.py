"""LaTeX with booktabs: one table per model. Plain ASCII, every name escaped.

The file compiles as it is, and a document that loads the packages named in its first lines can input it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from harness.reports.formats.layout import LEFT_ALIGNED, STRONG_NOTE, Column, Document, Entry, Sheet, lay_out
from harness.reports.formats.spans import spans
from harness.reports.record import Record

_COMMANDS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    '"': r"\textquotedbl{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$",
    "–": r"\textendash{}", "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}", "·": r"$\cdot$", "…": r"\ldots{}",
    "±": r"$\pm$", "≈": r"$\approx$", "§": r"\S{}", "¶": r"\P{}", "Δ": r"$\Delta$", "Σ": r"$\Sigma$",
    "α": r"$\alpha$", "−": r"$-$",
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
# Without a class there is no \thepage: the file is not input by another but compiled itself.
_ALONE = """\\ifdefined\\thepage\\else
  \\documentclass{article}
  \\usepackage[a4paper,landscape,margin=15mm]{geometry}
  \\usepackage[T1]{fontenc}
  \\usepackage{textcomp}
  \\usepackage{booktabs}
  \\usepackage{graphicx}
  \\def\\HarnessTablesEnd{\\end{document}}
  \\begin{document}
\\fi
"""
_END = "\n\\ifdefined\\HarnessTablesEnd\\expandafter\\HarnessTablesEnd\\fi\n"


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
    return _file(_sheet(sheet, notes) for sheet in document.sheets)


def render_document(document: Document) -> str:
    """Return one table environment for each table, the footnotes under each."""
    notes = [escape(note) for note in document.notes]
    return _file(_sheet(sheet, notes) for sheet in document.sheets)


def _file(tables: Iterable[str]) -> str:
    """Return a file of tables, which can be compiled or input."""
    return _HEADER + _ALONE + "\n" + "\n".join(tables) + _END


def _sheet(sheet: Sheet, notes: Sequence[str]) -> str:
    """Return one table environment."""
    alignment = "".join("l" if column.key in LEFT_ALIGNED else "r" for column in sheet.columns)
    label = re.sub(r"[^A-Za-z0-9]+", "-", sheet.title).strip("-").lower()
    lines = [
        (r"\midrule" + "\n    ") * (index in sheet.rules) + _row(entries)
        for index, entries in enumerate(sheet.entries)
    ]
    body = "\n".join(f"    {line}" for line in lines)
    return f"""\\begin{{table*}}[t]
  \\centering
  \\caption{{{escape(sheet.caption)}}}
  \\label{{tab:{label}}}
  \\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%
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
    """Return the heading: what columns have in common over rules, if anything, then their names."""
    names = " & ".join(escape(column.heading) for column in columns)
    if not any(column.span for column in columns):
        return f"    {names} \\\\"
    over, rules, position = [], [], 1
    for span, count in spans(columns):
        if span:
            over.append(f"\\multicolumn{{{count}}}{{c}}{{{escape(span)}}}")
            rules.append(f"\\cmidrule(lr){{{position}-{position + count - 1}}}")
        else:
            over.extend([""] * count)
        position += count
    return f"    {' & '.join(over)} \\\\\n    {''.join(rules)}\n    {names} \\\\"


def _row(entries: Sequence[Entry]) -> str:
    """Return one row."""
    return " & ".join(map(_entry, entries)) + r" \\"


def _entry(entry: Entry) -> str:
    """Return one entry; its sign hangs out of the column, so that figures stay aligned."""
    text = escape(entry.text)
    if entry.strong or entry.failed:
        text = f"\\textbf{{{text}}}"
    if not entry.mark:
        return text
    mark = f"\\textsuperscript{{{escape(entry.mark)}}}"
    return text + (mark if isinstance(entry.value, str) else f"\\rlap{{{mark}}}")
