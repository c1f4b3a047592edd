"""The record of one cell: what a run folder keeps and every report reads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from harness.reports.validation import build, finite

SCHEMA_VERSION = 1

State = Literal["ok", "oom", "timeout", "nan", "unsupported", "crashed", "corrupt"]
Execution = Literal["packed", "simulated", "reference"]


@dataclass(frozen=True)
class Metric:
    """One figure of a cell.

    Attributes:
        value: the figure, or None when it could not be formed.
        lo: lower end of its 95 % interval, or None.
        hi: upper end of its 95 % interval, or None.
        note: why it is missing, e.g. `n/a: N < 256`.
    """

    value: float | None
    lo: float | None = None
    hi: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Identity:
    """What a cell is: the part of the record that is hashed into its key, plus what tables call it."""

    cell: str
    model: str
    method: str
    variant: str
    config: dict[str, Any]
    dataset: str
    protocol: str
    protocol_hash: str
    seed: int
    device: str
    backend: str
    dtype: str
    wbits: int
    abits: int
    reconstruction: bool = False
    library: str = ""


@dataclass(frozen=True)
class Result:
    """What a cell yields on this machine whatever happened on the way: byte-identical after interruptions.

    `prompts` holds the digest of each prompt that counts, in order: what values per prompt are paired by. It
    is empty in records of versions that did not keep them. `slices` names the part of the
    prompt set that each prompt belongs to, beside the lists of `per_prompt`; it is empty where the set has no
    parts.
    """

    state: State
    execution: Execution
    n: int
    message: str | None = None
    effective_bits: float | None = None
    weight_bytes: int | None = None
    checkpoint_bytes: int | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)
    per_prompt: dict[str, list[float | None]] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    slices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """Times, memory and environment: what no two runs share.

    `roads` names the kernels that ran while images were generated, by layer; empty where layers have one way.
    `step_error` is the relative squared error of the denoiser's prediction at each sampling step, on the
    inputs of the 16-bit one; None where it was not taken.
    """

    peak_bytes: int | None = None
    step_ms: float | None = None
    step_ms_lo: float | None = None
    step_ms_hi: float | None = None
    step_ms_ref: float | None = None
    step_ratio: float | None = None
    step_ratio_lo: float | None = None
    step_ratio_hi: float | None = None
    step_error: list[float | None] | None = None
    quantize_s: float | None = None
    generate_s: float | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    log_tail: str | None = None
    roads: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One finished cell. `identity` and `result` are stable, `measured` is not."""

    identity: Identity
    result: Result
    measured: Measured
    schema: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types. Infinities and NaN become None: JSON has no word for them."""
        plain: dict[str, Any] = finite(asdict(self))
        if not self.result.slices:  # the field came later: records without slices stay as they were
            del plain["result"]["slices"]
        return plain

    @classmethod
    def from_json(cls, data: object) -> Record:
        """Check `data`, as `json.loads` gives it, against the schema and build the record.

        Raises:
            ValueError: one line naming the first field that is missing, unknown, of the wrong type, not
                finite, or outside its set of values; or a schema version this code does not read.
        """
        schema = data.get("schema") if isinstance(data, dict) else SCHEMA_VERSION
        if schema != SCHEMA_VERSION:
            raise ValueError(f"schema version {schema!r:.40} is not {SCHEMA_VERSION}, the one read here")
        record = build(cls, data, "record")
        record.check_sizes()
        return record

    def check_sizes(self) -> None:
        """Raise ValueError when a count or size is negative."""
        result = self.result
        for size in (result.n, result.weight_bytes, result.checkpoint_bytes, self.measured.peak_bytes):
            if size is not None and size < 0:
                raise ValueError(f"record holds a negative size: {size}")


def same_prompts(one: Result, other: Result) -> bool | None:
    """Say whether two cells saw the same prompts in the same order, as far as both went.

    Returns:
        None when either record does not say.
    """
    if not (one.prompts and other.prompts):
        return None
    shared = min(len(one.prompts), len(other.prompts))
    return one.prompts[:shared] == other.prompts[:shared]


def read_records(run_folder: Path) -> list[Record]:
    """Read every finished cell of a run, `RUN/cells/KEY/record.json`, in order of the keys.

    A cell without that file is not finished and has no record yet. Nothing else is passed over.

    Args:
        run_folder: the run folder, or a file of records, one in each line, as the format `jsonl` writes it.

    Raises:
        ValueError: the folder is no run, or a record is damaged, belongs to another cell than its folder
            says, occurs twice, or lies outside the run (a link); one line naming the file.
    """
    if run_folder.is_file():
        return _read_lines(run_folder)
    cells = run_folder / "cells"
    if not cells.is_dir():
        raise ValueError(f"{run_folder} is not a run folder: it has no folder `cells`")
    return [_read_record(run_folder, path) for path in sorted(cells.glob("*/record.json"))]


def _read_record(run_folder: Path, path: Path) -> Record:
    """Read one record and check that it is where it says it is."""
    if not path.resolve().is_relative_to(run_folder.resolve()):
        raise ValueError(f"{path}: leads outside the run folder")
    try:
        record = _parse(_text(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if record.identity.cell != path.parent.name:
        raise ValueError(f"{path}: is the record of another cell, {record.identity.cell!r:.80}")
    return record


def _read_lines(path: Path) -> list[Record]:
    """Read a file of records, one in each line."""
    records: dict[str, Record] = {}
    try:
        lines = _text(path).split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _parse(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if record.identity.cell in records:
            raise ValueError(f"{path}, line {number}: a second record of cell {record.identity.cell!r:.80}")
        records[record.identity.cell] = record
    return [records[key] for key in sorted(records)]


def _text(path: Path) -> str:
    """Read a file; raises OSError, or ValueError when it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError("damaged: no UTF-8 text") from None


def _parse(text: str) -> Record:
    """Parse and check one record; raises ValueError."""
    try:
        return Record.from_json(json.loads(text, parse_constant=_refuse_constant))
    except json.JSONDecodeError as error:
        raise ValueError(f"damaged: no JSON ({error})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    """Refuse what Python's parser accepts beyond JSON."""
    raise ValueError(f"{name} is not JSON")
