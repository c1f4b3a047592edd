"""Where a model's files lie: a folder that was given, the package, or the hub's cache.

Touches neither torch nor diffusers, so that a missing file is reported before anything heavy is imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.errors import UserError
from harness.models.card import Hub, ModelCard

EMBEDDED = Path(__file__).parent / "embedded"
INDEX = "model_index.json"
_STEMS = ("diffusion_pytorch_model", "model")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


def locate(card: ModelCard, model_paths: Mapping[str, Path]) -> Path:
    """Return the folder of a model: the one given for its name, the one shipped, or that in the hub's cache.

    Nothing is downloaded, and not every file is checked for (`missing_files`).

    Args:
        card: the model.
        model_paths: folders given with `--model-path NAME=DIR`, by name.

    Raises:
        harness.errors.UserError: no model lies there.
    """
    if card.name in model_paths:
        path = model_paths[card.name]
        if not (path / INDEX).is_file():
            raise UserError(f"--model-path {card.name}: {path} is no diffusers folder (no {INDEX})")
        return path
    if card.embedded:
        path = EMBEDDED / card.name
        if not (path / INDEX).is_file():
            raise UserError(f"the weights of {card.name!r} are missing from this installation ({path})")
        return path
    if card.hub is None:
        raise UserError(f"model {card.name!r} is not shipped: give --model-path {card.name}=DIR")
    path = snapshot(card.hub)
    if not (path / INDEX).is_file():
        raise UserError(f"model {card.name!r} is not in the hub's cache: {_ways_out(card)}")
    return path


def snapshot(hub: Hub) -> Path:
    """Return where the hub's cache keeps a revision, whether it is there or not."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    return cache / f"models--{hub.repo.replace('/', '--')}" / "snapshots" / hub.revision


def weight_files(folder: Path, variant: str | None) -> tuple[list[Path], str | None]:
    """Return the weight files of one network that are loaded, and their variant.

    Args:
        folder: of the network.
        variant: preferred where the folder holds both it and plain files.

    Returns:
        The files, which may be missing where an index names them; empty when there are no weights at all.
    """
    for chosen in dict.fromkeys((variant, None)):
        for stem in _STEMS:
            dotted = f".{chosen}" if chosen else ""
            indices = (
                folder / f"{stem}.safetensors.index{dotted}.json",
                folder / f"{stem}{dotted}.safetensors.index.json",
            )
            index = next((path for path in indices if path.is_file()), None)
            if index is not None:
                return [folder / name for name in _shards(index)], chosen
            single = folder / f"{stem}{dotted}.safetensors"
            if single.is_file():
                return [single], chosen
    return [], None


def _shards(index: Path) -> list[str]:
    """The files an index of shards names, each inside the index's folder; UserError when it is damaged."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is no index of shards") from error
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise UserError(f"{index} names a file outside its folder")
    return names


def missing_files(card: ModelCard, path: Path) -> list[str]:
    """Return what of a model is not in a folder, relative to it, in order.

    A component of which nothing is there is named as a folder (`vae/`).
    """
    variant = None if card.hub is None else card.hub.variant
    missing = [] if (path / INDEX).is_file() else [INDEX]
    for name in card.components:
        folder = path / name
        if not folder.is_dir() or not any(folder.iterdir()):
            missing.append(f"{name}/")
        elif name.startswith("tokenizer"):
            if not any((folder / file).is_file() for file in _VOCABULARIES):
                missing.append(f"{name}/ ({' or '.join(_VOCABULARIES)})")
        elif name == "scheduler":
            missing += _absent(path, [folder / "scheduler_config.json"])
        else:
            files, _ = weight_files(folder, variant)
            wanted = files or [folder / f"{_STEMS[name.startswith('text')]}.safetensors"]
            missing += _absent(path, [folder / "config.json", *wanted])
    return missing


def _absent(root: Path, files: Iterable[Path]) -> list[str]:
    return [file.relative_to(root).as_posix() for file in files if not file.is_file()]


def check_complete(cards: Iterable[ModelCard], model_paths: Mapping[str, Path]) -> None:
    """Check that every file of the published models is there.

    Raises:
        harness.errors.UserError: some are not; the message lists all of them.
    """
    lacking = []
    for card in cards:
        if card.embedded:
            continue
        given = model_paths.get(card.name)
        path = given or (None if card.hub is None else snapshot(card.hub))
        missing = [INDEX, *(f"{name}/" for name in card.components)]
        if path is not None:
            missing = missing_files(card, path)
        if missing:
            lacking.append(f"{card.name}: {', '.join(missing)} ({given or _ways_out(card)})")
    if lacking:
        raise UserError(f"missing files: {'; '.join(lacking)}")


def _ways_out(card: ModelCard) -> str:
    if card.hub is None:
        return f"give --model-path {card.name}=DIR"
    at = f"{card.hub.repo}@{card.hub.revision[:8]}"
    return f"{at}: run without --offline, or give --model-path {card.name}=DIR"


def download_patterns(card: ModelCard, files: Iterable[str]) -> list[str]:
    """Return which files of a repository make up a model: configs, vocabularies, and one set of weights.

    Args:
        card: a model of the hub.
        files: every file of the repository.
    """
    variant = None if card.hub is None else card.hub.variant
    wanted = [INDEX]
    listed = [name for name in files if name.count("/") == 1]
    for component in card.components:
        inside = [name for name in listed if name.startswith(f"{component}/")]
        wanted += [name for name in inside if name.endswith((".json", ".txt", ".model"))]
        weights = [name for name in inside if name.endswith(".safetensors")]
        plain = [name for name in weights if _variant_of(name) is None]
        wanted += [name for name in weights if variant and _variant_of(name) == variant] or plain
    return sorted(wanted)


def _variant_of(name: str) -> str | None:
    """`bf16` of `unet/diffusion_pytorch_model.bf16.safetensors` and of its shards, None of a plain file."""
    middle = name.rpartition("/")[2].removesuffix(".safetensors").split(".")[1:]
    return middle[0].partition("-")[0] if middle else None


def fetch(card: ModelCard) -> Path:
    """Return the folder of a model of the hub, downloading what the cache lacks.

    Raises:
        harness.errors.UserError: the hub does not give it (no connection, gated, or no such revision).
    """
    hub = card.hub
    if hub is None:
        raise UserError(f"model {card.name!r} is not on the hub: give --model-path {card.name}=DIR")
    path = snapshot(hub)
    if not missing_files(card, path):
        return path
    from huggingface_hub import HfApi, snapshot_download

    try:
        files = HfApi().list_repo_files(hub.repo, revision=hub.revision)
        wanted = download_patterns(card, files)
        return Path(snapshot_download(hub.repo, revision=hub.revision, allow_patterns=wanted))
    except (
        Exception
    ) as error:  # the client raises its own, requests' and httpx's errors for a refused download
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{card.name}: {hub.repo}@{hub.revision[:8]} cannot be downloaded: {first}"
        ) from error
