"""What a run lacks, told before anything heavy is imported: models, prompt files, weights of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import UserError
from harness.fetched import data_folder, held
from harness.metrics.sources import WEIGHTS, find
from harness.protocols import settle
from harness.request import SCENES, Request, choose_model_paths, choose_models
from harness.world import World


def check_there(request: Request, world: World, models: bool) -> None:
    """Check that the files of a run are there.

    Args:
        request: the run.
        world: what it runs on.
        models: whether a model that is not there is an error, not something to download.

    Raises:
        UserError: something is missing; the message lists all of it and says how to get it.
    """
    names = choose_models(request, world)
    paths = choose_model_paths(request.model_paths, names, world)
    lacking = world.missing_models(names, paths) if models else {}
    sets = _missing_sets(request, world)
    if not lacking and not sets:
        return
    parts = [f"{name}: {missing.files}" for name, missing in lacking.items()]
    parts += [f"prompts of {name}: {files}" for name, files in sets.items()]
    options = [f"--model-path {name}=DIR" for name in lacking] + [f"--data-path {name}=PATH" for name in sets]
    command = _fetch_command(request, [name for name, model in lacking.items() if model.on_hub], bool(sets))
    ways = f"`{command}` gets what can be had, or give" if command else "give"
    raise UserError(f"missing files: {'; '.join(parts)}{_figures(request)}. {ways} {' '.join(options)}")


def _fetch_command(request: Request, models: Sequence[str], sets: bool) -> str:
    """Return the command that downloads what is missing, or nothing when none does."""
    fetches = settle(request.protocol, request.seed, request.block).base.fetches
    parts = [f"--protocol {request.protocol}"] if sets and fetches else []
    parts += [f"--models {','.join(models)}"] if models else []
    return f"harness fetch {' '.join(parts)}" if parts else ""


def _missing_sets(request: Request, world: World) -> dict[str, str]:
    """Return the prompt sets whose file is neither given nor fetched, and what the file is called.

    The set calibrated on is among them when an evaluated one is: whether methods calibrate is known only
    after importing them.
    """
    base = settle(request.protocol, request.seed, request.block).base
    given = {text.partition("=")[0] for text in request.data_paths}
    evaluated = _absent(request.datasets or (base.dataset,), given, world)
    if evaluated and base.calibration_dataset:
        evaluated |= _absent((base.calibration_dataset,), given, world)
    return evaluated


def _absent(names: Sequence[str], given: set[str], world: World) -> dict[str, str]:
    found = {}
    for name in names:
        prompts = world.dataset(name)
        if prompts.takes_path and name not in given and held(name, data_folder()) is None:
            files = getattr(prompts, "file_names", ())
            found[name] = " or ".join(files) or "a file of yours"
    return found


def _figures(request: Request) -> str:
    """Return which weights are missing, without which a run goes on but some figures are not formed."""
    paths: Mapping[str, Path] = {
        name: Path(path) for name, _, path in (text.partition("=") for text in request.data_paths)
    }
    if set(request.datasets) <= {SCENES} and request.protocol.startswith(SCENES):
        return ""
    absent = [key for key in WEIGHTS if key not in paths and find(key, {}) is None]
    return f"; and, for some figures only, the weights {', '.join(absent)}" if absent else ""
