"""Figures by the parts of a prompt set, against the formulas worked out by hand."""

import csv
import io
import json
import math

import pytest

from harness.cli import call
from harness.reports.record import Metric, Record
from harness.reports.tables import render_built
from harness.reports.tables.slices import of_slice, slice_table

SLICES = ["food", "art", "food", "food", "art"]
T_3 = 4.302652729749464
"""Student's 97.5 % point at two degrees of freedom."""


@pytest.fixture
def cells(record):
    def make(method, psnr, **changes):
        right = [1.0, 0.0, 1.0, 0.0, 1.0]
        changes = {"dataset": "mjhq", "n": 5, "slices": SLICES} | changes
        return record(method, per_prompt={"psnr": psnr, "prompt_accuracy": right}, **changes)

    return [make("nf4", [20.0, 30.0, 22.0, 24.0, None]), make("ptq", [10.0, 40.0, 10.0, 13.0, 44.0])]


def lines(document):
    keys = [column.key for column in document.sheets[0].columns]
    return [dict(zip(keys, entries, strict=True)) for entries in document.sheets[0].entries]


def test_means_and_intervals_are_those_of_the_slices_prompts(cells) -> None:
    found = of_slice(cells[0], "psnr", "food")
    assert found.value == pytest.approx(22)
    assert found.hi - found.value == pytest.approx(T_3 * 2 / math.sqrt(3))
    assert of_slice(cells[1], "psnr", "food").value == pytest.approx(11)
    assert of_slice(cells[1], "psnr", "all").value == pytest.approx(117 / 5)
    alone = of_slice(cells[0], "psnr", "art")  # the other prompt of the slice has no value
    assert (alone.value, alone.lo, alone.hi) == (30.0, None, None)
    share = of_slice(cells[0], "prompt_accuracy", "food")
    z2 = 1.959963984540054**2
    centre = (2 / 3 + z2 / 6) / (1 + z2 / 3)
    assert (share.lo + share.hi) / 2 == pytest.approx(centre)
    assert share.value == pytest.approx(2 / 3)


def test_slices_stand_in_order_with_their_numbers_and_all_at_the_end(cells) -> None:
    document = slice_table(cells)
    rows = [(line["dataset"].text, line["method"].text, line["n"].value) for line in lines(document)]
    assert rows == [
        ("art", "ptq", 2), ("art", "nf4", 2), ("food", "ptq", 3), ("food", "nf4", 3), ("all", "ptq", 5),
        ("all", "nf4", 5),
    ]  # fmt: skip
    assert document.sheets[0].rules == (2, 4)
    assert "N = 5 prompts" in document.sheets[0].caption
    assert "3f9a1c2b7d" in document.sheets[0].caption
    assert lines(document)[1]["psnr"].text == "30.00"


@pytest.mark.parametrize("fmt", ["markdown", "latex", "csv", "html", "typst"])
def test_every_format_prints_it(cells, fmt) -> None:
    text = render_built(slice_table(cells), fmt)
    assert "food" in text
    if fmt == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert float(rows[3]["PSNR ↑ (dB) hi"]) == pytest.approx(22 + T_3 * 2 / math.sqrt(3))


def test_what_cannot_be_split_is_refused(cells, record) -> None:
    with pytest.raises(ValueError, match="no cell has slices"):
        slice_table([record("ptq")])
    broken = record("ptq", dataset="mjhq", per_prompt={"psnr": [1.0]}, slices=SLICES)
    with pytest.raises(ValueError, match="differ in number"):
        slice_table([broken])
    other = record("ptq", dataset="mjhq", protocol_hash="0123abcd00", per_prompt={}, slices=SLICES)
    with pytest.raises(ValueError, match="different protocols"):
        slice_table([*cells, other])


def test_records_without_slices_stay_as_they_were(cells, record) -> None:
    plain = record("ptq").to_json()
    assert "slices" not in plain["result"]
    assert Record.from_json(plain).result.slices == []
    again = Record.from_json(json.loads(json.dumps(cells[0].to_json())))
    assert again.result.slices == SLICES
    assert again.result.metrics["kid"] == Metric(pytest.approx(cells[0].result.metrics["kid"].value))


def test_the_command_prints_it(cells, tmp_path, capsys) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps(cell.to_json()) + "\n" for cell in cells))
    assert call(["report", str(file), "--slices"]) == 0
    assert "| food" in capsys.readouterr().out
    out = tmp_path / "slices.csv"
    assert call(["report", str(file), "--slices", "-o", str(out)]) == 0
    assert out.read_text().startswith("table,Slice,Method,W/A,N,")
    assert call(["report", str(file), "--slices", "--format", "json"]) == 2
    assert "unknown format of a table 'json'" in capsys.readouterr().err
    assert call(["report", str(file), "--slices", "--table", "x.yaml"]) == 2
    assert "exclude each other" in capsys.readouterr().err
