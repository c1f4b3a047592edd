"""Files of the leaderboard: append-only lines, each with the digest of the line before, and a seal.

A line that was edited, inserted, moved or removed breaks the chain; lines cut off the end break the seal, a
small file beside it with their number and the digest of the last. Whoever rewrites a whole file and its seal
is found by comparing with an earlier copy: `check_extends`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.reports.leaderboard.entry import FIRST, LINE_LIMIT, Entry, digest, parse_line, to_line

LINES, SEAL = ".jsonl", ".seal.json"
FILE_LIMIT = 128 * 2**20
"""Bytes of a file: some 40,000 lines."""


@dataclass(frozen=True)
class Board:
    """The rows of one protocol.

    Attributes:
        name: `PROTOCOL-HASH`, the name of its files without their ends.
        entries: in the order they were added.
        lines: the file's bytes.
    """

    name: str
    entries: tuple[Entry, ...]
    lines: bytes

    @property
    def last(self) -> str:
        """Digest of the last line."""
        return digest(self.lines.splitlines()[-1]) if self.entries else FIRST

    @property
    def seal(self) -> bytes:
        """What the file beside the lines says."""
        return (json.dumps({"lines": len(self.entries), "last": self.last}, indent=1) + "\n").encode()


def board_name(entry: Entry) -> str:
    """Return the name of the board an entry belongs to."""
    return f"{entry.record.identity.protocol}-{entry.record.identity.protocol_hash}"


def read_boards(folder: Path) -> list[Board]:
    """Read and check every board of a folder, in the order of their names.

    Raises:
        ValueError: one line naming the file and, where it is one's, the line that is wrong.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    names = sorted(path.name.removesuffix(LINES) for path in folder.glob(f"*{LINES}"))
    seals = {path.name.removesuffix(SEAL) for path in folder.glob(f"*{SEAL}")}
    if lost := sorted(seals - set(names)):
        raise ValueError(f"{folder / (lost[0] + LINES)} is gone; its seal is still there")
    return [read_board(folder, name) for name in names]


def read_board(folder: Path, name: str) -> Board:
    """Read and check one board; one without files is empty.

    Raises:
        ValueError: as `read_boards`.
    """
    path, seal = folder / f"{name}{LINES}", folder / f"{name}{SEAL}"
    if not (path.exists() or path.is_symlink() or seal.exists()):
        return Board(name, (), b"")
    try:
        return parse_board(name, _content(path), _content(seal))
    except ValueError as error:
        raise ValueError(f"{path}{error}") from error


def _content(path: Path) -> bytes:
    """Read a plain file of moderate size; messages continue its name."""
    if path.is_symlink():
        raise ValueError(f": {path.name} is a link; the leaderboard holds plain files")
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise ValueError(f": {path.name} is larger than {FILE_LIMIT} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f": cannot read {path.name}: {error.strerror}") from error


def parse_board(name: str, lines: bytes, seal: bytes) -> Board:
    """Check the lines of a board and its seal.

    Raises:
        ValueError: what is wrong, beginning with `, line N: ` or `: ` to follow a file's name.
    """
    entries: list[Entry] = []
    previous, seen = FIRST, dict[tuple[str, int, str | None, str], int]()
    if lines and not lines.endswith(b"\n"):
        raise ValueError(": the last line is cut off")
    for number, raw in enumerate(lines.split(b"\n")[:-1], start=1):
        try:
            entry = _parse(raw)
            if entry.previous != previous:
                raise ValueError("the chain is broken: a line before it was edited, removed or put in")
            _check_belongs(name, entry)
            if (twin := seen.setdefault(entry.sameness, number)) != number:
                raise ValueError(f"a second line of cell {entry.record.identity.cell}, as line {twin}")
        except ValueError as error:
            raise ValueError(f", line {number}: {error}") from error
        entries.append(entry)
        previous = digest(raw)
    board = Board(name, tuple(entries), lines)
    _check_seal(board, seal)
    return board


def _parse(raw: bytes) -> Entry:
    if len(raw) > LINE_LIMIT:
        raise ValueError(f"{len(raw)} bytes are too many for a line; {LINE_LIMIT} are allowed")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("no UTF-8 text") from None
    return parse_line(text)


def _check_belongs(name: str, entry: Entry) -> None:
    if board_name(entry) != name:
        raise ValueError(f"a row of protocol {board_name(entry)} does not belong here")


def _check_seal(board: Board, seal: bytes) -> None:
    """Check that no line was cut off the end, and that none was put there by hand."""
    if seal == board.seal:
        return
    try:
        held = json.loads(seal)
        sealed = int(held["lines"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f": {board.name}{SEAL} is damaged") from None
    there = len(board.entries)
    if sealed > there:
        raise ValueError(f": {sealed - there} of {sealed} lines are gone from its end")
    if sealed < there:
        raise ValueError(f": its seal ends at line {sealed}; line {sealed + 1} was not written by `add`")
    raise ValueError(f": the last line is not the one that {board.name}{SEAL} seals")


def extended(board: Board, entries: Iterable[Entry]) -> Board:
    """Return the board with entries added at its end, each bound to the line before it.

    Raises:
        ValueError: an entry breaks the schema, is of another protocol, or is there already.
    """
    added, raw, previous = list(board.entries), [board.lines], board.last
    seen = {entry.sameness for entry in added}
    for entry in entries:
        bound = replace(entry, previous=previous)
        _check_belongs(board.name, bound)
        if bound.sameness in seen:
            raise ValueError(
                f"cell {entry.record.identity.cell} is there already, of the same commit and machine"
            )
        seen.add(bound.sameness)
        line = to_line(bound).encode()
        added.append(bound)
        raw.append(line + b"\n")
        previous = digest(line)
    return Board(board.name, tuple(added), b"".join(raw))


def check_extends(board: Board, earlier: bytes, what: str) -> int:
    """Check that a board begins with the bytes of an earlier copy; return how many lines those are.

    Raises:
        ValueError: it does not: lines were changed since; the first is named.
    """
    if board.lines.startswith(earlier) and (not earlier or earlier.endswith(b"\n")):
        return earlier.count(b"\n")
    old, new = earlier.splitlines(), board.lines.splitlines()
    differs = (index for index, pair in enumerate(zip(old, new, strict=False), start=1) if pair[0] != pair[1])
    first = next(differs, min(len(old), len(new)) + 1)
    raise ValueError(
        f"{board.name}{LINES}, line {first}: not what it was at {what}; lines are only ever added"
    )
