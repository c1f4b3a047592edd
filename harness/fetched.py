"""What `harness fetch` left in its folder, as far as the manifest there can vouch for it. Loads no torch.

The folder holds prompt files by name, `weights/KEY/` of metrics and `models/NAME/`, and can be carried to a
machine without network.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import NAME, matches, read_json

MANIFEST = "manifest.json"
WEIGHTS_FOLDER, MODELS_FOLDER = "weights", "models"

Entries = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Manifest:
    """The manifest of a folder.

    Attributes:
        files: by path in the folder: `dataset` (what the file is for), `url`, `licence`, `bytes`, `sha256`.
        models: by name, the digest of the whole model, as a cell's key holds it; only of complete ones.
    """

    files: Entries
    models: dict[str, str]


def data_folder() -> Path:
    """Return where `harness fetch` puts files and `harness run` looks for those that are not given."""
    given = os.environ.get("HARNESS_DATA")
    return Path(given) if given else Path.home() / ".cache" / "lowbit-harness"


def manifest_of(folder: Path) -> Manifest:
    """Return a folder's manifest; an empty one where there is none.

    Raises:
        UserError: there is one, and it is damaged or names files elsewhere.
    """
    try:
        if not (folder / MANIFEST).exists():
            return Manifest({}, {})
        held = read_json(folder / MANIFEST) or {}
    except OSError as error:
        raise UserError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error
    files, models = held.get("files"), held.get("models", {})
    if not (
        isinstance(files, dict)
        and all(_is_inside(folder, path) and isinstance(entry, dict) for path, entry in files.items())
        and isinstance(models, dict)
        and all(isinstance(digest, str) for digest in models.values())
    ):
        raise UserError(f"{folder / MANIFEST} is damaged: remove it and run `harness fetch` again")
    return Manifest(files, models)


def _is_inside(folder: Path, path: str) -> bool:
    """Whether a path names something in the folder, and no link on the way leads out of it."""
    if not all(NAME.fullmatch(part) for part in path.split("/")):
        return False
    return (folder / path).resolve().is_relative_to(folder.resolve())


def held(dataset: str, folder: Path) -> Path | None:
    """Return the fetched file of a prompt set whose digest agrees with the manifest, or None.

    Raises:
        UserError: the manifest or the file is damaged, or several files were fetched for the set.
    """
    entries = manifest_of(folder).files
    names = [name for name, entry in entries.items() if entry.get("dataset") == dataset and "/" not in name]
    if not names:
        return None
    if len(names) > 1:
        raise UserError(f"{folder} holds {' and '.join(names)}: give one, --data-path {dataset}=FILE")
    path = folder / names[0]
    if not matches(path, entries[names[0]].get("sha256")):
        raise UserError(f"{path} is not what was fetched: run `harness fetch` again")
    return path


def fetched_files(key: str, folder: Path) -> dict[str, tuple[Path, str]]:
    """Return the fetched files of a metric's weights by name, each with the sha256 that the manifest records.

    The digests are not checked here: who loads a file checks its own.
    """
    start = f"{WEIGHTS_FOLDER}/{key}/"
    entries = {path: entry for path, entry in manifest_of(folder).files.items() if path.startswith(start)}
    return {
        path.removeprefix(start): (folder / path, str(entry.get("sha256")))
        for path, entry in entries.items()
        if (folder / path).is_file()
    }


def fetched_model(name: str, folder: Path) -> Path | None:
    """Return the folder of a model that was fetched completely, or None."""
    path = folder / MODELS_FOLDER / name
    return path if name in manifest_of(folder).models and path.is_dir() else None


def check_model(name: str, path: Path, digest: str) -> None:
    """Check a model's digest against the manifest, if `path` is where it was fetched to.

    Raises:
        UserError: the model is not what was fetched.
    """
    folder = data_folder()
    if path != folder / MODELS_FOLDER / name:
        return
    if manifest_of(folder).models.get(name) != digest:
        raise UserError(f"{path} is not what was fetched: run `harness fetch` again")
