"""The state of an interrupted training on disk: safetensors with a digest, believed only when all fits."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "harness-training-1"
STATE_FILE = "state.safetensors"
CURVE_FILE = "curve.csv"
CURVE_COLUMNS = ("step", "loss", "prediction", "relation", "held_out")


@dataclass
class Progress:
    """Where a training is, beside its tensors.

    Attributes:
        step: optimiser steps done.
        best: least held-out loss so far.
        best_step: when it was reached.
        stale: evaluations since.
        position: of the pixel queue.
        curve: one row per evaluation, the columns of `CURVE_COLUMNS`; losses are means since the last row.
    """

    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    stale: int = 0
    position: int = 0
    curve: list[list[float]] = field(default_factory=list)


def write_state(folder: Path, identity: str, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    """Write the state, atomically.

    Args:
        folder: made if it is not there.
        identity: digest of what is trained on what; `read_state` asks for the same.
        progress: where the training is.
        tensors: parameters, optimiser moments and the queue.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    kept["curve"] = torch.tensor(progress.curve, dtype=torch.float64).reshape(-1, len(CURVE_COLUMNS))
    numbers = {name: getattr(progress, name) for name in ("step", "best", "best_step", "stale", "position")}
    metadata = {"format": FORMAT, "identity": identity, "progress": json.dumps(numbers)}
    metadata["digest"] = _digest(metadata, kept)
    staged = folder / f".{STATE_FILE}.tmp"
    try:
        save_file(kept, staged, metadata)
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        staged.replace(folder / STATE_FILE)
    finally:
        staged.unlink(missing_ok=True)


def read_state(
    folder: Path, identity: str, like: Mapping[str, Tensor]
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Return what `write_state` wrote, or None when there is nothing, or nothing that can be used.

    Args:
        folder: where to look.
        identity: what is to be trained; a state of something else is not used.
        like: tensors of the names, shapes and dtypes that must be there.
    """
    path = folder / STATE_FILE
    if path.is_symlink() or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        progress = _progress(metadata, tensors, identity)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        print(f"training starts anew: {path.name} is of no use ({error})", flush=True)
        return None
    tensors.pop("curve")
    if {n: (t.shape, t.dtype) for n, t in tensors.items()} != {
        n: (t.shape, t.dtype) for n, t in like.items()
    }:
        print(f"training starts anew: {path.name} holds other tensors", flush=True)
        return None
    return progress, tensors


def _progress(metadata: Mapping[str, str], tensors: Mapping[str, Tensor], identity: str) -> Progress:
    """Read the numbers of a state; ValueError, KeyError or TypeError when they are not to be believed."""
    if metadata.get("format") != FORMAT:
        raise ValueError("not a training state")
    if metadata.get("identity") != identity:
        raise ValueError("of another training")
    if metadata.get("digest") != _digest(metadata, tensors):
        raise ValueError("damaged")
    numbers: dict[str, Any] = json.loads(metadata["progress"])
    curve = tensors["curve"].tolist()
    return Progress(
        step=int(numbers["step"]),
        best=float(numbers["best"]),
        best_step=int(numbers["best_step"]),
        stale=int(numbers["stale"]),
        position=int(numbers["position"]),
        curve=curve,
    )


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    parts = [metadata[name] for name in ("format", "identity", "progress")]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_curve(folder: Path, curve: list[list[float]]) -> None:
    """Write the loss curve as CSV, atomically; a figure that was not taken is left empty."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [",".join(CURVE_COLUMNS)]
    for row in curve:
        step, *losses = row
        lines.append(
            ",".join([str(int(step)), *("" if math.isnan(loss) else f"{loss:.6g}" for loss in losses)])
        )
    staged = folder / f".{CURVE_FILE}.tmp"
    try:
        staged.write_text("\n".join(lines) + "\n", encoding="utf-8")
        staged.replace(folder / CURVE_FILE)
    finally:
        staged.unlink(missing_ok=True)
