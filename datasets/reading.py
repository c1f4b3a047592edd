"""Reads prompt files that nobody has checked: every mistake in one becomes one line that says where it is.

Nothing in a file is executed, no object but text, numbers, lists and mappings is built from it, and what
names a file later on (the id of a prompt, the name of an image) is checked character by character.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from harness.errors import UserError

LARGEST_FILE = 512 * 2**20
"""Bytes; the largest published prompt file, Karpathy's, has 144 MB."""
LONGEST_PROMPT = 10_000
"""Characters; text encoders read some hundreds, so a longer one is a slip or an attack."""
ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_SHOWN = 40
_ALLOWED_CONTROLS = "\t\n\r"
_YAML_CORE = ("str", "int", "float", "bool", "null", "timestamp", "map", "seq")


@dataclass(frozen=True)
class Place:
    """Where something was read: a file and a line of it, or an entry when lines mean nothing there."""

    path: Path
    line: int | None = None
    entry: str = ""

    def refuse(self, reason: str) -> UserError:
        """Build the error that says what is wrong here."""
        where = [str(self.path), *([f"line {self.line}"] if self.line else []), *filter(None, [self.entry])]
        return UserError(f"{': '.join(where)}: {reason}")


def shown(value: object) -> str:
    """Return a value for a message: quoted, without control characters, and not long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def clean_text(value: object, place: Place) -> str:
    """Return a prompt's text without white space at its ends; what is inside stays as published.

    Raises:
        UserError: it is no text, empty, too long, or holds characters that are no text.
    """
    if not isinstance(value, str):
        raise place.refuse(f"the prompt is no text: {shown(value)}")
    text = value.strip()
    if not text:
        raise place.refuse("the prompt is empty")
    if len(text) > LONGEST_PROMPT:
        raise place.refuse(f"the prompt has {len(text)} characters, more than {LONGEST_PROMPT}")
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in _ALLOWED_CONTROLS:
            raise place.refuse(f"the prompt holds the control character U+{ord(character):04X}")
    return text


def clean_id(value: object, place: Place) -> str:
    """Return a prompt's id; integers, as YAML and JSON may hold them, become their digits.

    Raises:
        UserError: it could not name a file on every machine, or would name one elsewhere.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not ID.fullmatch(text):
        raise place.refuse(f"the id {shown(value)} is not 1 to 128 letters, digits, '-' and '_'")
    return text


def image_id(file_name: object, place: Place) -> str:
    """Return the name of an image file without its extension, as `clean_id` checks it."""
    if not isinstance(file_name, str) or file_name.count(".") != 1:
        raise place.refuse(f"the file name {shown(file_name)} is not NAME.EXTENSION")
    return clean_id(file_name.partition(".")[0], place)


def unique(ids: Iterator[tuple[str, Place]]) -> None:
    """Check that no id comes twice; raises UserError naming both places."""
    seen: dict[str, Place] = {}
    for identity, place in ids:
        if identity in seen:
            first = seen[identity]
            before = f"line {first.line}" if first.line else first.entry or "before"
            raise place.refuse(f"the id {identity!r} is there already ({before})")
        seen[identity] = place


def read_text(path: Path) -> str:
    """Return a file's text; a byte-order mark is dropped.

    Raises:
        UserError: it is missing, no plain file, too large or not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= LARGEST_FILE else b""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if size > LARGEST_FILE:
        raise UserError(f"{path} has {size} bytes, more than {LARGEST_FILE}: not a prompt file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The offset counts from behind a byte-order mark, which holds no line end.
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise Place(path, line).refuse(f"not UTF-8 (byte 0x{byte:02X}); convert the file first") from error


def parse_json(text: str, path: Path, line: int = 1) -> Any:
    """Parse JSON; a repeated key, a NaN or anything behind the value is an error.

    Args:
        text: one JSON value.
        path: for messages.
        line: of `path` that `text` starts in.

    Raises:
        UserError: one line with the line number.
    """

    def no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for index, key in enumerate(keys) if key in keys[:index])
            raise Place(path, entry=f"key {shown(twice)}").refuse("is there twice")
        return found

    def no_constant(name: str) -> NoReturn:
        raise Place(path).refuse(f"{name} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=no_repetition, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        place = Place(path, line + error.lineno - 1)
        raise place.refuse(f"column {error.colno}: damaged or truncated JSON ({error.msg})") from error
    except RecursionError:
        raise Place(path).refuse("nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise Place(path).refuse(f"not JSON that can be read: {error}") from error


def line_of(text: str, key: str) -> int:
    """Return the line of a JSON text on which a key first stands; 1 when it is escaped oddly."""
    return text.count("\n", 0, max(text.find(json.dumps(key, ensure_ascii=False)), 0)) + 1


def yaml_pairs(path: Path) -> list[tuple[str | None, str, int]]:
    """Return a YAML mapping of scalars, or a list of them, in file order: key, value, line.

    The parser's events are read, never turned into objects: a key `0008` stays those four characters,
    whatever number a YAML version makes of it; no tag can name anything to be built; and nesting, which makes
    the library's own composer overflow the stack, ends the reading at its first bracket.

    Returns:
        Triples of key (None in a list), value and line.

    Raises:
        UserError: it is damaged, not of that shape, or holds a tag or repeated key.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        is_list, scalars = _flat_yaml(yaml.parse(read_text(path), Loader=loader), path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = Place(path, mark.line + 1 if mark else None)
        raise place.refuse(f"damaged or truncated YAML ({error.problem})") from error
    except yaml.YAMLError as error:
        raise Place(path).refuse(f"not YAML that can be read ({str(error).splitlines()[0]})") from error
    if is_list:
        return [(None, value, line) for value, line in scalars]
    pairs = zip(scalars[::2], scalars[1::2], strict=True)
    found = [(key, value, line) for (key, line), (value, _) in pairs]
    unique((key, Place(path, line)) for key, _, line in found)
    return list(found)


def _flat_yaml(events: Iterator[Any], path: Path) -> tuple[bool, list[tuple[str, int]]]:
    """Return whether the document is a list, and its scalars with their lines: keys and values in turns."""
    import yaml

    inside = (yaml.MappingEndEvent, yaml.SequenceEndEvent, yaml.DocumentEndEvent)
    root: Any = None
    scalars: list[tuple[str, int]] = []
    for event in events:
        place = Place(path, int(event.start_mark.line) + 1)
        if isinstance(event, yaml.DocumentStartEvent) and root is not None:
            raise place.refuse("a second YAML document begins here")
        if isinstance(event, (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent, *inside)):
            continue
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", *(f"tag:yaml.org,2002:{name}" for name in _YAML_CORE)):
            raise place.refuse(f"the tag {shown(tag)} is not accepted in a prompt file")
        if root is None:
            if not isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                raise place.refuse("neither a mapping of names to prompts nor a list of prompts")
            root = event
        elif isinstance(event, yaml.ScalarEvent):
            scalars.append((event.value, place.line or 1))
        else:
            raise place.refuse("a name or prompt is a list, a mapping or a reference, not a text")
    if root is None:
        raise Place(path).refuse("is empty")
    return isinstance(root, yaml.SequenceStartEvent), scalars


def table_rows(
    path: Path, delimiter: str, needed: Sequence[str], *, quoted: bool
) -> list[tuple[int, dict[str, str]]]:
    """Read a table with a header.

    Args:
        path: the file.
        delimiter: one character.
        needed: columns that must be there.
        quoted: whether `"` encloses a field, in which it is doubled; else it is a character like any other.

    Returns:
        For each row its first line, and its fields by column. Empty lines are left out.

    Raises:
        UserError: a column is missing, or a row is broken off or has other columns than the header.
    """
    source = io.StringIO(read_text(path), newline="")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(source, delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    rows: list[tuple[int, dict[str, str]]] = []
    line = 1
    try:
        for fields in reader:
            start, line = line, reader.line_num + 1
            if not any(fields):
                continue
            if header is None:
                header = [name.strip() for name in fields]
                _check_header(header, needed, Place(path, start))
            elif len(fields) != len(header):
                reason = f"{len(fields)} columns instead of {len(header)}; is the file truncated?"
                raise Place(path, start).refuse(reason)
            else:
                rows.append((start, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise Place(path, line).refuse(f"damaged or truncated table ({error})") from error
    if header is None:
        raise Place(path).refuse("is empty")
    return rows


def _check_header(header: Sequence[str], needed: Sequence[str], place: Place) -> None:
    missing = [name for name in needed if name not in header]
    if missing:
        columns = ", ".join(shown(name) for name in header[:8])
        raise place.refuse(f"no column {missing[0]!r} in the header ({columns})")
    if len(set(header)) < len(header):
        raise place.refuse("two columns of the header have the same name")
