"""`harness check-method`."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.errors import UserError


def check_method_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A method, built in or of a plugin.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method.")
    ] = None,
) -> int:
    """Try a method on a tiny UNet and DiT and say what it keeps and what it breaks."""
    overrides = {}
    for text in set_ or ():
        key, equals, value = text.partition("=")
        key = key.removeprefix(f"{name}.").strip()
        if not (equals and key):
            raise UserError(f"--set {text!r} is not KEY=VALUE")
        overrides[key] = value
    from harness.check.suite import check_method

    failed = 0
    for finding in check_method(name, overrides):
        failed += not finding.ok
        state = "ok    " if finding.ok else "FAILED"
        print(f"{state}  {finding.subject:<9}  {finding.check:<18}  {finding.detail}", flush=True)
    print(f"{name}: " + (f"{failed} checks failed" if failed else "all checks passed"))
    return 1 if failed else 0
