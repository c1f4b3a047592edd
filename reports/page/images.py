"""The images of a run as lossless WebP, as large as the page has room for."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from harness.reports.contact import block_images, open_png

SIDES = (1024, 512, 256, 192, 128, 96, 64, 48, 32)
"""Longest sides of thumbnails that are tried, in pixels, when the images do not fit as they are."""
_SAMPLED = 24
_EFFORT = 50  # of WebP's lossless search, 0 to 100: 100 takes twice as long for files 0.2 % smaller

Sources = Mapping[str, Mapping[int, Path]]
"""Per cell, the files of its images by position of the prompt."""


@dataclass(frozen=True)
class Gallery:
    """The images of a page.

    Attributes:
        images: per cell, base64 of a WebP file for each prompt; None where there is no image.
        side: longest side of thumbnails in pixels, or None when the images are as they were generated.
        generated_side: longest side of any image as generated; 0 when there are none.
        prompts: how many prompts have images in the page.
        available: how many prompts have images in the run.
    """

    images: dict[str, list[str | None]]
    side: int | None
    generated_side: int
    prompts: int
    available: int


def find_images(run_folder: Path, groups: Iterable[Sequence[str]]) -> dict[str, dict[int, Path]]:
    """Return where the images of cells are, by position of their prompt.

    Args:
        run_folder: the run.
        groups: keys of cells that ran on the same prompts, one sequence per group.
    """
    found: dict[str, dict[int, Path]] = {}
    for keys in groups:
        named = {key: dict(block_images(run_folder / "cells" / key)) for key in keys}
        order = sorted({name for names in named.values() for name in names})
        position = {name: index for index, name in enumerate(order)}
        for key, names in named.items():
            found[key] = {position[name]: path for name, path in names.items()}
    return found


def embed(sources: Sources, budget: int) -> Gallery:
    """Encode images so that they take at most `budget` characters of base64 together.

    Tried in this order: as they are; thumbnails of each of `SIDES`, from large to small; then the smallest
    thumbnails of half as many prompts, the first ones, again and again.

    Args:
        sources: see `find_images`.
        budget: characters.

    Returns:
        The images, losslessly encoded at the size that fits.

    Raises:
        ValueError: an image cannot be read; the line names its file.
    """
    available = 1 + max((max(paths) for paths in sources.values() if paths), default=-1)
    largest = max((_longest(path) for paths in sources.values() for path in paths.values()), default=0)
    attempts: list[tuple[int | None, int]] = [(None, available)]
    attempts += [(side, available) for side in SIDES if side < largest]
    prompts = available
    while prompts > 1:
        prompts = (prompts + 1) // 2
        attempts.append((min(SIDES[-1], largest), prompts))
    for side, count in attempts:
        chosen = {
            key: {index: path for index, path in paths.items() if index < count}
            for key, paths in sources.items()
        }
        images = _encode_within(chosen, side, count, budget)
        if images is not None:
            return Gallery(images, side if side != largest else None, largest, count, available)
    return Gallery({}, None, largest, 0, available)


def _longest(path: Path) -> int:
    """Return the longest side of an image, from its header."""
    with open_png(path) as image:
        return max(image.size)


def _encode_within(
    sources: Sources, side: int | None, prompts: int, budget: int
) -> dict[str, list[str | None]] | None:
    """Encode all images at one size, or return None as soon as it is clear that they do not fit."""
    paths = [path for by_prompt in sources.values() for path in by_prompt.values()]
    sample = paths[:: max(1, len(paths) // _SAMPLED)]
    taken = sum(len(_encode(path, side)) for path in sample)
    if sample and taken / len(sample) * len(paths) > 1.25 * budget:  # saves encoding what cannot fit
        return None
    images: dict[str, list[str | None]] = {}
    room = budget
    for key, by_prompt in sources.items():
        row: list[str | None] = [None] * (prompts if by_prompt else 0)
        for index, path in by_prompt.items():
            row[index] = encoded = _encode(path, side)
            room -= len(encoded) + len('"",')
        if room < 0:
            return None
        images[key] = row
    return images


def _encode(path: Path, side: int | None) -> str:
    """Return an image as base64 of lossless WebP, shrunk to `side` pixels where it is larger."""
    with open_png(path) as opened:
        image = opened.convert("RGB")
    if side is not None:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "webp", lossless=True, quality=_EFFORT, method=4)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
