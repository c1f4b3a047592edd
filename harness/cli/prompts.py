"""`harness prompts` and `harness leaks`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.datasets.contract import Prompt

_SHOWN_LEAKS = 10


def _source(text: str) -> tuple[str, Path | None]:
    """Split NAME or NAME=PATH, and check that the set takes a path if and only if there is one."""
    from harness.datasets import registry

    name, equals, path = text.partition("=")
    found = registry.get(name)
    if found.takes_path and not path:
        raise UserError(f"dataset {name} needs its file: give {name}=PATH")
    if equals and not found.takes_path:
        raise UserError(f"dataset {name} ships with the package and takes no path")
    return name, Path(path) if path else None


def prompts_command(
    dataset: Annotated[str, typer.Argument(metavar="NAME[=PATH]", help="A prompt set and its file.")],
    protocol: Annotated[str, typer.Option(help="Whose selection and seeds.")] = "scenes-default",
    n: Annotated[int, typer.Option("-n", "--prompts", help="How many to print.")] = 10,
    seed: Annotated[int | None, typer.Option(help="As for `harness run`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Print what a prompt file holds, and the prompts and seeds that a protocol takes of it."""
    from harness.datasets import registry
    from harness.datasets.selection import seeded, select
    from harness.noise import prompt_seed
    from harness.protocols import settle
    from harness.reports.formats.layout import clean

    if n < 1:
        raise UserError(f"--prompts {n}: give at least 1")
    name, path = _source(dataset)
    found = registry.get(name)
    settled = settle(protocol, seed)
    chosen = select(found, n, settled.base.selection, path)
    rows: list[dict[str, Any]] = [
        {"id": p.id, "seed": prompt_seed(p, settled.seed), "slice": p.slice, "text": p.text}
        for p in seeded(chosen, settled.base.seeds, settled.seed)
    ]
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    print(_summary(name, path))
    print(
        f"the first {n} of protocol {settled.base.name} ({settled.hash}), selection {settled.base.selection}:"
    )
    for row in rows:
        print(f"{row['id']}  seed {row['seed']}  {clean(' '.join(row['text'].split()))}")


def _summary(name: str, path: Path | None) -> str:
    """Return a line of what a set holds."""
    from harness.datasets import registry
    from harness.datasets.coco import COCO, images
    from harness.datasets.fileset import FileSet
    from harness.datasets.images import find_images
    from harness.reports.formats.layout import clean

    found = registry.get(name)
    count = found.count(path)
    if path is None:
        return f"{name}: {count} prompts"
    everything = found.prompts(count, path)
    parts = [f"{count} prompts, {len({prompt.text for prompt in everything})} different texts"]
    if name == COCO.name:
        written = images(COCO.source(path))
        captions = sum(len(image.captions) for image in written)
        parts.append(f"{len(written)} images with {captions} captions")
    slices = Counter(prompt.slice for prompt in everything if prompt.slice)
    if slices:
        listed = ", ".join(f"{part} {size}" for part, size in slices.most_common())
        parts.append(f"{len(slices)} categories: {listed}")
    if isinstance(found, FileSet) and all(prompt.image for prompt in everything):
        there = sum(file is not None for file in find_images(everything, found, path))
        parts += [f"{there} of {count} reference images beside it"] if there else []
    return clean(f"{name}: " + "; ".join(parts))


def leaks_command(
    calibration: Annotated[str, typer.Argument(metavar="CALIBRATION", help="Calibrated on: NAME[=PATH].")],
    evaluation: Annotated[str, typer.Argument(metavar="EVALUATION", help="Judged on: NAME[=PATH].")],
    images: Annotated[
        Path | None,
        typer.Option(help="COCO captions that say which images the calibration captions describe."),
    ] = None,
) -> None:
    """Count what two prompt sets have in common, whatever a protocol takes of them."""
    from harness.datasets import registry
    from harness.datasets.leaks import described_images, overlap

    def everything(text: str) -> list[Prompt]:
        name, path = _source(text)
        found = registry.get(name)
        return found.prompts(found.count(path), path)

    described = None if images is None else described_images(images)
    leak = overlap(everything(calibration), everything(evaluation), described)
    print(leak.line())
    for identity in leak.ids[:_SHOWN_LEAKS]:
        print(f"  {identity}")
    if len(leak.ids) > _SHOWN_LEAKS:
        print(f"  ... {len(leak.ids) - _SHOWN_LEAKS} more")
