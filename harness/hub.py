"""Files of the hub for `harness fetch`: weights of metrics and whole models, with the hub's digests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.datasets.sources import Download
from harness.errors import UserError
from harness.fetched import MODELS_FOLDER, WEIGHTS_FOLDER, Manifest, manifest_of
from harness.fetching import Item, Say, fetch_items, item_of, write_manifest
from harness.files import matches
from harness.metrics.sources import WEIGHTS, Weights

if TYPE_CHECKING:
    from harness.models.card import ModelCard

STAGING = ".hub"


@dataclass(frozen=True)
class Listing:
    """A repository of the hub at one revision.

    Attributes:
        repo: `owner/name`.
        revision: the commit.
        files: name in the repository -> sha256 where the hub knows it, else empty.
        licence: what the repository's card says of it.
    """

    repo: str
    revision: str
    files: dict[str, str]
    licence: str = ""


def listing(repo: str, revision: str = "main") -> Listing:
    """Ask the hub what a repository holds.

    Raises:
        UserError: the hub does not say (no connection, gated, or no such revision).
    """
    from huggingface_hub import HfApi

    with _one_line(f"{repo}@{revision[:8]} cannot be listed"):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    files = {file.rfilename: (file.lfs.sha256 if file.lfs else "") for file in info.siblings or ()}
    licence = str(getattr(info.card_data, "license", None) or "")
    return Listing(repo, info.sha or revision, files, licence)


def _downloaded(found: Listing, name: str, staging: Path) -> Callable[[Path], None]:
    """Return what downloads one file of a repository; an interrupted download goes on where it stopped."""

    def get(target: Path) -> None:
        from huggingface_hub import hf_hub_download

        with _one_line(f"{found.repo}@{found.revision[:8]}: {name} cannot be downloaded"):
            path = hf_hub_download(found.repo, name, revision=found.revision, local_dir=staging)
        Path(path).replace(target)

    return get


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is not None and not getattr(error, "response", None):
            raise
        raise UserError(f"{what}: {_first_line(error)}") from error
    except Exception as error:  # the client raises its own, requests' and httpx's errors
        raise UserError(f"{what}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _item(found: Listing, name: str, place: str, purpose: str, licence: str, staging: Path) -> Item:
    url = f"https://huggingface.co/{found.repo}/resolve/{found.revision}/{name}"
    get = _downloaded(found, name, staging)
    return Item(place, purpose, url, licence, found.files[name], get, {"revision": found.revision})


def fetch_weights(keys: list[str], folder: Path, say: Say, renew: bool = False) -> None:
    """Fetch the weights of metrics into `weights/KEY/`; errors are those of `fetch_items` and `listing`."""
    for key in keys:
        weights = WEIGHTS[key]
        if not renew and _complete(weights, manifest_of(folder), folder):
            say(f"weights of {key}: there already")
            continue
        with _staged(folder) as staging:
            fetch_items(_weight_items(weights, manifest_of(folder), staging, renew), folder, say, renew)


def _complete(weights: Weights, manifest: Manifest, folder: Path) -> bool:
    """Whether every file of the weights is there as it was fetched."""

    def sound(name: str) -> bool:
        path = f"{WEIGHTS_FOLDER}/{weights.key}/{name}"
        return path in manifest.files and matches(folder / path, manifest.files[path].get("sha256"))

    wanted = weights.files or (weights.file,)
    return all(any(sound(name) for name in names.split("|")) for names in wanted)


def _weight_items(weights: Weights, manifest: Manifest, staging: Path, renew: bool) -> list[Item]:
    start = f"{WEIGHTS_FOLDER}/{weights.key}"
    if weights.file:
        place, url = f"{start}/{weights.file}", f"{weights.url}{weights.file}"
        return [item_of(Download(weights.key, url, place, weights.licence, weights.published))]
    items: list[Item] = []
    listings: dict[str, Listing] = {}
    for wanted, repo in zip(weights.files, weights.repositories, strict=True):
        names = wanted.split("|")
        entries = [] if renew else [manifest.files.get(f"{start}/{name}", {}) for name in names]
        # What was begun at one commit goes on there, whatever the branch came to since.
        revision = next((str(entry["revision"]) for entry in entries if "revision" in entry), "main")
        if repo not in listings:
            listings[repo] = listing(repo, revision)
        found = listings[repo]
        name = next((name for name in names if name in found.files), None)
        if name is None:
            raise UserError(f"{repo}@{found.revision[:8]} holds no {wanted.replace('|', ' or ')}")
        items.append(_item(found, name, f"{start}/{name}", weights.key, weights.licence, staging))
    return items


def fetch_model(card: ModelCard, folder: Path, say: Say, renew: bool = False) -> None:
    """Fetch a model into `models/NAME/` at the revision of its card.

    Raises:
        UserError: it is not on the hub, gated, or incomplete there; see `fetch_items` too.
    """
    from harness.models.load import weights_digest
    from harness.models.locate import download_patterns, missing_files

    if card.hub is None:
        raise UserError(f"model {card.name} is not on the hub: `harness convert` makes it of its checkpoint")
    if not renew and card.name in manifest_of(folder).models:
        say(f"model {card.name}: there already")
        return
    place = folder / MODELS_FOLDER / card.name
    found = listing(card.hub.repo, card.hub.revision)
    with _staged(folder) as staging:
        items = [
            _item(found, name, f"{MODELS_FOLDER}/{card.name}/{name}", card.name, found.licence, staging)
            for name in download_patterns(card, found.files)
            if name in found.files
        ]
        fetch_items(items, folder, say, renew)
    missing = missing_files(card, place)
    if missing:
        raise UserError(f"{found.repo}@{found.revision[:8]} lacks {', '.join(missing)}")
    manifest = manifest_of(folder)
    manifest.models[card.name] = weights_digest(place, card.components, card.hub.variant)
    write_manifest(folder, manifest)


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder for the hub's client, removed when everything was fetched; kept, to go on, when not."""
    staging = folder / STAGING
    yield staging
    shutil.rmtree(staging, ignore_errors=True)
