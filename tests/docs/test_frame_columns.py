"""The data frame's columns are documented, and the documented example runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import harness.reports
from harness.metrics import METRICS
from harness.reports.rows import columns

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "docs" / "results" / "default" / "records.jsonl"


def test_every_column_is_described() -> None:
    text = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`([a-z_0-9]+)`", text))
    frame = harness.reports.load(RECORDS)
    ends = {f"{name}{end}" for name in METRICS for end in ("_lo", "_hi")}
    assert {*columns(), *METRICS, *frame.columns} - ends <= described


def test_the_example_draws_its_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    code, replaced = re.subn(r'load\("[^"]+"\)', f"load({str(RECORDS)!r})", found[1])
    assert replaced == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = {}
    exec(compile(code, "tables.md", "exec"), names)
    names["plt"].close("all")
    with Image.open(tmp_path / "psnr.png") as image:
        assert len(set(image.convert("RGB").resize((80, 60)).getdata())) > 50
