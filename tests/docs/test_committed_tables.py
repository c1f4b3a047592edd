"""Tables in documents say what the committed records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import call
from harness.reports.gate import sides

ROOT = Path(__file__).parents[2]
DEFAULT = ROOT / "docs" / "results" / "default"


def test_the_readme_shows_the_committed_records(capsys: pytest.CaptureFixture[str]) -> None:
    records, spec = DEFAULT / "records.jsonl", DEFAULT / "readme.yaml"
    code = call(["report", str(records), "--table", str(spec), "--check", str(ROOT / "README.md")])
    assert code == 0, capsys.readouterr().out


def test_the_committed_table_shows_the_committed_records(capsys: pytest.CaptureFixture[str]) -> None:
    code = call(["report", str(DEFAULT / "records.jsonl"), "--check", str(DEFAULT / "table.md")])
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize(("name", "document"), [("mpqdm", "mpqdm"), ("ablation-svdquant", "svdquant")])
def test_methods_show_the_committed_records(
    name: str, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records, spec = (ROOT / "docs" / "results" / f"{name}.{kind}" for kind in ("jsonl", "yaml"))
    text = ROOT / "docs" / "methods" / f"{document}.md"
    code = call(["report", str(records), "--table", str(spec), "--check", str(text)])
    assert code == 0, capsys.readouterr().out


def test_the_gates_baseline_is_the_committed_run_with_more_prompts() -> None:
    """What the gate compares a fresh run with are the figures of the table above, prompt by prompt."""
    gate = ROOT / "docs" / "results" / "gate"
    default, baseline, noise = (
        sides.by_name(sides.read_side(path), str(path))
        for path in (DEFAULT / "records.jsonl", gate / "baseline.jsonl", gate / "noise.jsonl")
    )
    assert baseline.keys() == noise.keys() <= default.keys()
    for name, record in baseline.items():
        shorter, longer = default[name].result.per_prompt, record.result.per_prompt
        for metric in shorter.keys() & longer.keys():
            assert longer[metric][: len(shorter[metric])] == shorter[metric], (str(name), metric)
        assert len(set(record.result.prompts)) == record.result.n == 256
        assert noise[name].result.prompts == record.result.prompts
