"""Writes the pictures of a run: a contact sheet and a Pareto plot per model."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.reports.contact import contact_sheet
from harness.reports.pareto import pareto_figure
from harness.reports.record import Record
from harness.reports.rows import grouped


def write_pictures(
    run_folder: Path, records: Sequence[Record], captions: Mapping[str, Sequence[str]] | None = None
) -> list[Path]:
    """Write `contact-MODEL.png` and `pareto-MODEL.png` into the run folder.

    When a model ran on several prompt sets or devices, their names follow the model's. A picture without
    anything to show (no images, no figures) is not written. Files are replaced atomically.

    Args:
        run_folder: holds `cells/KEY/blocks/NNNN/MM.png`.
        records: cells in any order; failed ones are shown as such.
        captions: per prompt set, the texts of its first prompts in order; without them columns are numbered.

    Returns:
        The files written.

    Raises:
        ValueError: an image cannot be read, or a cell's key is no folder name.
    """
    groups = grouped(records)
    models = [key[0] for key in groups]
    written: list[Path] = []
    for (model, dataset, device), group in groups.items():
        names = (model,) if models.count(model) == 1 else (model, dataset, device)
        stem = "-".join(map(_file_name, names))
        identity = group[0].identity
        counts = sorted({record.result.n for record in group} - {0}) or [0]
        title = " · ".join((*names, f"N = {', '.join(map(str, counts))}"))
        title += f" · protocol {identity.protocol} ({identity.protocol_hash[:8]})"
        sheet = contact_sheet(run_folder, group, (captions or {}).get(dataset, ()), title)
        if sheet is not None:
            written.append(_replace(run_folder / f"contact-{stem}.png", sheet.save))
        figure = pareto_figure(group, f"{title} · bars: 95 % intervals · numbers: weight bits")
        if figure is not None:
            written.append(_replace(run_folder / f"pareto-{stem}.png", figure.savefig))
    return written


def _file_name(name: str) -> str:
    """Return `name` as part of a file name; a name that had to be changed stays distinct by a digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:80]
    return (
        plain if plain == name else f"{plain}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"
    )


def _replace(path: Path, save: Callable[..., object]) -> Path:
    """Save beside `path` and rename, so that a reader never meets half a picture."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save(beside, format="png")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path
