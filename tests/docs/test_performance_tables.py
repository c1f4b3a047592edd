"""The tables in docs/performance.md say what the committed results say."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.bench import report
from harness.bench.kernels import Row
from harness.bench.shapes import FLUX, MODULATION
from harness.cli import call

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = sorted((DOCS / "benchmarks").glob("*.json"))


@pytest.mark.parametrize("result", RESULTS, ids=lambda path: path.stem)
def test_the_document_shows_the_committed_result(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["bench", "table", str(result), "--check", str(DOCS / "performance.md")]) == 0, (
        capsys.readouterr().out
    )


def test_every_table_of_a_whole_run_has_its_place_in_the_document(tmp_path: Path) -> None:
    rows = [
        Row(shape.name, count, shape.k, shape.n, "packed", "w4a4", launch, ms=1.0, ratio=1.0)
        for shape, count in (*((one, 4608) for one in FLUX), (MODULATION[0], 1))
        for launch in ("eager", "graph", "compiled")
    ]
    result, document = tmp_path / "r.json", tmp_path / "performance.md"
    report.merge(result, report.SECTION, {"rows": report.rows_json(rows)}, {"gemv_w4_m1": 1.0})
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    document.write_text(text, encoding="utf-8")
    assert call(["bench", "table", str(result), "-o", str(document)]) == 0
    filled = document.read_text(encoding="utf-8")
    assert filled.count("\n| qkv 3072 → 9216 ") == 3
    assert filled.count("\n| modulation 3072 → 18432 ") == 1
    assert "| gemv_w4_m1 " in filled
