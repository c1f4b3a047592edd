"""Rows for the leaderboard, taken from a run folder: only of finished cells whose every digest agrees."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness import run as runner
from harness.canonical import digest_bytes, digest_json
from harness.errors import UserError, unknown
from harness.execute import resolve
from harness.files import read_manifest, replace_file
from harness.git import Commit, commit_of, files_at
from harness.plan import KEY_DIGITS
from harness.reports import leaderboard
from harness.reports.leaderboard import Board, Entry
from harness.reports.record import Record, read_records
from harness.request import REFERENCE
from harness.store import CellStore, RunStore
from harness.world import World

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_OWN_FILES = ("**/leaderboard/*.jsonl", "**/leaderboard/*.seal.json")
"""Adding rows changes the tree, but not what made them."""


@dataclass(frozen=True)
class Added:
    """What `add` did.

    Attributes:
        rows: by board, how many rows it got.
        notes: what was left out or is not known, a line each.
    """

    rows: dict[str, int]
    notes: tuple[str, ...]


def own_folder() -> Path:
    """Return the folder of the leaderboard that came with this installation."""
    return Path(leaderboard.__file__).parent


def read(folder: Path) -> list[Board]:
    """Read every board of a folder; raises UserError when one is damaged."""
    try:
        return leaderboard.read_boards(folder)
    except ValueError as error:
        raise UserError(str(error)) from error


def rows_to_verify(folder: Path, since: str | None, cells: Sequence[str]) -> tuple[list[Board], list[Entry]]:
    """Check the files of a leaderboard and return its boards, and the rows that are to be made again.

    Args:
        folder: where they are.
        since: a revision of git: no line that it holds may have changed, and only later rows are meant.
        cells: keys of the cells meant, or their first letters; the newest row of each.

    Returns:
        The boards, and the rows meant; without `since` and `cells` the newest of every series.

    Raises:
        ValueError: a file is damaged, or lines that were there at the revision are not.
        UserError: a cell or the revision is not known.
    """
    boards = leaderboard.read_boards(folder)
    if since is None and not cells:
        return boards, [entry for board in boards for entry in leaderboard.latest(board)]
    everything = [entry for board in boards for entry in board.entries]
    meant = everything if since is None else _later(boards, folder, since)
    if not cells:
        return boards, meant
    newest = {(leaderboard.board_name(e), e.record.identity.cell): e for e in meant}
    found = {start: [entry for (_, key), entry in newest.items() if key.startswith(start)] for start in cells}
    for start, entries in found.items():
        if not entries:
            raise unknown("cell", start, {entry.record.identity.cell for entry in everything})
    chosen = [id(entry) for entries in found.values() for entry in entries]
    return boards, [entry for entry in newest.values() if id(entry) in chosen]


def _later(boards: Sequence[Board], folder: Path, revision: str) -> list[Entry]:
    """Return the rows added since a revision, after checking that none of those before was touched."""
    earlier = files_at(folder, revision, leaderboard.LINES)
    names = {f"{board.name}{leaderboard.LINES}" for board in boards}
    if lost := sorted(set(earlier) - names):
        raise ValueError(f"{folder / lost[0]} is gone; it was there at {revision}")
    found: list[Entry] = []
    for board in boards:
        old = earlier.get(f"{board.name}{leaderboard.LINES}", b"")
        found += board.entries[leaderboard.check_extends(board, old, revision) :]
    return found


def add(run: Path, starts: Sequence[str], folder: Path | None) -> Added:
    """Add the finished cells of a run to the leaderboard, all of them or none.

    Args:
        run: the run folder.
        starts: keys of the cells meant, or their first letters; all cells when empty.
        folder: where the leaderboard's files are, or None for those of this source tree.

    Raises:
        UserError: the run or the leaderboard is damaged, a row is there already, or there is nothing to add.
    """
    board_folder = folder or _own_tree()
    RunStore(run).header()
    try:
        records = _chosen(read_records(run), starts)
    except ValueError as error:
        raise UserError(str(error)) from error
    finished = [record for record in records if record.result.state == "ok"]
    failed = len(records) - len(finished)
    notes = [f"{failed} cells did not finish and were left out"] if failed else []
    if not finished:
        raise UserError(f"{run} holds no finished cell to add")
    rows = _Rows(RunStore(run))
    entries = [rows.entry(record) for record in finished]
    with _lock(board_folder):
        counts = _write(board_folder, entries)
    return Added(counts, (*notes, *rows.notes))


def _own_tree() -> Path:
    folder = own_folder()
    if commit_of(folder) is None:
        raise UserError(f"{folder} is in no git tree, so rows would be lost there; give --board DIR")
    return folder


def _chosen(records: Sequence[Record], starts: Sequence[str]) -> list[Record]:
    """Return the cells asked for, references first: rows of the others are compared with them."""
    found = [r for r in records if not starts or any(r.identity.cell.startswith(s) for s in starts)]
    for start in starts:
        if not any(record.identity.cell.startswith(start) for record in records):
            raise unknown("cell", start, [record.identity.cell for record in records])
    return sorted(found, key=_order)


def _order(record: Record) -> tuple[Any, ...]:
    identity = record.identity
    words = (
        identity.model,
        identity.method != REFERENCE,
        identity.dataset,
        identity.method,
        identity.variant,
    )
    return (*words, identity.wbits, identity.abits, identity.cell)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the leaderboard's folder against other writers."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"cannot use {folder}: {error.strerror}") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _write(folder: Path, entries: Iterable[Entry]) -> dict[str, int]:
    """Add entries to their boards; nothing is written unless all of them can be."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(leaderboard.board_name(entry), []).append(entry)
    try:
        longer = [
            leaderboard.extended(leaderboard.read_board(folder, name), group)
            for name, group in groups.items()
        ]
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        for board in longer:
            replace_file(folder / f"{board.name}{leaderboard.LINES}", board.lines)
            replace_file(folder / f"{board.name}{leaderboard.SEAL}", board.seal)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    return {name: len(group) for name, group in groups.items()}


class _Rows:
    """Makes entries of a run's records, and remembers what there is to say about them."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._world: World = resolve(runner.DEFAULT_WORLD)
        self._commit = commit_of(Path(harness.__file__).parent, *_OWN_FILES)
        self._now = leaderboard.utc(datetime.now(UTC))
        self._block = int(store.header()["protocol"]["block"])
        self._sources: dict[tuple[str, str], dict[str, str] | None] = {}
        self._strange: dict[str, None] = {}

    def entry(self, record: Record) -> Entry:
        """Return the entry of a finished cell, not yet bound to a line before it.

        Raises:
            UserError: its record, identity or images are not what they were written as.
        """
        key = record.identity.cell
        files = self._store.cell(key)
        hashed = files.identity()
        if hashed is None or digest_json(hashed)[:KEY_DIGITS] != key or not files.reduced_from():
            raise UserError(f"{files.folder} is damaged: its record or cell.json was changed; run again")
        commit = self._commit_of(record, hashed["fingerprint"])
        images = first_images(files, record.result.n)
        values = record.result.per_prompt
        return Entry(
            previous=leaderboard.FIRST,
            date=self._now,
            commit=None if commit is None else commit.name,
            dirty=commit is not None and commit.dirty,
            weights=hashed["weights"],
            fingerprint=hashed["fingerprint"],
            block=self._block,
            images=images,
            first={name: found[: len(images)] for name, found in values.items()},
            per_prompt={name: leaderboard.values_digest(found) for name, found in values.items()},
            record=leaderboard.shorten(record),
        )

    def _commit_of(self, record: Record, fingerprint: dict[str, str]) -> Commit | None:
        """Return the commit checked out, if the cell was made by the very sources that are here."""
        identity = record.identity
        if self._commit is None or self._here(identity.device, identity.method) == fingerprint:
            return self._commit
        self._strange[identity.method] = None
        return None

    def _here(self, device: str, method: str) -> dict[str, str] | None:
        """Return the fingerprint that a cell of the method would get now, or None without such a method."""
        if (device, method) not in self._sources:
            try:
                own = "" if method == REFERENCE else self._world.method(method, {}).fingerprint
                self._sources[device, method] = {**self._world.fingerprint(device), "method": own}
            except UserError:
                self._sources[device, method] = None
        return self._sources[device, method]

    @property
    def notes(self) -> list[str]:
        """What is not known of the rows, a line each."""
        if self._commit is None:
            return ["no commit is noted: the sources are in no git tree"]
        if not self._strange:
            return []
        methods = ", ".join(self._strange)
        return [f"no commit is noted of {methods}: made by other sources or libraries than these"]


def first_images(files: CellStore, n: int) -> list[str]:
    """Return the digests of the pixels of a cell's first images, at most `leaderboard.IMAGES` and `n`.

    Raises:
        UserError: a block is missing or damaged.
    """
    from harness.reports.contact import open_png

    wanted = min(leaderboard.IMAGES, n)
    found: list[str] = []
    for index in range(wanted):  # a block holds at least one image
        if len(found) >= wanted:
            break
        folder = files.block_folder(index)
        if read_manifest(folder) is None:
            raise UserError(f"{folder} is missing or damaged; run again")
        try:
            for path in sorted(folder.glob("*.png"))[: wanted - len(found)]:
                with open_png(path) as image:
                    found.append(_pixels_digest(image.convert("RGB")))
        except ValueError as error:
            raise UserError(str(error)) from error
    return found


def _pixels_digest(image: Any) -> str:
    """Return the sha256 of an image's size and pixels, whatever encoder wrote its file."""
    import numpy as np

    pixels: NDArray[np.uint8] = np.asarray(image, dtype=np.uint8)
    return digest_bytes(f"{image.width}x{image.height} RGB\n".encode() + pixels.tobytes())
