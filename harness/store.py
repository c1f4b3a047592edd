"""The run folder: everything finished is written beside its place, flushed and renamed, and carries a digest.

Nothing read back is believed before its digest agrees; what is damaged reads as missing and is redone.
docs/design.md shows the layout.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from harness.canonical import digest_bytes, digest_file
from harness.errors import UserError
from harness.files import (
    NAME,
    is_disk_full,
    matches,
    parse_json,
    put_folder,
    read_json,
    read_manifest,
    remove,
    replace_file,
    sync,
    write_bytes,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
_LEFTOVER = re.compile(r"\.lock|\.run\.json\.\d+\.tmp")
_LOCK_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
FEATURES = "features.safetensors"
TRAINING_STATE = "state.safetensors"
"""As `harness.methods.training.state` names it, which imports torch."""


@dataclass(frozen=True)
class Block:
    """One block to be stored.

    Attributes:
        images: uint8 [n, height, width, 3].
        features: float32 [n, 64], or None for a prompt set without a recogniser.
        seconds: how long generating it took.
        roads: kernels that ran, by layer; empty where layers have one way only.
    """

    images: NDArray[np.uint8]
    features: NDArray[np.float32] | None
    seconds: float
    roads: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredBlock:
    """One finished block; its images stay in their files.

    Attributes:
        images: files of the images, in order.
        features: float32 [n, 64], or None for a prompt set without a recogniser.
        seconds: how long generating it took.
        judge: digest of what formed the features.
        roads: kernels that ran, by layer; empty where layers have one way only.
    """

    images: tuple[Path, ...]
    features: NDArray[np.float32] | None
    seconds: float
    judge: str
    roads: dict[str, str] = field(default_factory=dict)


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds; nothing when it is not there."""
    return list(folder.iterdir()) if folder.is_dir() else []


class RunStore:
    """The files of one run folder. Holds nothing but the path, so that workers can be handed one."""

    def __init__(self, root: Path) -> None:
        """Speak of the folder `root`; nothing is read or written yet."""
        self.root = root.absolute()

    def check(self, protocol: Mapping[str, Any], digest: str) -> bool:
        """Return whether the folder is a run of this protocol already; False when it is free.

        Raises:
            UserError: it holds a run of another protocol, or something that is not a run.
        """
        if not self._is_run():
            return False
        held = self.header()
        if held.get("hash") != digest:
            was = held["protocol"]
            raise UserError(
                f"{self.root} holds a run of protocol {was.get('name')} with seed {was.get('seed')} "
                f"({held.get('hash')}), not of {protocol['name']} with seed {protocol['seed']} ({digest}); "
                "give another --out"
            )
        return True

    def claim(self, protocol: Mapping[str, Any], digest: str) -> None:
        """Make the folder a run of this protocol, or check that it is one.

        Raises:
            UserError: see `check`; or the folder cannot be made.
        """
        if self.check(protocol, digest):
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_disk_full(error):
                raise
            raise UserError(f"cannot create {self.root}: {error.strerror}") from error
        header = {"schema": SCHEMA, "protocol": dict(protocol), "hash": digest}
        write_json(self.root / "run.json", header)

    def _is_run(self) -> bool:
        """Whether there is a run.json; raises UserError when there is something else.

        A writer that was killed at its first file leaves a folder that holds nothing else: that is free.
        """
        try:
            if (self.root / "run.json").exists():
                return True
            taken = self.root.exists() and not self.root.is_dir()
            taken = taken or any(not _LEFTOVER.fullmatch(p.name) for p in _entries(self.root))
        except OSError as error:
            raise UserError(f"cannot read {self.root}: {error.strerror}") from error
        if taken:
            raise UserError(f"{self.root} exists and is not a run folder; give another --out")
        return False

    def header(self) -> dict[str, Any]:
        """Return run.json; raises UserError when this is not a run folder or the file is damaged."""
        try:
            there = (self.root / "run.json").is_file()
        except OSError as error:
            raise UserError(f"cannot read {self.root}: {error.strerror}") from error
        if not there and not self.root.exists():
            raise UserError(f"{self.root} does not exist")
        if not there:
            raise UserError(f"{self.root} is not a run folder (it has no run.json)")
        held = read_json(self.root / "run.json")
        if held is None or not isinstance(held.get("protocol"), dict):
            raise UserError(f"{self.root / 'run.json'} is damaged")
        if held.get("schema") != SCHEMA:
            raise UserError(f"{self.root} has schema {held.get('schema')!r}; this version reads {SCHEMA}")
        return held

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against other runs.

        Raises:
            UserError: another run has it, or it cannot be written to.
        """
        with self._lock_file() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"another run is writing to {self.root}; wait for it to end") from error
            yield

    def _lock_file(self) -> IO[bytes]:
        try:
            return os.fdopen(os.open(self.root / ".lock", _LOCK_FLAGS, 0o644), "ab")
        except OSError as error:
            if is_disk_full(error):
                raise
            raise UserError(f"cannot write to {self.root / '.lock'}: {error.strerror}") from error

    def cell(self, key: str) -> CellStore:
        """Return the files of cell `key`.

        Raises:
            ValueError: the key is no file name.
            UserError: a link leads out of the run folder.
        """
        return CellStore(self._inside("cells", key))

    def keys(self) -> list[str]:
        """Return the keys of all cells that have a folder, sorted."""
        folder = self.root / "cells"
        return sorted(p.name for p in folder.iterdir() if NAME.fullmatch(p.name)) if folder.is_dir() else []

    def calibration(self, key: str) -> Path:
        """Return where the calibration of `key` lies, whether or not it is there."""
        return self._inside("calibration", f"{key}.safetensors")

    def has_calibration(self, key: str) -> bool:
        """Whether the calibration of `key` is there and undamaged."""
        path = self.calibration(key)
        held = read_json(path.with_suffix(".json"))
        return held is not None and matches(path, held.get("content"))

    def write_calibration(self, key: str, save: Callable[[Path], None]) -> None:
        """Let `save` write the calibration of `key` and put it in its place."""
        path = self.calibration(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.parent / f".{key}.{os.getpid()}.tmp"
        try:
            save(staged)
            sync(staged)
            digest = digest_file(staged)
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
        write_json(path.with_suffix(".json"), {"content": digest})

    def sweep(self) -> None:
        """Remove what interrupted writers left beside its place. Call it holding the lock."""
        folders = [self.root, *self._own(self.root / "calibration")]
        for cells in self._own(self.root / "cells"):
            for cell in (found for entry in _entries(cells) for found in self._own(entry)):
                folders += [cell, *self._own(cell / "blocks")]
        for folder in folders:
            for path in folder.glob(".*.tmp"):
                remove(path)

    def _own(self, folder: Path) -> list[Path]:
        """Return the folder, unless it is none or a link: what lies elsewhere is not this run's to remove."""
        return [folder] if folder.is_dir() and not folder.is_symlink() else []

    def _inside(self, *parts: str) -> Path:
        if not all(NAME.fullmatch(part) for part in parts):
            raise ValueError(f"not a name inside a run folder: {'/'.join(parts)!r}")
        path = self.root.joinpath(*parts)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise UserError(f"{path} is a link that leads out of the run folder; remove it")
        return path


class CellStore:
    """The files of one cell."""

    def __init__(self, folder: Path) -> None:
        """Speak of the folder `cells/KEY`."""
        self.folder = folder
        self.checkpoint = folder / "checkpoint"
        self.log = folder / "log.txt"
        self.training = folder / "training"

    def block_folder(self, index: int) -> Path:
        """Return the folder of block `index`."""
        return self.folder / "blocks" / f"{index:04d}"

    def block_digest(self, index: int, owner: str) -> str | None:
        """Return the digest of block `index`, or None when it is missing, damaged or for another owner."""
        note = self._block_note(index)
        return str(note["digest"]) if note is not None and note.get("owner") == owner else None

    def _block_note(self, index: int) -> dict[str, Any] | None:
        folder = self.block_folder(index)
        return None if folder.parent.is_symlink() else read_manifest(folder)

    def stored_block(self, index: int, owner: str) -> StoredBlock | None:
        """Return block `index`, or None when it is missing, damaged or made for another owner."""
        from safetensors.numpy import load_file

        folder = self.block_folder(index)
        note = self._block_note(index)
        if note is None or note.get("owner") != owner:
            return None
        features = load_file(folder / FEATURES)["features"] if (folder / FEATURES).exists() else None
        roads = {str(layer): str(road) for layer, road in note.get("roads", {}).items()}
        images = tuple(sorted(folder.glob("*.png")))
        return StoredBlock(images, features, float(note["seconds"]), str(note.get("judge")), roads)

    def write_block(self, index: int, owner: str, block: Block, judge: str) -> None:
        """Store block `index`.

        Args:
            index: position of the block in nesting order.
            owner: digest of what the images depend on beyond the cell: prompts and checkpoint.
            block: its content.
            judge: digest of what formed its features.
        """
        from PIL import Image
        from safetensors.numpy import save

        files: dict[str, bytes] = {}
        for position, pixels in enumerate(block.images):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "png", compress_level=3)
            files[f"{position:02d}.png"] = buffer.getvalue()
        if block.features is not None:
            files[FEATURES] = save({"features": block.features})

        def fill(folder: Path) -> None:
            for name, data in files.items():
                write_bytes(folder / name, data)

        note = {"owner": owner, "seconds": round(block.seconds, 3), "judge": judge, "roads": block.roads}
        if self.block_folder(index).parent.is_symlink():
            remove(self.block_folder(index).parent)  # the link, not what it leads to
        put_folder(self.block_folder(index), fill, lambda: note)

    def checkpoint_note(self) -> dict[str, Any] | None:
        """Return the note of the checkpoint, or None when it is missing or damaged.

        Its field `digest` is the digest of the files, whatever the rest of the note says.
        """
        return read_manifest(self.checkpoint)

    def ledger(self) -> dict[str, Any] | None:
        """Return the checkpoint's ledger.json, or None when there is none or the checkpoint is damaged."""
        return None if self.checkpoint_note() is None else parse_json(self.checkpoint / "ledger.json")

    def write_checkpoint(self, fill: Callable[[Path], None], note: Callable[[], dict[str, Any]]) -> None:
        """Store the checkpoint that `fill` writes, with a `note` taken afterwards."""
        put_folder(self.checkpoint, fill, note)

    def drop_training_state(self) -> None:
        """Remove what an interrupted training would go on from; its curve stays."""
        if not self.training.is_symlink():
            remove(self.training / TRAINING_STATE)

    def identity(self) -> dict[str, Any] | None:
        """Return cell.json, or None."""
        return read_json(self.folder / "cell.json")

    def write_identity(self, identity: Mapping[str, Any]) -> None:
        """Write cell.json unless it is there."""
        if self.identity() != identity:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "cell.json", identity)

    def record(self) -> dict[str, Any] | None:
        """Return record.json, or None when it is missing or unreadable."""
        return parse_json(self.folder / "record.json")

    def reduced_from(self) -> str | None:
        """Return what `write_record` was told the record was made from, or None when it is damaged."""
        note = read_json(self.folder / "record.sha256.json")
        if note is None or not matches(self.folder / "record.json", note.get("record")):
            return None
        source = note.get("source")
        return source if isinstance(source, str) else None

    def write_record(self, record: Mapping[str, Any], source: str) -> None:
        """Write record.json, and beside it its digest and what it was made from.

        Args:
            record: the record, JSON types.
            source: a digest of what the record depends on beyond the cell; see `reduced_from`.
        """
        data = (json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / "record.json", data)
        note = {"record": digest_bytes(data), "source": source}
        write_json(self.folder / "record.sha256.json", note)

    def measured(self, owner: str) -> dict[str, Any] | None:
        """Return measured.json, or None when it is missing or belongs to another checkpoint."""
        held = read_json(self.folder / "measured.json")
        ours = held is not None and held.get("owner") == owner and isinstance(held.get("values"), dict)
        return held["values"] if held is not None and ours else None

    def write_measured(self, owner: str, values: Mapping[str, Any]) -> None:
        """Write measured.json for the checkpoint with digest `owner`."""
        write_json(self.folder / "measured.json", {"owner": owner, "values": dict(values)})

    def log_tail(self, lines: int = 40) -> str | None:
        """Return the last lines of log.txt, or None when there are none."""
        if not self.log.is_file():
            return None
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 64 * 1024))
            text = file.read().decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-lines:]) or None
