"""The description of a table, in Python or YAML: which cells, which columns, what is ranked with what."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.reports.rows import columns as row_columns
from harness.reports.tables.figures import FIGURES
from harness.reports.validation import build

Where = dict[str, Any]
"""Conditions on rows: the name of a row's column -> the value it must have, or a list of such values."""

_STORED_BESIDE_BITS = ("effective_bits", "weight_bytes")
_LARGEST_SPEC = 1 << 20


@dataclass(frozen=True)
class ColumnSpec:
    """One column.

    Attributes:
        figure: what it shows: a name of `FIGURES`, or a further metric of the records.
        where: which cells it shows, where one row of the table is several cells (`{wbits: 2}`).
        heading: its heading; by default the figure's.
        span: what it has in common with its neighbours, over their headings.
        digits: decimals; by default the figure's.
        interval: whether `[lo, hi]` follows the figure.
        published: key of the published figures it shows instead of the records'; empty for the records'.
        optional: whether the column is left out when no row has a cell for it.
    """

    figure: str
    where: Where = field(default_factory=dict)
    heading: str | None = None
    span: str = ""
    digits: int | None = None
    interval: bool = False
    published: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Published:
    """A published figure, in the unit of its column.

    Attributes:
        text: the digits its source prints, with a leading zero.
        mark: `§` when it is known second-hand only, `¶` when derived by arithmetic from other published
            figures, empty when read at its source.
    """

    text: str
    mark: str = ""

    @property
    def value(self) -> float:
        """The figure as a number."""
        return float(self.text)


@dataclass(frozen=True)
class Line:
    """One row that a paper's table has, whether or not it was run.

    Attributes:
        label: the method as the table calls it.
        section: the model as the table calls it; rows of one section stand together.
        bits: the widths as the table prints them.
        where: which records fill it; empty when nothing can (a method that is not built here).
        published: figures by the key of their column.
        source: where the published figures of the row stand.
    """

    label: str
    section: str
    bits: str
    where: Where = field(default_factory=dict)
    published: dict[str, Published] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class TableSpec:
    """One table.

    Attributes:
        name: a word; the LaTeX label is made of it.
        caption: one sentence; N and the protocol's hash are added to it.
        columns: the columns. `bits` brings effective bits and MiB with it where they are not listed.
        where: which cells of the records stand in it.
        rows: what tells rows apart, names of row columns.
        split: one table for each value of these.
        compare: rows that agree in these are ranked against each other.
        notes: further footnotes.
        lines: the rows of a paper's table, in its order. Cells that fill none of them follow as rows of their
            own.
    """

    name: str
    caption: str
    columns: tuple[ColumnSpec, ...]
    where: Where = field(default_factory=dict)
    rows: tuple[str, ...] = ("model", "method", "variant", "wbits", "abits", "device")
    split: tuple[str, ...] = ("model",)
    compare: tuple[str, ...] = ("model", "wbits")
    notes: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()

    def __post_init__(self) -> None:
        """Check the names of row columns.

        Raises:
            ValueError: there are no columns, or a name is unknown; the nearest valid ones are named.
        """
        if not self.columns:
            raise ValueError(f"table {self.name!r:.60} has no columns")
        conditions = [self.where, *(column.where for column in self.columns)]
        for name in (*self.rows, *self.split, *self.compare, *(key for where in conditions for key in where)):
            if name not in row_columns():
                raise unknown_name("row column", name, row_columns())


def with_stored(columns: tuple[ColumnSpec, ...]) -> tuple[ColumnSpec, ...]:
    """Put effective bits and bytes beside nominal bits wherever the latter stand alone."""
    present = {column.figure for column in columns}
    missing = tuple(ColumnSpec(name) for name in _STORED_BESIDE_BITS if name not in present)
    at = next((index + 1 for index, column in enumerate(columns) if column.figure == "bits"), None)
    return columns if at is None else (*columns[:at], *missing, *columns[at:])


def unknown_name(kind: str, name: str, valid: list[str]) -> ValueError:
    """Build the error for an unknown name, naming the nearest valid ones."""
    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"valid: {', '.join(sorted(valid))}"
    return ValueError(f"unknown {kind} {name!r:.60}; {hint}")


def parse_spec(data: object) -> TableSpec:
    """Build a table from what YAML gives: the fields of `TableSpec`; a column may be just its figure's name.

    Raises:
        ValueError: one line naming the first field that is missing, unknown or of the wrong type.
    """
    if isinstance(data, dict) and isinstance(data.get("columns"), list):
        listed = [{"figure": item} if isinstance(item, str) else item for item in data["columns"]]
        data = data | {"columns": listed}
    return build(TableSpec, data, "table")


def load_spec(path: Path) -> TableSpec:
    """Read a table from a YAML file (the safe subset: no objects are built).

    Raises:
        ValueError: the file cannot be read, is no YAML, or does not describe a table; one line naming it.
    """
    try:
        if path.stat().st_size > _LARGEST_SPEC:
            raise ValueError(f"is larger than {_LARGEST_SPEC} bytes")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("aliases are not read: a few of them unfold to any size")
        return parse_spec(yaml.safe_load(text))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error or 'nested too deeply'}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def check_figures(spec: TableSpec, metrics: set[str]) -> None:
    """Check that every column shows something known.

    Args:
        spec: the table.
        metrics: names of the further metrics of the records.

    Raises:
        ValueError: a figure is neither in `FIGURES` nor among `metrics`; the nearest valid ones are named.
    """
    for column in spec.columns:
        if column.figure not in FIGURES and column.figure not in metrics:
            raise unknown_name("figure", column.figure, sorted({*FIGURES, *metrics}))
