"""Downloads what a protocol needs into one folder, with a manifest that later runs check it against.

The digest of a file is recorded when it is first fetched. Later the same address must give the same file.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from harness.canonical import digest_file
from harness.datasets.sources import Download
from harness.errors import UserError
from harness.fetched import MANIFEST, Manifest, manifest_of
from harness.files import matches, write_json

LARGEST = 8 * 2**30
"""Bytes of one file from a plain address, downloaded or unpacked; ADM's reference batch has 2 GB."""
_CHUNK = 1 << 20
_TIMEOUT = 60.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Item:
    """One file to be fetched.

    Attributes:
        path: where it goes, relative to the folder.
        purpose: the prompt set, weights or model it is for.
        url: its address.
        licence: as its publisher states it.
        sha256: of the file or the first digits of it, where they are known; empty where not.
        get: writes the file to a path.
        about: further fields of its entry in the manifest.
    """

    path: str
    purpose: str
    url: str
    licence: str
    sha256: str
    get: Callable[[Path], None]
    about: dict[str, str] = field(default_factory=dict)


def item_of(download: Download) -> Item:
    """Return what is to be done for a file with an address of its own."""

    def get(target: Path) -> None:
        if not download.member:
            _download(download.url, target)
            return
        archive = target.parent / f"{target.name}.archive"
        try:
            _download(download.url, archive)
            _unpack(archive, download.member, target)
        finally:
            archive.unlink(missing_ok=True)

    return Item(download.file, download.dataset, download.url, download.licence, download.sha256, get)


def fetch(downloads: Iterable[Download], folder: Path, say: Say) -> None:
    """Download files with addresses of their own; see `fetch_items`."""
    fetch_items([item_of(download) for download in downloads], folder, say)


def fetch_items(items: Iterable[Item], folder: Path, say: Say, renew: bool = False) -> None:
    """Download files, each whole or not at all, and write the manifest after every one.

    What is there already and agrees with the manifest stays.

    Args:
        items: the files.
        folder: where they go.
        say: prints a line.
        renew: forget the digests recorded before, and take what the addresses give now.

    Raises:
        UserError: a file cannot be had, is cut off, is not the one whose sha256 is known, or not the one that
            was fetched first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = manifest_of(folder)
    for item in items:
        target, before = folder / item.path, str(manifest.files.get(item.path, {}).get("sha256", ""))
        if before and not renew and before.startswith(item.sha256) and matches(target, before):
            say(f"{item.path}: there already")
            continue
        say(f"{item.path}: {item.url}")
        target.parent.mkdir(parents=True, exist_ok=True)
        recorded = "" if renew or not before.startswith(item.sha256) else before
        manifest.files[item.path] = _get(item, target, recorded)
        write_manifest(folder, manifest)
        say(f"  {manifest.files[item.path]['bytes']} bytes; licence: {item.licence}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's manifest."""
    held: dict[str, object] = {"files": manifest.files}
    write_json(folder / MANIFEST, held | ({"models": manifest.models} if manifest.models else {}))


def _get(item: Item, target: Path, recorded: str) -> dict[str, Any]:
    """Download one file beside its place, check it, move it there, and return its entry."""
    loaded = target.parent / f".{target.name}.part"
    try:
        item.get(loaded)
        digest = digest_file(loaded)
        if not digest.startswith(item.sha256):
            raise UserError(f"{item.url} holds another file than expected: sha256 {digest}")
        if recorded and digest != recorded:
            raise UserError(
                f"{item.url} holds another file than was fetched first: sha256 {digest}, not {recorded}; "
                "give --renew to take it"
            )
        loaded.replace(target)
    finally:
        loaded.unlink(missing_ok=True)
    return {
        "dataset": item.purpose,
        "url": item.url,
        "licence": item.licence,
        "bytes": target.stat().st_size,
        "sha256": digest,
        **item.about,
    }


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
