"""`harness fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import UserError


def fetch_command(
    protocol: Annotated[str, typer.Option(help="Whose files to download.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to.  [default: see below]")] = None,
) -> None:
    """Download the prompt files that a protocol needs, and write a manifest of them.

    They go to the folder HARNESS_DATA names, else to ~/.cache/lowbit-harness; `harness run` finds them there.
    """
    from harness.datasets.sources import DOWNLOADS
    from harness.fetching import MANIFEST, fetch
    from harness.protocols import settle
    from harness.request import data_folder

    wanted = settle(protocol, None).base.fetches
    if not wanted:
        raise UserError(f"protocol {protocol} needs no download")
    folder = out or data_folder()
    try:
        fetch([DOWNLOADS[name] for name in wanted], folder, print)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    print(f"manifest: {folder / MANIFEST}")
