"""The flat row every table is made of, the order of rows, and the data frame of a run."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.reports.record import Metric, Record, read_records
from harness.reports.validation import finite

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "reference"
"""The method name of a model's unquantized cell."""

METRICS_WITH_INTERVAL = ("psnr", "ssim", "prompt_accuracy")
METRICS_WITHOUT_INTERVAL = ("lpips", "lpips_scene", "fid", "fid_ref", "kid", "precision", "recall")

IDENTITY = (
    "cell", "model", "method", "variant", "config", "dataset", "protocol", "protocol_hash", "seed", "device",
    "backend", "dtype", "wbits", "abits", "reconstruction", "library",
)  # fmt: skip
_NAME = ("model", "method", "variant", "dataset", "device", "wbits", "abits")
_RESULT = ("state", "execution", "n", "message", "effective_bits", "weight_bytes", "checkpoint_bytes")
_MEASURED = ("peak_bytes", "step_ms", "step_ms_lo", "step_ms_hi", "step_ms_ref", "quantize_s", "generate_s")
_INTEGERS = ("seed", "wbits", "abits", "n", "weight_bytes", "checkpoint_bytes", "peak_bytes")
_NUMBERS = ("effective_bits", *_MEASURED[1:])


def row(record: Record) -> dict[str, Any]:
    """Flatten a record into one row of JSON types; see docs/reports.md for the columns.

    Every column of `columns()` is present; a missing, infinite or NaN figure is None. Metrics beyond the
    usual ones follow under their own names, with `_lo` and `_hi` where they have an interval.

    Raises:
        ValueError: a metric is called like a column that is not a metric.
    """
    flat: dict[str, Any] = {}
    for part, names in ((record.identity, IDENTITY), (record.result, _RESULT), (record.measured, _MEASURED)):
        flat |= {name: finite(getattr(part, name)) for name in names}
    metrics = record.result.metrics
    for name in METRICS_WITH_INTERVAL:
        flat |= _metric_columns(name, metrics.get(name, Metric(None)), interval=True)
    for name in METRICS_WITHOUT_INTERVAL:
        flat |= _metric_columns(name, metrics.get(name, Metric(None)), interval=False)
    for name in sorted(set(metrics) - {*METRICS_WITH_INTERVAL, *METRICS_WITHOUT_INTERVAL}):
        extra = _metric_columns(name, metrics[name], interval=metrics[name].lo is not None)
        if clash := flat.keys() & extra.keys() | extra.keys() & {"notes"}:
            raise ValueError(
                f"cell {record.identity.cell}: a metric is called like the column {min(clash)!r:.60}"
            )
        flat |= extra
    flat["notes"] = {name: metric.note for name, metric in metrics.items() if metric.note is not None}
    return flat


def _metric_columns(name: str, metric: Metric, *, interval: bool) -> dict[str, float | None]:
    """Return the columns of one metric."""
    columns = {name: finite(metric.value)}
    if interval:
        columns |= {f"{name}_lo": finite(metric.lo), f"{name}_hi": finite(metric.hi)}
    return columns


def columns() -> list[str]:
    """Return the names of the columns every row has, in the order of `row`."""
    with_interval = [name + end for name in METRICS_WITH_INTERVAL for end in ("", "_lo", "_hi")]
    return [*IDENTITY, *_RESULT, *_MEASURED, *with_interval, *METRICS_WITHOUT_INTERVAL, "notes"]


def group_key(record: Record) -> tuple[str, str, str]:
    """Return what records must share to stand in one table: model, prompt set, device kind."""
    return record.identity.model, record.identity.dataset, record.identity.device


def sort_records(records: Iterable[Record]) -> list[Record]:
    """Order records by model (then prompt set and device), reference first, then by effective bits.

    Effective bits, not nominal ones: methods at equal nominal bits store different amounts. Cells that failed
    before their size was known come last in their group.
    """
    return sorted(records, key=_sort_key)


def _sort_key(record: Record) -> tuple[Any, ...]:
    identity = record.identity
    bits = finite(record.result.effective_bits)
    return (
        *group_key(record),
        identity.method != REFERENCE,
        float("inf") if bits is None else bits,
        identity.wbits,
        identity.abits,
        identity.method,
        identity.variant,
        identity.cell,
    )


def mark_twins(flats: Iterable[dict[str, Any]]) -> None:
    """Give rows that go by the same name and width a field `twin`, the start of their key.

    Their cells differ in what is no setting: the sources, the libraries or the model's weights at the time.
    """
    by_name: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for flat in flats:
        by_name.setdefault(tuple(flat[key] for key in _NAME), []).append(flat)
    for same in by_name.values():
        for flat in same if len(same) > 1 else ():
            flat["twin"] = flat["cell"][:8]


def grouped(records: Iterable[Record]) -> dict[tuple[str, str, str], list[Record]]:
    """Return sorted records by their `group_key`, in the order of tables."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in sort_records(records):
        groups.setdefault(group_key(record), []).append(record)
    return groups


def load(run: str | PathLike[str]) -> pd.DataFrame:
    """Read a run folder into a data frame, one row per finished cell, in the order of tables.

    Args:
        run: the run folder, or a file of records in JSON lines.

    Returns:
        A frame with the columns of `columns()` (and of further metrics): counts and bytes as `Int64`, figures
        as `float64` with NaN for what is missing, `config` and `notes` as dictionaries, the rest as strings.

    Raises:
        ValueError: the folder is no run, or a record in it is damaged.
    """
    import pandas as pd  # here, because every other use of this module does without its import time

    rows = [row(record) for record in sort_records(read_records(Path(run)))]
    extra = dict.fromkeys(name for flat in rows for name in flat if name not in columns())
    frame = pd.DataFrame(rows, columns=[*columns(), *extra])
    metrics = [
        name for name in columns() if name.startswith((*METRICS_WITH_INTERVAL, *METRICS_WITHOUT_INTERVAL))
    ]
    kinds = dict.fromkeys(_INTEGERS, "Int64") | dict.fromkeys((*_NUMBERS, *metrics, *extra), "float64")
    return frame.astype(kinds)
