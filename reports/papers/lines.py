"""Short forms for writing down published tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.reports.tables.notes import DERIVED, SECOND_HAND
from harness.reports.tables.spec import ColumnSpec, Published, Where

__all__ = [
    "DERIVED",
    "LEADING",
    "MPQDM_CELLS",
    "SECOND_HAND",
    "cell",
    "figures",
    "own_prompt_set",
    "reference",
    "side_by_side",
]

MPQDM_CELLS: Where = {"method": ["reference", "ptq", "mpqdm", "mpqdmv2"]}
"""Conditions on the cells that MPQ-DM's tables show."""
LEADING = (
    ColumnSpec("model"),
    ColumnSpec("method"),
    ColumnSpec("bits"),
    ColumnSpec("source"),
    ColumnSpec("weight_bytes", heading="MB published", published="size"),
)
"""Columns with which MPQ-DM's tables begin."""


def figures(keys: Sequence[str], values: str, mark: str = "") -> dict[str, Published]:
    """Return published figures by key.

    Args:
        keys: the keys of the columns.
        values: as many figures between blanks, as printed (`.953` becomes `0.953`); `–` is one not given.
        mark: provenance of all of them, as in `Published`.
    """
    listed = zip(keys, values.split(), strict=True)
    return {
        key: Published(f"0{value}" if value.startswith(".") else value, mark)
        for key, value in listed
        if value != "–"
    }


def cell(model: str, method: str, wbits: int, abits: int, **more: Any) -> Where:
    """Return the conditions on the cell of a method with its default settings, at these widths."""
    return {"model": model, "method": method, "variant": "default", "wbits": wbits, "abits": abits} | more


def reference(model: str) -> Where:
    """Return the conditions on the unquantized cell of a model."""
    return {"model": model, "method": "reference"}


def side_by_side(
    names: Sequence[str], where: Where, span: str = "", prefix: str = ""
) -> tuple[ColumnSpec, ...]:
    """Return the columns of published figures and, after them, those of own figures.

    Args:
        names: the figures.
        where: the conditions on the own cells.
        span: what stands over the columns.
        prefix: what the keys of the published figures begin with.
    """
    published = [
        ColumnSpec(name, span=f"{span} published".lstrip(), published=prefix + name) for name in names
    ]
    return (*published, *(ColumnSpec(name, where, span=f"{span} own".lstrip()) for name in names))


def own_prompt_set() -> tuple[ColumnSpec, ...]:
    """Return the columns of cells run on the embedded prompt set; they are left out where there are none."""
    where = {"dataset": "scenes"}
    names = ("psnr", "lpips_scene", "prompt_accuracy", "fid")
    return tuple(ColumnSpec(name, where, span="Scenes own", optional=True) for name in names)
