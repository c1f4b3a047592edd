"""The weights that metrics read: which files, where they are looked for, how to get those that are missing.

Nothing is downloaded here and nothing is loaded; importing this module loads no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import UserError
from harness.fetched import data_folder, fetched_files

MISSING_WEIGHTS = "n/a: missing weights"


@dataclass(frozen=True)
class Weights:
    """The weights of one network.

    Attributes:
        key: name for `--data-path KEY=PATH`.
        summary: what they are.
        licence: of the weights, as their publisher states it.
        url: where to get them.
        file: name of the one file in torch's cache of checkpoints, or empty for files of a hub repository.
            Its last part before the dot is the start of its sha256, as torch names published files.
        files: for a repository: names that must all be there; `a|b` is satisfied by either.
        repositories: for a repository: `owner/name` of each of `files` on the hub.
    """

    key: str
    summary: str
    licence: str
    url: str
    file: str = ""
    files: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()

    @property
    def published(self) -> str:
        """First digits of the published file's sha256; empty for a repository."""
        return self.file.rpartition(".")[0].rpartition("-")[2]


_TOKENIZED_CLIP = ("config.json", "model.safetensors|pytorch_model.bin", "vocab.json", "merges.txt")


def _hub(key: str, summary: str, licence: str, repository: str, files: tuple[str, ...]) -> Weights:
    url = f"https://huggingface.co/{repository}"
    return Weights(key, summary, licence, url, files=files, repositories=(repository,) * len(files))


WEIGHTS: dict[str, Weights] = {
    weights.key: weights
    for weights in (
        Weights(
            "inception",
            "Inception-v3 of FID (2015-12-05), converted by torch-fidelity",
            "Apache-2.0",
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/",
            file="weights-inception-2015-12-05-6726825d.pth",
        ),
        Weights(
            "lpips-alex",
            "torchvision's AlexNet",
            "BSD-3-Clause",
            "https://download.pytorch.org/models/",
            file="alexnet-owt-7be5be79.pth",
        ),
        Weights(
            "lpips-vgg",
            "torchvision's VGG-16",
            "BSD-3-Clause",
            "https://download.pytorch.org/models/",
            file="vgg16-397923af.pth",
        ),
        _hub(
            "dinov2",
            "DINOv2 ViT-L/14",
            "Apache-2.0",
            "facebook/dinov2-large",
            ("config.json", "model.safetensors|pytorch_model.bin"),
        ),
        _hub("clip", "CLIP ViT-L/14", "MIT", "openai/clip-vit-large-patch14", _TOKENIZED_CLIP),
        _hub(
            "clip-336",
            "CLIP ViT-L/14 at 336 pixels",
            "MIT",
            "openai/clip-vit-large-patch14-336",
            ("config.json", "model.safetensors|pytorch_model.bin"),
        ),
        Weights(
            "image-reward",
            "ImageReward v1.0 and the bert-base-uncased vocabulary",
            "Apache-2.0",
            "https://huggingface.co/zai-org/ImageReward and https://huggingface.co/google-bert/bert-base-uncased",
            files=("ImageReward.pt", "med_config.json", "vocab.txt"),
            repositories=("zai-org/ImageReward", "zai-org/ImageReward", "google-bert/bert-base-uncased"),
        ),
    )
}


@dataclass(frozen=True)
class Found:
    """Weights that are there.

    Attributes:
        weights: which.
        files: path of each file by its name.
        given: they were given by path; else they were fetched or lay in a cache.
        digests: sha256 by name that the manifest of `harness fetch` records of them.
    """

    weights: Weights
    files: Mapping[str, Path]
    given: bool
    digests: Mapping[str, str] = field(default_factory=dict)

    def path(self, *names: str) -> Path:
        """Return the path of the one file, or of the first of `names` that is there."""
        if not names:
            return next(iter(self.files.values()))
        return next(self.files[name] for name in names if name in self.files)


def find(key: str, data_paths: Mapping[str, Path], hub: bool = True) -> Found | None:
    """Return the weights `key`: given by path, else fetched, else in torch's or the hub's cache, else None.

    Args:
        key: of `WEIGHTS`.
        data_paths: paths given with `--data-path`.
        hub: whether the hub's files count, fetched or in its cache.

    Raises:
        UserError: a path is given that does not hold them.
    """
    weights = WEIGHTS[key]
    if key in data_paths:
        return _given(weights, data_paths[key])
    fetched = _fetched(weights) if weights.file or hub else None
    if fetched is not None:
        return fetched
    if weights.file:
        cached = torch_checkpoints() / weights.file
        return Found(weights, {weights.file: cached}, False) if cached.is_file() else None
    if not hub:
        return None
    files: dict[str, Path] = {}
    for wanted, repository in zip(weights.files, weights.repositories, strict=True):
        present = [(n, p) for n in wanted.split("|") if (p := _in_hub_cache(repository, n)) is not None]
        if not present:
            return None
        files[present[0][0]] = present[0][1]
    return Found(weights, files, False)


def cached_weights() -> dict[str, list[list[int]]]:
    """Return size and time of every file in a cache that a metric would read, by key: cheap to form again."""
    found = {key: find(key, {}) for key in WEIGHTS}
    stats = {key: [path.stat() for path in f.files.values()] for key, f in found.items() if f is not None}
    return {key: [[stat.st_size, stat.st_mtime_ns] for stat in each] for key, each in stats.items()}


def check_given(key: str, path: Path) -> None:
    """Check a path given for weights, without loading them.

    Raises:
        UserError: the file, the folder, or a file inside the folder does not exist.
    """
    _given(WEIGHTS[key], path)


def missing_note(key: str) -> str:
    """Return the note of a figure whose weights are missing: the exact files and how to get them."""
    weights = WEIGHTS[key]
    if weights.file:
        how = f"`harness fetch --weights {key}` gets it, or give --data-path {key}=FILE"
        return f"{MISSING_WEIGHTS}: {weights.url}{weights.file}; {how}"
    names = ", ".join(name.replace("|", " or ") for name in weights.files)
    how = f"`harness fetch --weights {key}` gets them, or give --data-path {key}=FOLDER"
    return f"{MISSING_WEIGHTS}: {names} of {weights.url}; {how}"


def torch_checkpoints() -> Path:
    """Return torch's cache of checkpoints: `$TORCH_HOME/hub/checkpoints`, as torch itself settles it."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(os.path.expanduser(home)) / "hub" / "checkpoints"


def _given(weights: Weights, path: Path) -> Found:
    if weights.file:
        if not path.is_file():
            raise UserError(f"--data-path {weights.key}: {path} is not a file")
        return Found(weights, {weights.file: path}, True)
    files: dict[str, Path] = {}
    missing = []
    for wanted in weights.files:
        names = [name for name in wanted.split("|") if (path / name).is_file()]
        if names:
            files[names[0]] = path / names[0]
        else:
            missing.append(wanted.replace("|", " or "))
    if missing:
        raise UserError(f"--data-path {weights.key}: {path} holds no {', '.join(missing)}")
    return Found(weights, files, True)


def _fetched(weights: Weights) -> Found | None:
    """Return what `harness fetch` left of the weights, or None unless it is all there."""
    there = fetched_files(weights.key, data_folder())
    files: dict[str, Path] = {}
    for wanted in weights.files or (weights.file,):
        name = next((name for name in wanted.split("|") if name in there), None)
        if name is None:
            return None
        files[name] = there[name][0]
    return Found(weights, files, False, {name: there[name][1] for name in files})


def _in_hub_cache(repository: str, name: str) -> Path | None:
    """Return a file of a repository's main revision in the hub's cache, or None.

    The hub's client would do the same, and take half a second to import.
    """
    from harness.models.card import Hub
    from harness.models.locate import snapshot

    snapshots = snapshot(Hub(repository, "main")).parent
    try:
        commit = (snapshots.parent / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = snapshots / Path(commit).name / name
    return path if path.is_file() else None
