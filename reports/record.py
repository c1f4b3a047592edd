"""The record of one cell, and the flat row every table is made of. Imports nothing else of the project."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

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


@dataclass(frozen=True)
class Result:
    """What a cell yields on this machine whatever happened on the way: byte-identical after interruptions."""

    state: State
    execution: Execution
    n: int
    message: str | None = None
    effective_bits: float | None = None
    weight_bytes: int | None = None
    checkpoint_bytes: int | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)
    per_prompt: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Times, memory and environment: what no two runs share."""

    peak_bytes: int | None = None
    step_ms: float | None = None
    step_ms_lo: float | None = None
    step_ms_hi: float | None = None
    step_ms_ref: float | None = None
    quantize_s: float | None = None
    generate_s: float | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    log_tail: str | None = None


@dataclass(frozen=True)
class Record:
    """One finished cell. `identity` and `result` are stable, `measured` is not."""

    identity: Identity
    result: Result
    measured: Measured
    schema: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return asdict(self)
