"""Tables in documents say what the committed records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import call

ROOT = Path(__file__).parents[2]
DEFAULT = ROOT / "docs" / "results" / "default"


def test_the_readme_shows_the_committed_records(capsys: pytest.CaptureFixture[str]) -> None:
    records, spec = DEFAULT / "records.jsonl", DEFAULT / "readme.yaml"
    code = call(["report", str(records), "--table", str(spec), "--check", str(ROOT / "README.md")])
    assert code == 0, capsys.readouterr().out


def test_the_committed_table_shows_the_committed_records(capsys: pytest.CaptureFixture[str]) -> None:
    code = call(["report", str(DEFAULT / "records.jsonl"), "--check", str(DEFAULT / "table.md")])
    assert code == 0, capsys.readouterr().out
