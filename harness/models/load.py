"""Checks, hashes and loads a model's folder. What lies in it is not trusted.

Only safetensors weights and classes of diffusers, transformers and `harness.models.latent_diffusion` are
loaded, nothing is downloaded, and every parameter must come from the folder: the libraries themselves would
fill a missing one with random numbers, and a missing tokenizer with an empty one.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.compat import ensure_torchvision, quiet_imports
from harness.errors import UserError
from harness.models.card import ModelCard
from harness.models.locate import EMBEDDED, weight_files

_LIBRARIES = ("diffusers", "transformers")
_OWN = "harness.models.latent_diffusion"
_OWN_CLASSES = {_OWN: ("ClassEmbedder",)}
_OWN_PIPELINES = ("LatentDiffusionPipeline",)
_SETTINGS: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    },
    # A watermark would count as an error of whatever is compared.
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}
"""What a pipeline is built with beside its components."""
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
_HASHED_SUFFIXES = (".json", ".safetensors", ".txt", ".model")
_PROBE = "a small red circle to the left of a large blue square"
"""An empty tokenizer reads it as one unknown token over and over; a real one finds several pieces in it."""
_PROBE_PIECES = 5


def _component_folders(path: Path) -> dict[str, Path]:
    """The folders that make up a model, by their name in its index; the embedded models share one VAE."""
    folders = {entry.name: entry for entry in sorted(path.iterdir()) if entry.is_dir()}
    if "vae" not in folders and path.parent == EMBEDDED:
        folders["vae"] = EMBEDDED / "vae"
    return folders


def weights_digest(path: Path, components: Collection[str] = (), variant: str | None = None) -> str:
    """Return the sha256, in hex, over the names and contents of a model's weight and config files.

    The digest does not depend on where the folder lies, nor on whether its VAE is shared, nor on weight files
    that are not loaded: copies in another precision or format beside those that are.

    Args:
        path: the model's folder.
        components: folders that count; all by default.
        variant: of the weight files, where the model is loaded from such.

    Raises:
        harness.errors.UserError: the folder holds no such file.
    """
    files = {entry.name: entry for entry in path.iterdir() if entry.is_file()}
    files = {name: entry for name, entry in files.items() if entry.suffix != ".safetensors"}
    for name, folder in _component_folders(path).items():
        if components and name not in components:
            continue
        inside = {entry for entry in folder.rglob("*") if entry.is_file()}
        used, _ = weight_files(folder, variant)
        if used:
            inside -= {entry for entry in folder.glob("*.safetensors") if entry not in used}
        files.update({f"{name}/{entry.relative_to(folder).as_posix()}": entry for entry in inside})
    hashed = sorted(name for name, entry in files.items() if entry.suffix in _HASHED_SUFFIXES)
    if not hashed:
        raise UserError(f"{path} holds no model")
    digest = hashlib.sha256()
    for name in hashed:
        with files[name].open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


def _read_index(card: ModelCard, path: Path) -> dict[str, tuple[str, str]]:
    """Read model_index.json: component name -> (library, class), unused and absent components left out."""
    try:
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}/model_index.json cannot be read: {_one_line(error)}") from error
    if not isinstance(index, dict) or index.get("_class_name") != card.pipeline:
        found = index.get("_class_name") if isinstance(index, dict) else None
        raise UserError(f"model {card.name!r} is a {card.pipeline}, but {path} holds a {found!r}")
    components: dict[str, tuple[str, str]] = {}
    for name, entry in index.items():
        if name.startswith("_") or name in _UNUSED or not isinstance(entry, list) or entry == [None, None]:
            continue
        known = len(entry) == 2 and (entry[0] in _LIBRARIES or entry[1] in _OWN_CLASSES.get(entry[0], ()))
        if not re.fullmatch(r"\w+", name) or not known:
            raise UserError(f"{path}/model_index.json: {name!r} is of neither diffusers nor transformers")
        components[name] = (entry[0], str(entry[1]))
    if card.denoiser not in components:
        raise UserError(f"{path}/model_index.json names no {card.denoiser!r}")
    return components


def _one_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _component_class(path: Path, name: str, library: str, class_name: str) -> Any:
    """The class of a component; UserError when the installed library has none of that name."""
    found = getattr(importlib.import_module(library), class_name, None)
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        raise UserError(f"{path}: the installed {library} has no {class_name!r} for {name!r}")
    return found


def _load_network(cls: Any, name: str, folder: Path, dtype: torch.dtype, variant: str | None) -> nn.Module:
    """Load one network; UserError unless every one of its parameters is in the folder."""
    files, variant = weight_files(folder, variant)
    if not files:
        raise UserError(f"{folder}: no safetensors weights for {name!r} (other formats are not loaded)")
    network, info = cls.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
        torch_dtype=dtype,
        variant=variant,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(f"{folder}: {len(missing)} weights of {name!r} are missing, e.g. {missing[0]}")
    return network.eval().requires_grad_(False)  # type: ignore[no-any-return]


def _load_tokenizer(cls: Any, name: str, folder: Path) -> Any:
    """Load a tokenizer; UserError when it is empty, which transformers does not report."""
    if not any((folder / file).is_file() for file in _VOCABULARY_FILES):
        raise UserError(f"{folder}: no vocabulary for {name!r} ({', '.join(_VOCABULARY_FILES)})")
    tokenizer = cls.from_pretrained(folder, local_files_only=True)
    if len(set(tokenizer(_PROBE).input_ids)) < _PROBE_PIECES:
        raise UserError(f"{folder}: the vocabulary of {name!r} is empty")
    return tokenizer


def _load_component(cls: Any, name: str, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    """Load one component of the index; every way a folder can be broken becomes a UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: the folder of {name!r} is missing")
    try:
        if issubclass(cls, nn.Module):
            return _load_network(cls, name, folder, dtype, variant)
        if "Tokenizer" in cls.__name__:
            return _load_tokenizer(cls, name, folder)
        return cls.from_pretrained(folder, local_files_only=True)
    except UserError:
        raise
    except (
        Exception
    ) as error:  # the libraries raise a dozen types for a damaged folder, down to bare Exception
        raise UserError(f"{folder}: {name!r} cannot be loaded: {_one_line(error)}") from error


def load_pipeline(card: ModelCard, path: Path, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Load a model's pipeline, in eval mode, without gradients and without a progress bar.

    Args:
        card: the model.
        path: its folder in diffusers format (`locate`); nothing outside it is read but the shared VAE.
        device: where its networks go.
        dtype: floating type of its networks, whatever type the files hold.

    Returns:
        The diffusers pipeline of class `card.pipeline`.

    Raises:
        harness.errors.UserError: the folder is not such a pipeline, is incomplete or is damaged.
    """
    ensure_torchvision()
    components = _read_index(card, path)
    folders = _component_folders(path)
    variant = None if card.hub is None else card.hub.variant
    own = card.pipeline in _OWN_PIPELINES
    with quiet_imports():
        for library in _LIBRARIES:
            importlib.import_module(f"{library}.utils.logging").disable_progress_bar()
        pipeline_class = getattr(importlib.import_module(_OWN if own else "diffusers"), card.pipeline)
        loaded: dict[str, Any] = {}
        for name, (library, class_name) in components.items():
            cls = _component_class(path, name, library, class_name)
            loaded[name] = _load_component(cls, name, folders.get(name, path / name), dtype, variant)
        loaded.update(_SETTINGS.get(card.pipeline, {}))
        try:
            pipeline = (
                pipeline_class(**loaded)
                if own
                else pipeline_class.from_pretrained(path, local_files_only=True, **loaded)
            )
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: {card.pipeline} cannot be built: {_one_line(error)}") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)
