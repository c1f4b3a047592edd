"""COCO captions: one caption for each image, chosen by the hash of its file name.

Read are the official `captions_*.json` (https://cocodataset.org), Karpathy's split `dataset_coco.json` (its
test images, the ones results are published on) and MLPerf's `captions_source.tsv`, which holds one caption an
image (https://github.com/mlcommons/inference, text_to_image).

The choice is SVDQuant's: of an image's captions in file order, the one at the rolling hash of its file name
without extension, modulo their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.datasets.contract import Prompt
from harness.datasets.fileset import FileSet
from harness.datasets.reading import (
    Place,
    clean_text,
    image_id,
    parse_json,
    read_text,
    shown,
    table_rows,
    unique,
)
from harness.datasets.selection import rolling_hash

KARPATHY_SPLIT = "test"


@dataclass(frozen=True)
class Image:
    """One image of a caption file.

    Attributes:
        name: its file name without extension; the prompt's id.
        file: where it lies in the official folders.
        captions: in file order, as written.
        place: for messages.
    """

    name: str
    file: str
    captions: tuple[object, ...]
    place: Place


def images(path: Path) -> list[Image]:
    """Read the images of any of the three formats, in file order.

    Raises:
        UserError: the file is none of them, damaged, or an image has no caption or comes twice.
    """
    if path.suffix.lower() == ".tsv":
        found = _mlperf(path)
    else:
        data = parse_json(read_text(path), path)
        if not isinstance(data, dict) or not isinstance(data.get("images"), list):
            raise Place(path).refuse("has no list `images`: neither COCO captions nor Karpathy's split")
        found = _official(data, path) if "annotations" in data else _karpathy(data["images"], path)
    unique((image.name, image.place) for image in found)
    for image in found:
        if not image.captions:
            raise image.place.refuse(f"the image {image.name} has no caption")
    return found


def read(path: Path) -> list[Prompt]:
    """Read one prompt for each image; white space is stripped after the choice."""
    return [
        Prompt(image.name, clean_text(_chosen(image), image.place), image=image.file)
        for image in images(path)
    ]


def _chosen(image: Image) -> object:
    return image.captions[rolling_hash(image.name) % len(image.captions)]


def _folder(name: str) -> str:
    """Return the official folder of an image: `COCO_val2014_...` lies in val2014, bare digits in val2017."""
    parts = name.split("_")
    return parts[1] if len(parts) == 3 and parts[0] == "COCO" else "val2017"


def _image(file_name: object, captions: Sequence[object], place: Place) -> Image:
    name = image_id(file_name, place)
    return Image(name, f"{_folder(name)}/{file_name}", tuple(captions), place)


def _field(entry: Any, key: str, kind: type, place: Place) -> Any:
    if not isinstance(entry, dict) or not isinstance(entry.get(key), kind) or isinstance(entry[key], bool):
        raise place.refuse(f"lacks `{key}` ({kind.__name__}): {shown(entry)}")
    return entry[key]


def _official(data: dict[str, Any], path: Path) -> list[Image]:
    """Join the annotations to the images by their number."""
    if not isinstance(data["annotations"], list):
        raise Place(path).refuse("`annotations` is not a list")
    captions: dict[int, list[object]] = {}
    for index, entry in enumerate(data["images"]):
        place = Place(path, entry=f"images[{index}]")
        if captions.setdefault(_field(entry, "id", int, place), []):
            raise place.refuse("is there twice")
    for index, entry in enumerate(data["annotations"]):
        place = Place(path, entry=f"annotations[{index}]")
        number = _field(entry, "image_id", int, place)
        if number not in captions:
            raise place.refuse(f"is of image {number}, which the file does not list")
        captions[number].append(_field(entry, "caption", str, place))
    return [
        _image(entry.get("file_name"), captions[entry["id"]], Place(path, entry=f"images[{index}]"))
        for index, entry in enumerate(data["images"])
    ]


def _karpathy(entries: list[Any], path: Path) -> list[Image]:
    found = []
    for index, entry in enumerate(entries):
        place = Place(path, entry=f"images[{index}]")
        if _field(entry, "split", str, place) != KARPATHY_SPLIT:
            continue
        sentences = _field(entry, "sentences", list, place)
        captions = [_field(sentence, "raw", str, place) for sentence in sentences]
        found.append(_image(_field(entry, "filename", str, place), captions, place))
    return found


def _mlperf(path: Path) -> list[Image]:
    rows = table_rows(path, "\t", ("caption", "file_name"), quoted=True)
    return [_image(row["file_name"], [row["caption"]], Place(path, line)) for line, row in rows]


COCO = FileSet(
    name="coco",
    summary="COCO captions (captions_val2014/2017.json, Karpathy's test split, MLPerf's tsv), one an image",
    reader=read,
    file_names=(
        "captions_val2014.json",
        "captions_val2017.json",
        "annotations/captions_val2014.json",
        "annotations/captions_val2017.json",
        "dataset_coco.json",
        "captions_source.tsv",
    ),
    image_folders=(".", "..", "images"),
)
