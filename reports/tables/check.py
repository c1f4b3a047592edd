"""Tables kept in files and documents: whether they still say what the records say, and writing them anew."""

from __future__ import annotations

import difflib
from pathlib import Path

SUFFIXES = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".tex": "latex",
    ".csv": "csv",
    ".html": "html",
    ".htm": "html",
    ".typ": "typst",
    ".json": "json",
    ".jsonl": "jsonl",
    ".txt": "table",
}
"""The format that a file's name implies."""

_COMMENTS = {".md": "<!-- {} -->", ".markdown": "<!-- {} -->", ".html": "<!-- {} -->", ".htm": "<!-- {} -->"}
_COMMENTS |= {".tex": "% {}", ".typ": "// {}"}
_MOST_LINES = 40


def markers(path: Path, name: str) -> tuple[str, str] | None:
    """Return the two lines that enclose the table `name` in a document, or None for a format without them."""
    comment = _COMMENTS.get(path.suffix)
    if comment is None:
        return None
    return comment.format(f"table {name}"), comment.format(f"end of table {name}")


def embedded(path: Path, name: str, text: str) -> str | None:
    """Return the part of a document's `text` that is the table `name`; None for any other file.

    Raises:
        ValueError: the document begins the table more than once, or does not end it.
    """
    found = _find(path, name, text)
    return None if found is None else text[found[0] : found[1]]


def replaced(path: Path, name: str, text: str, table: str) -> str:
    """Return what the file at `path`, which holds `text`, is to hold.

    That is the document with its table replaced or, for any other file, just the table.

    Raises:
        ValueError: as `embedded`.
    """
    found = _find(path, name, text)
    return table if found is None else text[: found[0]] + _framed(table) + text[found[1] :]


def difference(path: Path, name: str, text: str, table: str) -> str:
    """Return how what is kept departs from the table as the records give it: a unified diff, or nothing.

    Args:
        path: the file; its name says which comments enclose a table.
        name: the table's name.
        text: the file's content: the table, or a document that holds it between two marker lines.
        table: the table as it should be.

    Raises:
        ValueError: as `embedded`.
    """
    kept = embedded(path, name, text)
    wanted = table if kept is None else _framed(table)
    old = (text if kept is None else kept).splitlines()
    lines = list(difflib.unified_diff(old, wanted.splitlines(), str(path), "records", lineterm="", n=1))
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"... and {len(lines) - _MOST_LINES} more lines"]
    return "\n".join(lines)


def _framed(table: str) -> str:
    """Return the table with an empty line before and after, which Markdown needs beside a comment."""
    return f"\n{table}\n"


def _find(path: Path, name: str, text: str) -> tuple[int, int] | None:
    """Return where the table begins and ends in a document."""
    lines = markers(path, name)
    if lines is None:
        return None
    begin, end = (f"{line}\n" for line in lines)
    first = _line(text, begin, 0)
    if first is None:
        return None
    start = first + len(begin)
    if _line(text, begin, start) is not None:
        raise ValueError(f"{path}: holds the line {begin.strip()!r:.80} more than once")
    stop = _line(text + "\n" * (not text.endswith("\n")), end, start)
    if stop is None:
        raise ValueError(f"{path}: lacks the line {end.strip()!r:.80} after {begin.strip()!r:.80}")
    return start, stop


def _line(text: str, line: str, start: int) -> int | None:
    """Return where a whole line stands at or after `start`."""
    if text.startswith(line, start) and (start == 0 or text[start - 1] == "\n"):
        return start
    at = text.find("\n" + line, max(0, start - 1))
    return None if at < 0 else at + 1
