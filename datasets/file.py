"""The user's own prompts: txt, csv, tsv, json, jsonl or yaml.

- txt: one prompt a line.
- csv, tsv: a header with a column `prompt` and, if wanted, `id` and `category`.
- json: a list of texts, a list of objects with the fields of the columns above, or an object of id to text.
- jsonl: a text or such an object a line.
- yaml: a mapping of id to text, or a list of texts.

Prompts without ids are numbered from `0000`. Empty lines are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from harness.datasets.contract import Prompt
from harness.datasets.fileset import FileSet
from harness.datasets.reading import (
    Place,
    clean_id,
    clean_text,
    line_of,
    parse_json,
    read_text,
    shown,
    table_rows,
    unique,
    yaml_pairs,
)
from harness.errors import UserError

Entry = tuple[Any, Place]
"""A text, or a mapping with the fields `prompt`, `id` and `category`."""


def _txt(path: Path) -> Iterable[Entry]:
    lines = read_text(path).split("\n")
    return ((text, Place(path, n)) for n, text in enumerate(lines, 1) if text.strip())


def _csv(path: Path) -> Iterable[Entry]:
    return ((row, Place(path, line)) for line, row in table_rows(path, ",", ("prompt",), quoted=True))


def _tsv(path: Path) -> Iterable[Entry]:
    return ((row, Place(path, line)) for line, row in table_rows(path, "\t", ("prompt",), quoted=True))


def _json(path: Path) -> Iterable[Entry]:
    text = read_text(path)
    data = parse_json(text, path)
    if isinstance(data, list):
        return ((entry, Place(path, entry=f"entry {index}")) for index, entry in enumerate(data))
    if isinstance(data, dict):
        pairs = data.items()
        return (
            ({"id": k, "prompt": v}, Place(path, line_of(text, k), f"entry {shown(k)}")) for k, v in pairs
        )
    raise Place(path).refuse("holds neither a list of prompts nor an object of ids")


def _jsonl(path: Path) -> Iterable[Entry]:
    lines = enumerate(read_text(path).split("\n"), 1)
    return ((parse_json(text, path, n), Place(path, n)) for n, text in lines if text.strip())


def _yaml(path: Path) -> Iterable[Entry]:
    for key, value, line in yaml_pairs(path):
        yield (value if key is None else {"id": key, "prompt": value}), Place(path, line)


_FORMATS: dict[str, Callable[[Path], Iterable[Entry]]] = {
    ".txt": _txt,
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".yaml": _yaml,
    ".yml": _yaml,
}


def read(path: Path) -> list[Prompt]:
    """Read a file by its extension.

    Raises:
        UserError: the extension is none of the formats, or an entry is malformed; with its line or number.
    """
    reader = _FORMATS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: the extension must be one of {', '.join(_FORMATS)}")
    found = [(_prompt(entry, index, place), place) for index, (entry, place) in enumerate(reader(path))]
    unique((prompt.id, place) for prompt, place in found)
    return [prompt for prompt, _ in found]


def _prompt(entry: Any, index: int, place: Place) -> Prompt:
    if not isinstance(entry, dict):
        return Prompt(f"{index:04d}", clean_text(entry, place))
    if "prompt" not in entry:
        raise place.refuse(f"lacks `prompt`: {shown(entry)}")
    name = clean_id(entry["id"], place) if "id" in entry else f"{index:04d}"
    category = entry.get("category", "")
    if not isinstance(category, str):
        raise place.refuse(f"the category is no text: {shown(category)}")
    return Prompt(name, clean_text(entry["prompt"], place), slice=category.strip())


FILE = FileSet(
    name="file",
    summary="your own prompts: txt (one a line), csv, tsv, json, jsonl or yaml",
    reader=read,
)
