"""Downloads what a protocol needs into one folder, with a manifest that later runs check it against."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from harness.canonical import digest_file
from harness.datasets.sources import Download
from harness.errors import UserError
from harness.files import NAME, matches, read_json, write_json

MANIFEST = "manifest.json"
LARGEST = 8 * 2**30
"""Bytes of one file, downloaded or unpacked; the largest here, ADM's reference batch, has 2 GB."""
_CHUNK = 1 << 20
_TIMEOUT = 60.0


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of a folder's manifest by file name; none when there is no manifest.

    Raises:
        UserError: there is one, and it is damaged or names files elsewhere.
    """
    if not (folder / MANIFEST).exists():
        return {}
    entries = (read_json(folder / MANIFEST) or {}).get("files")
    if not isinstance(entries, dict) or not all(
        NAME.fullmatch(name) and isinstance(entry, dict) for name, entry in entries.items()
    ):
        raise UserError(f"{folder / MANIFEST} is damaged: remove it and run `harness fetch` again")
    return entries


def held(dataset: str, folder: Path) -> Path | None:
    """Return the fetched file of a prompt set whose digest agrees with the manifest, or None.

    Raises:
        UserError: the manifest or the file is damaged, or several files were fetched for the set.
    """
    entries = read_manifest(folder)
    names = [name for name, entry in entries.items() if entry.get("dataset") == dataset]
    if not names:
        return None
    if len(names) > 1:
        raise UserError(f"{folder} holds {' and '.join(names)}: give one, --data-path {dataset}=FILE")
    path = folder / names[0]
    if not matches(path, entries[names[0]].get("sha256")):
        raise UserError(f"{path} is not what was fetched: run `harness fetch` again")
    return path


def fetch(downloads: Iterable[Download], folder: Path, say: Callable[[str], None]) -> None:
    """Download files, each whole or not at all, and write the manifest after every one.

    What is there already and agrees with the manifest stays.

    Raises:
        UserError: a file cannot be had, is cut off, or is not the one whose sha256 is known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = read_manifest(folder)
    for wanted in downloads:
        target = folder / wanted.file
        if wanted.file in entries and matches(target, entries[wanted.file].get("sha256")):
            say(f"{wanted.file}: there already")
            continue
        say(f"{wanted.file}: {wanted.url}")
        _get(wanted, target)
        entries[wanted.file] = {
            "dataset": wanted.dataset,
            "url": wanted.url,
            "licence": wanted.licence,
            "bytes": target.stat().st_size,
            "sha256": digest_file(target),
        }
        write_json(folder / MANIFEST, {"files": entries})
        say(f"  {entries[wanted.file]['bytes']} bytes; licence: {wanted.licence}")


def _get(wanted: Download, target: Path) -> None:
    """Download one file beside its place, check it, and move it there."""
    loaded = target.parent / f".{target.name}.part"
    unpacked = target.parent / f".{target.name}.member"
    try:
        _download(wanted.url, loaded)
        if wanted.member:
            _unpack(loaded, wanted.member, unpacked)
        found = unpacked if wanted.member else loaded
        digest = digest_file(found)
        if wanted.sha256 and digest != wanted.sha256:
            raise UserError(f"{wanted.url} holds another file than expected: sha256 {digest}")
        found.replace(target)
    finally:
        loaded.unlink(missing_ok=True)
        unpacked.unlink(missing_ok=True)


def _download(url: str, path: Path) -> None:
    if not url.startswith(("https://", "http://")):
        raise UserError(f"{url} is neither https nor http")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, path.open("wb") as file:
            size = _copy(response, file, url)
            declared = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise UserError(f"{url} cannot be had: {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url} cannot be had: {getattr(error, 'reason', None) or error}") from error
    if declared is not None and size != int(declared):
        raise UserError(f"{url} was cut off after {size} of {declared} bytes; run the command again")


def _unpack(archive: Path, member: str, path: Path) -> None:
    """Write one member of a zip archive to `path`; names in the archive decide nothing."""
    try:
        with zipfile.ZipFile(archive) as files, files.open(member) as source, path.open("wb") as target:
            _copy(source, target, member)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"the archive holds no sound {member}: {error}") from error


def _copy(source: IO[bytes], target: IO[bytes], name: str) -> int:
    size = 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > LARGEST:
            raise UserError(f"{name} is larger than {LARGEST} bytes")
        target.write(chunk)
    return size
