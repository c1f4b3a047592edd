"""What the user asked for, and the checks of every part of it."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.datasets.contract import PromptSet
from harness.errors import UserError, unknown
from harness.metrics import REAL_IMAGES
from harness.world import MethodFacts, World

REFERENCE, SCENES = "reference", "scenes"
DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "reference", "triton")
ADM_BATCH = "adm"
"""What the manifest calls ADM's reference batch: the real images of the ImageNet classes."""
LARGEST_BLOCK = 100
"""Images of a block are named by two digits."""


@dataclass(frozen=True)
class Request:
    """What the user asked for, as typed. `None` means that an option was not given."""

    models: tuple[str, ...] = ("all",)
    methods: tuple[str, ...] = ("all",)
    bits: str = "2,3,4"
    act_bits: int | None = None
    datasets: tuple[str, ...] = ()
    protocol: str = "scenes-default"
    prompts: int = 64
    seed: int | None = None
    block: int | None = None
    device: str = "auto"
    backend: str = "auto"
    workers: int | None = None
    data_paths: tuple[str, ...] = ()
    model_paths: tuple[str, ...] = ()
    offline: bool = False
    out: Path | None = None
    settings: tuple[str, ...] = ()
    timeout: float = 3600.0
    latency: bool = True


def check_numbers(request: Request) -> None:
    """Check what can be checked without knowing what there is.

    Raises:
        UserError: a number is out of range, or the device is none.
    """
    if request.prompts < 1:
        raise UserError(f"--prompts {request.prompts}: give at least 1")
    if request.block is not None and not 1 <= request.block <= LARGEST_BLOCK:
        raise UserError(f"--block {request.block}: give 1 to {LARGEST_BLOCK}")
    if request.workers is not None and request.workers < 1:
        raise UserError(f"--workers {request.workers}: give at least 1")
    if request.device not in DEVICES:
        raise unknown("device", request.device, DEVICES)
    if request.backend not in BACKENDS:
        raise unknown("backend", request.backend, BACKENDS)
    if not (math.isfinite(request.timeout) and request.timeout > 0):
        raise UserError(f"--timeout {request.timeout:g}: give a positive number of seconds")


def settle_backend(asked: str, device: str) -> str:
    """Settle what packed layers run on: Triton's kernels on a CUDA device, else the reference formula.

    Raises:
        UserError: Triton is asked for and cannot run here.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    there = importlib.util.find_spec("triton") is not None and (device == "cuda" or interpreted)
    if asked == "triton" and not there:
        raise UserError(
            "--backend triton needs the package triton and a CUDA device; use --backend reference"
        )
    if asked == "auto":
        return "triton" if there and device == "cuda" else "reference"
    return asked


def _names(asked: Sequence[str], valid: Sequence[str], default: Sequence[str], kind: str) -> list[str]:
    """Return the names asked for in order and once each; `all` stands for the default."""
    if not asked:
        raise UserError(f"no {kind} given; valid: {', '.join(valid)}")
    found: list[str] = []
    for name in asked:
        if name != "all" and name not in valid:
            raise unknown(kind, name, valid)
        found += default if name == "all" else [name]
    return list(dict.fromkeys(found))


def choose_models(request: Request, world: World) -> list[str]:
    """Return the names of the models asked for; raises UserError for an unknown one."""
    return _names(request.models, world.model_names(), world.default_model_names(), "model")


def choose_methods(request: Request, world: World) -> list[MethodFacts]:
    """Return the methods asked for with their settings; the reference is not among them.

    `NAME:SET` stands for every member of a named set of settings of the method. What `--set` says holds for
    all members but where the member itself says otherwise: what an ablation switches off stays off.

    Raises:
        UserError: a method, set, key or value is unknown, or a setting is of a method that does not run.
    """
    overrides: dict[str, dict[str, str]] = {}
    typed: dict[str, str] = {}
    for text in request.settings:
        path, equals, value = text.partition("=")
        name, dot, key = path.strip().partition(".")
        if not (equals and dot and name and key):
            raise UserError(f"--set {text!r} is not METHOD.KEY=VALUE")
        overrides.setdefault(name, {})[key.strip()] = value.strip()
        typed[name] = text
    asked = [name for name in request.methods if name not in ("all", REFERENCE)]
    if not request.methods:
        raise UserError(f"no method given; valid: {', '.join(world.method_names())}")
    if "all" in request.methods:
        asked = [*world.method_names(), *asked]
    members: list[tuple[str, Mapping[str, str]]] = []
    for text in dict.fromkeys(asked):
        name, colon, label = text.partition(":")
        if name == "all" and colon:
            raise UserError(f"{text!r}: the methods of `all` have no set in common; give METHOD:SET")
        world.method(name, {})  # an unknown method is reported before a setting of it
        members += [(name, member) for member in (world.variants(name, label) if colon else ({},))]
    for name in overrides:
        if name not in {member for member, _ in members}:
            world.method(name, {})
            raise UserError(f"--set {typed[name]}: {name} is not among the methods of this run")
    facts = [world.method(name, {**overrides.get(name, {}), **member}) for name, member in members]
    return [method for i, method in enumerate(facts) if method not in facts[:i]]


def _pairs(texts: Sequence[str], option: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (equals and name and path):
            raise UserError(f"{option} {text!r} is not NAME=PATH")
        found[name] = Path(path)
    return found


def choose_model_paths(texts: Sequence[str], models: Sequence[str], world: World) -> dict[str, Path]:
    """Return `--model-path` by model; for models without one, the folder that was fetched, if it was.

    Raises:
        UserError: it is of another model, or no folder.
    """
    from harness.fetched import data_folder, fetched_model

    found = _pairs(texts, "--model-path")
    for name, path in found.items():
        if name not in world.model_names():
            raise unknown("model", name, world.model_names())
        if name not in models:
            raise UserError(f"--model-path {name}: {name} is not among the models of this run")
        if not path.is_dir():
            raise UserError(f"--model-path {name}: {path} is not a folder")
    fetched = {name: fetched_model(name, data_folder()) for name in models if name not in found}
    return found | {name: path for name, path in fetched.items() if path is not None}


def choose_data_paths(texts: Sequence[str], sets: Mapping[str, PromptSet], world: World) -> dict[str, Path]:
    """Return `--data-path` by prompt set or metric file; for sets without one, the fetched file.

    Raises:
        UserError: nothing takes it, it is not there, or a prompt set lacks its own.
    """
    from harness.fetched import data_folder, held

    found = _pairs(texts, "--data-path")
    for name, path in found.items():
        if name not in sets:
            world.check_data_path(name, path)
        elif not sets[name].takes_path:
            raise UserError(f"--data-path {name}: dataset {name} ships with the package and takes no path")
        elif not path.exists():
            raise UserError(f"--data-path {name}: {path} does not exist")
    for name, prompts in sets.items():
        if prompts.takes_path and name not in found:
            fetched = held(name, data_folder())
            if fetched is not None:
                found[name] = fetched
                continue
            raise UserError(f"dataset {name} needs its file: give --data-path {name}=PATH")
    batch = held(ADM_BATCH, data_folder()) if "classes" in sets and REAL_IMAGES not in found else None
    return found if batch is None else found | {REAL_IMAGES: batch}
