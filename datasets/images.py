"""Finds the reference images of a prompt set, inside its folder and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.datasets.contract import Prompt
from harness.datasets.fileset import FileSet
from harness.errors import UserError


def find_images(prompts: Sequence[Prompt], found: FileSet, path: Path) -> list[Path | None]:
    """Return the reference image of each prompt, None where it is missing or the set has none.

    Args:
        prompts: of the set.
        found: the set.
        path: as given with `--data-path`; the images lie beside the file, where they were unpacked.

    Raises:
        UserError: an image leads out of the folder.
    """
    base = found.source(path).absolute().parent
    roots = [(base / folder).resolve() for folder in found.image_folders]
    return [_inside(prompt.image, roots) if prompt.image else None for prompt in prompts]


def reference_images(prompts: Sequence[Prompt], found: FileSet, path: Path) -> list[Path]:
    """Return the reference image of each prompt.

    Args:
        prompts: of the set.
        found: the set.
        path: as for `find_images`.

    Raises:
        UserError: the set has no images, some are missing (the message counts them and names the first), or
            one leads out of the folder.
    """
    if not all(prompt.image for prompt in prompts):
        raise UserError(f"dataset {found.name} has no reference images")
    files = find_images(prompts, found, path)
    missing = [prompt.image for prompt, file in zip(prompts, files, strict=True) if file is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(prompts)} reference images of {found.name} are not below "
            f"{found.source(path).absolute().parent}, the first is {missing[0]}"
        )
    return [file for file in files if file is not None]


def _inside(name: str, roots: Sequence[Path]) -> Path | None:
    """Return the file of that name in the first folder that holds it; a link out of the folder is refused."""
    for root in roots:
        file = root / name
        if file.is_file():
            if not file.resolve().is_relative_to(root):
                raise UserError(f"{file} leads out of its folder")
            return file
    return None
