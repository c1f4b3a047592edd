"""One line of the leaderboard: what a cell is, what it yields, and what that can be verified by."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, NoReturn

from harness.reports.record import SCHEMA_VERSION as RECORD_SCHEMA
from harness.reports.record import Record
from harness.reports.validation import build, finite

SCHEMA_VERSION = 1
IMAGES = 8
"""Images of a row whose digests are kept, and which `verify` makes again."""
LINE_LIMIT = 65_536
"""Bytes of a line; those of the shipped methods take under 4,000."""
FIRST = "0" * 64
"""What the first line of a file gives as the digest of the line before it."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CELL = re.compile(r"[0-9a-f]{8,64}")
_PROTOCOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DATE = "%Y-%m-%dT%H:%M:%SZ"
_LONGEST_NAME = 200
_DEEPEST = 16


@dataclass(frozen=True)
class Entry:
    """One cell as the leaderboard keeps it; docs/leaderboard.md describes every field.

    Attributes:
        previous: sha256 of the line before, `FIRST` for the first of a file.
        date: when it was added, UTC.
        commit: the commit whose sources made it, where that is known.
        dirty: whether that working tree held further changes.
        weights: sha256 of the model's weights.
        fingerprint: digests of the sources and versions of the libraries that the images depend on.
        block: prompts of one batch.
        images: sha256 of the pixels of the first images, at most `IMAGES`.
        first: by metric, its values for these images.
        per_prompt: by metric, the digest of its values for all prompts.
        record: the cell's record, without values per prompt, missing figures and log.
        schema: version of this description.
    """

    previous: str
    date: str
    commit: str | None
    dirty: bool
    weights: str
    fingerprint: dict[str, str]
    block: int
    images: list[str]
    first: dict[str, list[float | None]]
    per_prompt: dict[str, str]
    record: Record
    schema: int = SCHEMA_VERSION

    @property
    def machine(self) -> str:
        """What the cell was computed on; bits and times of different machines are not compared."""
        environment = self.record.measured.environment
        kind = "gpu" if self.record.identity.device == "cuda" else "cpu"
        return str(environment.get(kind) or "unknown")

    @property
    def sameness(self) -> tuple[str, int, str | None, str]:
        """What no two lines of a file share: the cell, N, the commit and the machine."""
        return self.record.identity.cell, self.record.result.n, self.commit, self.machine


def digest(data: bytes) -> str:
    """Return the sha256 of `data`, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> str:
    """Return the one spelling of JSON data: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def values_digest(values: list[float | None]) -> str:
    """Return the digest of a metric's values for each prompt."""
    return digest(canonical(values).encode())


def shorten(record: Record) -> Record:
    """Return the record as an entry holds it: without values per prompt, missing figures, and log."""
    metrics = {name: metric for name, metric in record.result.metrics.items() if metric.value is not None}
    return replace(
        record,
        result=replace(record.result, metrics=metrics, per_prompt={}),
        measured=replace(record.measured, log_tail=None),
    )


def to_line(entry: Entry) -> str:
    """Return the line of an entry, without its end.

    Raises:
        ValueError: the entry breaks the schema, or the line is too long.
    """
    line = canonical(finite(asdict(entry)))
    parse_line(line)
    return line


def parse_line(line: str) -> Entry:
    """Read and check one line.

    Raises:
        ValueError: one line saying what is wrong with it.
    """
    if len(line.encode()) > LINE_LIMIT:
        raise ValueError(f"{len(line.encode())} bytes are too many for a line; {LINE_LIMIT} are allowed")
    try:
        data = json.loads(line, parse_constant=_refuse_constant)
        _check_depth(data, _DEEPEST)
        if canonical(data) != line:  # or a field could be said twice, or said in two ways
            raise ValueError("not in canonical JSON: sorted keys, no spaces")
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    schema = data.get("schema") if isinstance(data, dict) else SCHEMA_VERSION
    if schema != SCHEMA_VERSION:
        raise ValueError(f"schema version {schema!r:.40} is not {SCHEMA_VERSION}, the one read here")
    entry = build(Entry, data, "entry")
    _check_provenance(entry)
    _check_images(entry)
    _check_record(entry.record)
    return entry


def _check_depth(value: Any, left: int) -> None:
    """Refuse data that is nested so deeply that walking it could exhaust the stack."""
    if left == 0:
        raise ValueError("nested too deeply")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        _check_depth(item, left - 1)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"entry.{what}")


def _check_provenance(entry: Entry) -> None:
    """Check digests, date and commit."""
    _demand(_DIGEST.fullmatch(entry.previous) is not None, "previous is no sha256")
    _demand(_DIGEST.fullmatch(entry.weights) is not None, "weights is no sha256")
    try:
        there = datetime.strptime(entry.date, _DATE).strftime(_DATE) == entry.date
    except ValueError:
        there = False
    _demand(there, f"date must look like 2025-01-31T23:59:59Z, not {entry.date!r:.40}")
    known = entry.commit is not None
    _demand(not known or _COMMIT.fullmatch(entry.commit or "") is not None, "commit is no commit's full name")
    _demand(known or not entry.dirty, "dirty says something of a commit that is not named")
    for key, value in entry.fingerprint.items():
        _check_name(key, "fingerprint")
        if value:  # the reference has no method
            _check_name(value, f"fingerprint.{key}")


def _check_images(entry: Entry) -> None:
    """Check that there are as many digests and first values as there should be."""
    count = min(IMAGES, entry.record.result.n)
    _demand(1 <= entry.block <= 4096, f"block must be 1 to 4096, not {entry.block}")
    _demand(len(entry.images) == count, f"images must hold {count} digests, not {len(entry.images)}")
    _demand(all(map(_DIGEST.fullmatch, entry.images)), "images holds what is no sha256")
    _demand(entry.first.keys() == entry.per_prompt.keys(), "first and per_prompt name different metrics")
    for name, values in entry.first.items():
        _check_name(name, "first")
        _demand(len(values) == count, f"first[{name!r}] must hold {count} values, not {len(values)}")
    _demand(all(map(_DIGEST.fullmatch, entry.per_prompt.values())), "per_prompt holds what is no sha256")


def _check_record(record: Record) -> None:
    """Check what the leaderboard asks of a record beyond its schema."""
    identity, result = record.identity, record.result
    _demand(record.schema == RECORD_SCHEMA, f"record has schema version {record.schema}, not {RECORD_SCHEMA}")
    record.check_sizes()
    _demand(_CELL.fullmatch(identity.cell) is not None, f"record has no cell's key: {identity.cell!r:.40}")
    for name in ("protocol", "protocol_hash"):
        held = getattr(identity, name)
        _demand(_PROTOCOL.fullmatch(held) is not None, f"record.identity.{name} is no name: {held!r:.40}")
    for name in ("model", "method", "variant", "dataset", "device", "backend", "dtype"):
        _check_name(getattr(identity, name), f"record.identity.{name}")
    for name in result.metrics:
        _check_name(name, "record.result.metrics")
    _demand(result.state == "ok", f"record is of a cell that ended as {result.state}")
    _demand(result.n >= 1, "record has no prompts")
    _demand(not result.per_prompt, "record.result.per_prompt belongs into first and per_prompt")
    _demand(record.measured.log_tail is None, "record.measured.log_tail has no place here")
    _demand(all(m.value is not None for m in result.metrics.values()), "record has a metric without a value")


def _check_name(name: str, where: str) -> None:
    """Check that a name is one line of moderate length. Markup is no matter: every output escapes it."""
    _demand(0 < len(name) <= _LONGEST_NAME, f"{where}: a name of {len(name)} characters")
    _demand(name.isprintable(), f"{where}: control characters in {name!r:.40}")


def utc(now: datetime) -> str:
    """Return a point in time as entries write it."""
    return now.strftime(_DATE)
