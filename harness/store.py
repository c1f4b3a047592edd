"""The run folder: everything finished is written beside its place, flushed and renamed, and carries a digest.

Nothing read back is believed before its digest agrees; what is damaged reads as missing and is redone.
docs/design.md shows the layout.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
FEATURES = "features.safetensors"


@dataclass(frozen=True)
class Block:
    """One finished block.

    Attributes:
        images: uint8 [n, height, width, 3].
        features: float32 [n, 64], or None for a prompt set without a recogniser.
        seconds: how long generating it took.
        judge: digest of what formed the features.
    """

    images: NDArray[np.uint8]
    features: NDArray[np.float32] | None
    seconds: float
    judge: str = ""


class RunStore:
    """The files of one run folder. Holds nothing but the path, so that workers can be handed one."""

    def __init__(self, root: Path) -> None:
        """Speak of the folder `root`; nothing is read or written yet."""
        self.root = root.absolute()

    def claim(self, protocol: Mapping[str, Any], digest: str) -> None:
        """Make the folder a run of this protocol, or check that it is one.

        Raises:
            UserError: it holds a run of another protocol, or something that is not a run.
        """
        if (self.root / "run.json").exists():
            held = self.header()
            if held["hash"] != digest:
                was = held["protocol"]
                raise UserError(
                    f"{self.root} holds a run of protocol {was.get('name')} with seed {was.get('seed')} "
                    f"({held['hash']}), not of {protocol['name']} with seed {protocol['seed']} ({digest}); "
                    "give another --out"
                )
            return
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise UserError(f"{self.root} exists and is not a run folder; give another --out")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_disk_full(error):
                raise
            raise UserError(f"cannot create {self.root}: {error.strerror}") from error
        header = {"schema": SCHEMA, "protocol": dict(protocol), "hash": digest}
        write_json(self.root / "run.json", header)

    def header(self) -> dict[str, Any]:
        """Return run.json; raises UserError when this is not a run folder or the file is damaged."""
        if not (self.root / "run.json").is_file():
            raise UserError(f"{self.root} is not a run folder (it has no run.json)")
        held = read_json(self.root / "run.json")
        if held is None or not isinstance(held.get("protocol"), dict):
            raise UserError(f"{self.root / 'run.json'} is damaged")
        if held.get("schema") != SCHEMA:
            raise UserError(f"{self.root} has schema {held.get('schema')!r}; this version reads {SCHEMA}")
        return held

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against other runs; raises UserError when one has it."""
        with (self.root / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"another run is writing to {self.root}; wait for it to end") from error
            yield

    def cell(self, key: str) -> CellStore:
        """Return the files of cell `key`; raises ValueError for a key that would leave the folder."""
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
        folders = [self.root, self.root / "calibration"]
        for cell in (self.root / "cells").glob("*"):
            folders += [cell, cell / "blocks"]
        for folder in folders:
            for path in folder.glob(".*.tmp"):
                remove(path)

    def _inside(self, *parts: str) -> Path:
        if not all(NAME.fullmatch(part) for part in parts):
            raise ValueError(f"not a name inside a run folder: {'/'.join(parts)!r}")
        path = self.root.joinpath(*parts)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(f"{path} leads out of the run folder")
        return path


class CellStore:
    """The files of one cell."""

    def __init__(self, folder: Path) -> None:
        """Speak of the folder `cells/KEY`."""
        self.folder = folder
        self.checkpoint = folder / "checkpoint"
        self.log = folder / "log.txt"

    def block_folder(self, index: int) -> Path:
        """Return the folder of block `index`."""
        return self.folder / "blocks" / f"{index:04d}"

    def block_digest(self, index: int, owner: str) -> str | None:
        """Return the digest of block `index`, or None when it is missing, damaged or for another owner."""
        note = read_manifest(self.block_folder(index))
        return str(note["digest"]) if note is not None and note.get("owner") == owner else None

    def read_block(self, index: int, owner: str) -> Block | None:
        """Return block `index`, or None when it is missing, damaged or made for another owner."""
        import numpy as np
        from PIL import Image
        from safetensors.numpy import load_file

        folder = self.block_folder(index)
        note = read_manifest(folder)
        if note is None or note.get("owner") != owner:
            return None
        images = []
        for path in sorted(folder.glob("*.png")):
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB"), dtype=np.uint8))
        features = load_file(folder / FEATURES)["features"] if (folder / FEATURES).exists() else None
        return Block(np.stack(images), features, float(note["seconds"]), str(note.get("judge")))

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

        note = {"owner": owner, "seconds": round(block.seconds, 3), "judge": judge}
        put_folder(self.block_folder(index), fill, lambda: note)

    def checkpoint_note(self) -> dict[str, Any] | None:
        """Return the note of the checkpoint, or None when it is missing or damaged.

        Its field `digest` is the digest of the files, whatever the rest of the note says.
        """
        return read_manifest(self.checkpoint)

    def write_checkpoint(self, fill: Callable[[Path], None], note: Callable[[], dict[str, Any]]) -> None:
        """Store the checkpoint that `fill` writes, with a `note` taken afterwards."""
        put_folder(self.checkpoint, fill, note)

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
