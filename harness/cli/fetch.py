"""`harness fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.grid import split_names
from harness.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

ALL, NONE = "all", "none"


def fetch_command(
    protocol: Annotated[
        str | None, typer.Option(help="Whose prompt files to download, and the weights of all metrics.")
    ] = None,
    models: Annotated[
        str,
        typer.Option(help="Models, by comma; `all` for those the protocol fixes.", show_default=False),
    ] = "",
    weights: Annotated[
        str | None,
        typer.Option(help="Weights of metrics, by comma, or all, or none."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to.  [default: see below]")] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Take what the addresses give now, whatever was fetched before.")
    ] = False,
) -> None:
    """Download prompt files, weights of metrics and models, and write a manifest of them.

    They go to the folder HARNESS_DATA names, else to ~/.cache/lowbit-harness; `harness run` finds them there.
    """
    from harness.datasets.sources import DOWNLOADS
    from harness.fetched import MANIFEST, data_folder
    from harness.fetching import fetch_items, item_of
    from harness.hub import fetch_model, fetch_weights
    from harness.models import registry
    from harness.protocols import settle

    settled = None if protocol is None else settle(protocol, None)
    files = () if settled is None else settled.base.fetches
    fixed = [] if settled is None else list(settled.base.models)
    wanted_models = _models(models, fixed, registry.names())
    keys = _weights(weights if weights is not None else (ALL if files else NONE))
    if not files and not wanted_models and not keys:
        what = f"protocol {protocol} needs no download" if protocol else "nothing to fetch"
        raise UserError(f"{what}; give --models or --weights" + ("" if protocol else " or --protocol"))
    folder = out or data_folder()
    try:
        fetch_items([item_of(DOWNLOADS[name]) for name in files], folder, print, renew)
        fetch_weights(keys, folder, print, renew)
        for name in wanted_models:
            fetch_model(registry.get(name), folder, print, renew)
    except OSError as error:
        raise UserError(f"cannot write to {error.filename or folder}: {error.strerror}") from error
    print(f"manifest: {folder / MANIFEST}")


def _models(text: str, fixed: Sequence[str], valid: Sequence[str]) -> list[str]:
    """Return the names of models; `all` stands for those that the protocol fixes."""
    from harness.models import registry

    found: list[str] = []
    for name in split_names(text):
        if name == ALL and not fixed:
            raise UserError("--models all: the protocol fixes no model; name them")
        if name != ALL and name not in valid:
            raise unknown("model", name, valid)
        found += fixed if name == ALL else [name]
    shipped = [name for name in found if registry.get(name).embedded]
    if shipped:
        raise UserError(f"--models {shipped[0]}: it ships with the package")
    return list(dict.fromkeys(found))


def _weights(text: str) -> list[str]:
    """Return the keys of weights; raises UserError naming the nearest ones for an unknown key."""
    from harness.metrics.sources import WEIGHTS

    keys: list[str] = []
    for name in split_names(text):
        if name not in (ALL, NONE, *WEIGHTS):
            raise unknown("weights", name, [*WEIGHTS, ALL, NONE])
        keys += list(WEIGHTS) if name == ALL else [] if name == NONE else [name]
    return list(dict.fromkeys(keys))
