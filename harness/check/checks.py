"""The checks: each returns what it found in the evidence, or raises `CheckFailedError` with the reason."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from harness.canonical import digest_json
from harness.check.evidence import CheckFailedError, Evidence, Trial
from harness.errors import CellError
from harness.kernels.checkpoint import TENSORS, load_checkpoint, save_checkpoint
from harness.kernels.layers import PackedLayer
from harness.methods.libraries.layer import restore
from harness.project import WORLD, check_packed

_WIDTH_TOLERANCE = 1e-9
_IDENTITY = (
    "from harness.check.checks import identity; import sys, json; print(identity(*json.load(sys.stdin)))"
)
_SECONDS = 300


def packed(evidence: Evidence) -> str:
    """Every target is a packed layer of the right shape with finite values; nothing else was touched."""
    trial = evidence.middle()
    names = [target.name for target in trial.targets]
    check_packed(trial.denoiser, names)
    for name in names:
        layer = trial.denoiser.get_submodule(name)
        shape = tuple(evidence.subject.denoiser.get_submodule(name).get_parameter("weight").shape)
        if not isinstance(layer, PackedLayer) or layer.shape != shape:
            raise CheckFailedError(f"{name} stands for another shape than {shape}")
    inside = tuple(f"{name}." for name in names)
    before = {k: v for k, v in evidence.subject.denoiser.state_dict().items() if not k.startswith(inside)}
    after = {k: v for k, v in trial.state().items() if not k.startswith(inside)}
    changed = _differences(before, after)
    if changed:
        raise CheckFailedError(f"{changed[0]} is no target, and was changed ({len(changed)} tensors)")
    if not bool(torch.isfinite(trial.outputs).all()):
        raise CheckFailedError("the quantized denoiser's prediction is not finite")
    return f"{len(names)} layers"


def widths(evidence: Evidence) -> str:
    """Mean code widths and activation widths are those declared."""
    for bits in evidence.bits:
        trial = evidence.trial(bits)
        for row in trial.ledger.rows:
            low, high = evidence.config.mean_bits(row.w_bits)
            if not low - _WIDTH_TOLERANCE <= row.mean_bits <= high + _WIDTH_TOLERANCE:
                wanted = f"{low:g}" if low == high else f"{low:g}-{high:g}"
                raise CheckFailedError(f"{row.name}: codes of {row.mean_bits:g} bits, declared {wanted}")
        for target in trial.targets:
            act = getattr(trial.denoiser.get_submodule(target.name), "act", None)
            held = 16 if act is None else int(act.bits)
            if held > target.a_bits:
                raise CheckFailedError(
                    f"{target.name}: activations of {held} bits, asked for {target.a_bits}"
                )
    means = ", ".join(f"W{bits}: {evidence.trial(bits).ledger.mean_bits:.3f}" for bits in evidence.bits)
    return f"mean over layers {means}"


def ledger(evidence: Evidence) -> str:
    """The ledger's bytes are the bytes of the checkpoint's file."""
    trial = evidence.middle()
    names = tuple(f"{target.name}." for target in trial.targets)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(trial.denoiser, Path(folder))
        with safe_open(Path(folder) / TENSORS, framework="pt") as file:
            sizes = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    stored = sum(t.numel() * t.element_size() for key, t in sizes.items() if key.startswith(names))
    kept = sum(t.numel() for key, t in sizes.items() if not key.startswith(names))
    if stored != trial.ledger.packed_bytes:
        raise CheckFailedError(f"{stored} bytes in the file, {trial.ledger.packed_bytes} in the ledger")
    parameters = sum(p.numel() for p in trial.denoiser.parameters())
    buffers = {key for key, _ in trial.denoiser.named_buffers()}
    extra = sum(t.numel() for key, t in sizes.items() if key in buffers and not key.startswith(names))
    if kept - extra != trial.ledger.kept_parameters or parameters != trial.ledger.kept_parameters:
        raise CheckFailedError(
            f"{kept} kept numbers in the file, {trial.ledger.kept_parameters} in the ledger"
        )
    return f"{stored} bytes, {trial.ledger.effective_bits:.2f} effective bits"


def determinism(evidence: Evidence) -> str:
    """The same job gives the same bytes, whatever the state of the global random generator."""
    bits = evidence.bits[len(evidence.bits) // 2]
    first, second = evidence.trial(bits), evidence.trial(bits, repeat=1)
    changed = _differences(first.state(), second.state())
    if changed:
        raise CheckFailedError(f"two runs differ in {len(changed)} tensors, the first is {changed[0]}")
    if first.ledger.to_json() != second.ledger.to_json():
        raise CheckFailedError("two runs differ in the notes of the ledger")
    return "two runs are equal to the bit"


def save_load(evidence: Evidence) -> str:
    """A saved and loaded denoiser has the same tensors and predicts the same, to the bit."""
    trial = evidence.middle()
    again = evidence.subject.fresh()
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(trial.denoiser, Path(folder))
        json.dumps(trial.ledger.to_json(), allow_nan=False)
        load_checkpoint(again, Path(folder))
        restore(again)
    changed = _differences(trial.state(), dict(again.state_dict()))
    if changed:
        raise CheckFailedError(f"{changed[0]} is not what was saved ({len(changed)} tensors)")
    if not torch.equal(evidence.subject.outputs(again), trial.outputs):
        raise CheckFailedError("the loaded denoiser predicts something else than the one that was saved")
    return "predictions are equal to the bit"


def error_falls(evidence: Evidence) -> str:
    """The prediction error falls with every further bit."""
    errors = {bits: relative_error(evidence.trial(bits), evidence.reference) for bits in evidence.bits}
    shown = ", ".join(f"W{bits}: {error:.2e}" for bits, error in errors.items())
    values = list(errors.values())
    if not all(math.isfinite(value) for value in values):
        raise CheckFailedError(f"the prediction error is not finite: {shown}")
    if any(later >= earlier for earlier, later in pairwise(values)):
        raise CheckFailedError(f"the prediction error does not fall as bits rise: {shown}")
    return shown if len(values) > 1 else f"only one width is declared; {shown}"


def survives(evidence: Evidence) -> str:
    """Dead and constant channels of weights and inputs leave everything finite."""
    bits = evidence.bits[0]  # the fewest levels and so the most fragile scales
    trial = evidence.trial(bits, damaged=True)
    check_packed(trial.denoiser, [target.name for target in trial.targets])
    if not bool(torch.isfinite(trial.outputs).all()):
        raise CheckFailedError(f"dead or constant channels make the W{bits} prediction not finite")
    return "zero rows, constant rows, dead inputs"


def offline(evidence: Evidence) -> str:
    """No quantization of this subject used the network."""
    for bits in evidence.bits:
        calls = evidence.trial(bits).network
        if calls:
            raise CheckFailedError(f"the method called {calls[0]} ({len(calls)} calls of the network)")
    return "no call of the network"


CHECKS: dict[str, Callable[[Evidence], str]] = {
    "packed": packed,
    "bits as declared": widths,
    "ledger is the file": ledger,
    "determinism": determinism,
    "save and load": save_load,
    "error falls": error_falls,
    "dead channels": survives,
    "offline": offline,
}


def identity(name: str, overrides: Mapping[str, str]) -> str:
    """Return the digest of what a cell's key takes from a method: version, settings and sources."""
    facts = WORLD.method(name, overrides)
    return digest_json([facts.name, facts.version, facts.config, facts.fingerprint])


def stable_identity(name: str, overrides: Mapping[str, str]) -> str:
    """Settings are JSON types, and their digest is the same in another process.

    Raises:
        CheckFailedError: they are not, or it is not.
    """
    config = WORLD.method(name, overrides).config
    if json.loads(json.dumps(config)) != config:
        raise CheckFailedError("the settings are not JSON types: they change when they are stored and read")
    here = identity(name, overrides)
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", _IDENTITY],
        input=json.dumps([name, dict(overrides)]),
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckFailedError(f"another process cannot form the digest: {last}")
    there = done.stdout.split()[-1]
    if there != here:
        raise CheckFailedError("version, settings and sources have another digest in another process")
    return here[:12]


def relative_error(trial: Trial, reference: Tensor) -> float:
    """Squared error of the predictions relative to their energy."""
    return float((trial.outputs - reference).square().sum() / reference.square().sum())


def reason(error: Exception) -> str:
    """Say in one line why a check failed: its own words, or type and first line of another exception."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    return (
        first_line
        if isinstance(error, CheckFailedError | CellError)
        else f"{type(error).__name__}: {first_line}"
    )


def _differences(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are missing on one side or not equal to the bit."""
    odd = sorted(first.keys() ^ second.keys())
    return odd + [
        key
        for key, value in first.items()
        if key in second and (value.dtype != second[key].dtype or not torch.equal(value, second[key]))
    ]
