"""Files that are there whole or not at all, and are not believed before their digest agrees."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.canonical import digest_file, digest_json

DIGEST = "digest.json"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
"""File names that can be read from a file and used: no separators, no leading dot."""


def put_folder(folder: Path, fill: Callable[[Path], None], note: Callable[[], dict[str, Any]]) -> None:
    """Make `folder` hold what `fill` writes, all of it or nothing, with a digest of every file.

    A damaged folder in its place is replaced.

    Raises:
        OSError: the disk is full, among others; nothing is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    remove(staged)
    try:
        staged.mkdir()
        fill(staged)
        files = {path.name: path for path in sorted(staged.iterdir())}
        for path in files.values():
            sync(path)
        manifest = {"files": {name: digest_file(path) for name, path in files.items()}, "note": note()}
        write_bytes(staged / DIGEST, seal(manifest))
        sync(staged)
        remove(folder)
        staged.rename(folder)
        sync(folder.parent)
    finally:
        remove(staged)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the note of a finished folder with the `digest` of its files, or None.

    None unless the folder holds exactly the files it was written with, each with its digest.
    """
    if folder.is_symlink() or not folder.is_dir():
        return None
    manifest = read_json(folder / DIGEST)
    if manifest is None or not isinstance(manifest.get("note"), dict):
        return None
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(NAME.fullmatch(name) for name in files):
        return None
    if {path.name for path in folder.iterdir()} != {DIGEST, *files}:
        return None
    sound = all(matches(folder / name, digest) for name, digest in files.items())
    return {**manifest["note"], "digest": digest_json(files)} if sound else None


def seal(value: Mapping[str, Any]) -> bytes:
    """Return `value` as JSON bytes that carry their own digest, for `read_json`.

    Raises:
        ValueError: `value` has a field `sha256`, which is the digest's.
    """
    body = dict(value)
    if "sha256" in body:
        raise ValueError("the field sha256 is taken by the digest")
    return (json.dumps({**body, "sha256": digest_json(body)}, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object that `write_json` wrote, or None when it is missing or damaged."""
    value = parse_json(path)
    if value is None:
        return None
    claimed = value.pop("sha256", None)
    try:
        return value if claimed == digest_json(value) else None
    except ValueError:  # NaN, which Python's parser accepts
        return None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object with its own digest, atomically."""
    replace_file(path, seal(value))


def parse_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None when it is missing or is none."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def check_replaceable(path: Path) -> None:
    """Make the folder of a file that is to be written later, and try whether it can be.

    Raises:
        OSError: it cannot: something else than a plain file is in its place, among others.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no plain file")
    if path.parent.exists() and not path.parent.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = _staged(path)
    staged.touch()
    staged.unlink()


def _staged(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}.tmp"


def replace_file(path: Path, data: bytes) -> None:
    """Write a file, atomically. A folder in its place is damage, and is removed."""
    staged = _staged(path)
    try:
        write_bytes(staged, data)
        if path.is_dir() and not path.is_symlink():
            remove(path)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    sync(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a new file and flush it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that there is no room left on the disk."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(seen) or "os error 28" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def matches(path: Path, digest: Any) -> bool:
    """Whether a plain file is there and has the digest."""
    if path.is_symlink() or not path.is_file():
        return False
    return bool(digest_file(path) == digest)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, link or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
