"""`harness protocol`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

protocol_app = typer.Typer(help="List, show and compare protocols.", no_args_is_help=True)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested fields as one level, `models.sdxl.steps` and so on."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    parts = (_flat(inner, f"{name}.{key}" if name else key) for key, inner in value.items())
    return {key: inner for part in parts for key, inner in part.items()}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@protocol_app.command("list", help="List the protocols with their hashes.")
def list_protocols() -> None:
    """Print name, hash and summary of each protocol."""
    from harness import protocols

    settled = [protocols.settle(name, None) for name in protocols.names()]
    width = max(len(found.base.name) for found in settled)
    for found in settled:
        print(f"{found.base.name:<{width}}  {found.hash}  {found.base.summary}")


@protocol_app.command("show", help="Print every field of a protocol and its hash.")
def show_protocol(
    name: Annotated[str, typer.Argument(metavar="PROTOCOL", help="Its name.")],
    seed: Annotated[
        int | None, typer.Option(help="Where it leaves the seed to --seed.  [default: 0]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Print every field of a protocol and its hash."""
    from harness.protocols import settle

    found = settle(name, seed)
    if as_json:
        print(json.dumps({**found.show(), "hash": found.hash}, indent=2, ensure_ascii=False))
        return
    for field, value in {"hash": found.hash, **_flat(found.show())}.items():
        print(f"{field}: {value if isinstance(value, str) else _text(value)}")


@protocol_app.command("diff", help="Print the fields in which two protocols differ.")
def diff_protocols(
    a: Annotated[str, typer.Argument(metavar="A", help="A protocol.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
) -> None:
    """Print the hashed fields in which two protocols differ, a dash where one says nothing."""
    from harness.protocols import settle

    first, second = settle(a, None), settle(b, None)
    ours, theirs = _flat(first.hashed()), _flat(second.hashed())
    print(f"hash: {first.hash} | {second.hash}")
    for field in dict.fromkeys((*ours, *theirs)):
        values = [_text(side[field]) if field in side else "-" for side in (ours, theirs)]
        if values[0] != values[1] and field not in ("name", "models"):
            print(f"{field}: {values[0]} | {values[1]}")
