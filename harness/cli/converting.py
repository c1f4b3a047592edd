"""`harness convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import UserError, unknown

CONVERTIBLE = ("ldm-4-imagenet", "ldm-4-bedroom")


def convert_command(
    model: Annotated[str, typer.Argument(metavar="|".join(CONVERTIBLE), help="Which model it is.")],
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="The original checkpoint.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for --model-path.")],
) -> None:
    """Turn an original checkpoint into a folder that `--model-path` takes."""
    if model not in CONVERTIBLE:
        raise unknown("model", model, CONVERTIBLE)
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint} is no file")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; give a new folder")
    from harness.models.ldm_checkpoint import ARCHITECTURES, convert, read_checkpoint

    pipeline = convert(read_checkpoint(checkpoint), ARCHITECTURES[model])
    pipeline.save_pretrained(folder, safe_serialization=True)
    print(f"harness run --models {model} --model-path {model}={folder}")
