"""Reading weights that the user supplied: never by unpickling code, and never silently partial."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.compat import quiet_imports
from harness.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        raise UserError(f"{path.name} is not a file of weights: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path.name} is not a state dict of tensors")
    return state


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
