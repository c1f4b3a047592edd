"""The options that say which cells there are: declared once, for every command that takes a grid."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.errors import UserError
from harness.request import Request


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a list by comma."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def split_counts(text: str, option: str, what: str) -> tuple[int, ...]:
    """Return the positive whole numbers in a list by comma; raises UserError when it is no list of them."""
    parts = split_names(text)
    if not parts or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"{option} {text!r} is no list of {what}")
    return tuple(int(part) for part in parts)


def grid_request(
    models: Annotated[str, typer.Option(help="Models, by comma; `all` for those that ship.")] = "all",
    methods: Annotated[
        str, typer.Option(help="Methods, by comma, or `all`; NAME:SET for a named set of settings.")
    ] = "all",
    bits: Annotated[str, typer.Option(help="Weight bits (2,3,4) or both (w4a4,w3a6).")] = "2,3,4",
    act_bits: Annotated[
        int | None, typer.Option(help="Activation bits beside plain weight bits.  [default: 8]")
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="Prompt sets, by comma.  [default: the protocol's]", show_default=False)
    ] = "",
    protocol: Annotated[str, typer.Option(help="How images are made and judged.")] = "scenes-default",
    prompts: Annotated[int, typer.Option(help="Images per cell.")] = 64,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.  [default: 0]")] = None,
    block: Annotated[
        int | None, typer.Option(help="Prompts of one batch: another protocol.  [default: the protocol's]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    backend: Annotated[
        str, typer.Option(help="What packed layers run on: auto (triton on cuda), reference or triton.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Cells at a time.  [default: cores; 1 on a GPU]")
    ] = None,
    data_path: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="File or folder of a prompt set or metric.")
    ] = None,
    model_path: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="Diffusers folder of a model.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Keep the libraries off the network.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run folder.  [default: runs/PROTOCOL-HASH]")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="METHOD.KEY=VALUE", help="A setting of a method.")
    ] = None,
) -> Request:
    """Return the request that these options make; nothing of it is checked yet."""
    return Request(
        models=split_names(models),
        methods=split_names(methods),
        bits=bits,
        act_bits=act_bits,
        datasets=split_names(dataset),
        protocol=protocol,
        prompts=prompts,
        seed=seed,
        block=block,
        device=device,
        backend=backend,
        workers=workers,
        data_paths=tuple(data_path or ()),
        model_paths=tuple(model_path or ()),
        offline=offline,
        out=out,
        settings=tuple(set_ or ()),
    )


def takes_grid(command: Callable[..., int]) -> Callable[..., int]:
    """Put the grid's options before a command's own.

    Args:
        command: called with the request as `request`, and its own options.

    Returns:
        What typer is to register: its signature has all options.
    """
    grid = inspect.signature(grid_request, eval_str=True).parameters
    own = dict(inspect.signature(command, eval_str=True).parameters)
    own.pop("request")
    parameters = [*grid.values(), *own.values()]

    def called(**options: Any) -> int:
        request = grid_request(**{name: options.pop(name) for name in grid if name in options})
        return command(request=request, **options)

    functools.update_wrapper(called, command, updated=())
    # typer must read the signature below and not, through the wrapper, that of the command.
    del called.__wrapped__  # type: ignore[attr-defined]
    called.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called
