"""Reading weights that the user supplied: never by unpickling code, and never silently partial."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.canonical import digest_file
from harness.compat import ensure_torchvision, quiet_imports
from harness.errors import UserError
from harness.metrics.sources import Found

if TYPE_CHECKING:
    from torch import Tensor

NOT_PUBLISHED = "(not the published file)"
"""How the note ends of a file given by path that is another than the one published under its name."""


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load a state dict with torch's restricted unpickler, on the CPU.

    Raises:
        UserError: the file is not a dict of tensors, or holds anything else than data.
    """
    import pickle

    import torch

    try:
        with quiet_imports():  # it warns of old files before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to load it all the same
            reason = "it is damaged, or holds objects that could run code; only tensors are read"
        raise UserError(f"{path.name} is not a file of weights: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path.name} is not a state dict of tensors")
    return state


def load_weights(path: Path) -> dict[str, Tensor]:
    """Load a state dict from a safetensors file, or from any other as `load_tensors` does.

    Raises:
        UserError: the file is damaged, or not a dict of tensors.
    """
    if path.suffix != ".safetensors":
        return load_tensors(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path.name} is not a file of weights: {error}") from error


def check_published(found: Found) -> str:
    """Check files against what is published of them and return the sha256 of each weights file, for a note.

    A file from a cache goes by its name, so it must be what the name says. One given by path may be another,
    and the note says so.

    Raises:
        UserError: a cached file is not the published one, or a fetched one not what was fetched.
    """
    for name, recorded in found.digests.items():
        if digest_file(found.files[name]) != recorded:
            raise UserError(f"{found.files[name]} is not what was fetched: run `harness fetch` again")
    names = [name for name in found.files if name.endswith((".pth", ".pt", ".bin", ".safetensors"))]
    digests = {name: digest_file(found.files[name]) for name in names}
    published = found.weights.published
    for name, digest in digests.items():
        if published and not digest.startswith(published):
            if not found.given:
                raise UserError(
                    f"{name} in torch's cache is damaged: its sha256 is {digest[:8]}..., not {published}..."
                )
            return f"{name} sha256 {digest} {NOT_PUBLISHED}"
    return ", ".join(f"{name} sha256 {digest}" for name, digest in digests.items())


def load_pretrained(model: Any, config: Any, config_file: Path, weights_file: Path) -> Any:
    """Build a model of transformers from its two files, on the CPU, complete or not at all.

    Args:
        model: a model class of transformers.
        config: its config class.
        config_file: `config.json`.
        weights_file: safetensors, or a pickle, which is read without running what it may hold.

    Raises:
        UserError: a file is malformed, or lacks weights of the model.
    """
    state = load_weights(weights_file)
    try:
        settings = config.from_dict(json.loads(config_file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{config_file.name} is not a config of {model.__name__}: {error}") from error
    with quiet_imports(), no_progress_bar():
        # By way of from_pretrained, because it knows how weights were called before.
        try:
            built, report = model.from_pretrained(
                None, config=settings, state_dict=state, output_loading_info=True
            )
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{weights_file.name} does not fit {config_file.name}: {reason}") from error
    lacking = sorted(name for name in report["missing_keys"] if not name.endswith("position_ids"))
    if lacking:
        raise UserError(
            f"{weights_file.name} lacks {len(lacking)} weights of the model, the first {lacking[0]}"
        )
    return built.eval().requires_grad_(False)


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Let transformers load and save without a progress bar."""
    ensure_torchvision()
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one CPU thread, so that results do not depend on how many cores there are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
