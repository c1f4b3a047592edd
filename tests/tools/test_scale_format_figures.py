"""The tool behind the figures of docs/numerics.md: means, worst layers and pairs by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scale_formats
import torch


def test_decibels_of_a_tenth() -> None:
    wanted = torch.tensor([3.0, -4.0])
    assert scale_formats.decibels(wanted, wanted * 0.9) == pytest.approx(20.0, abs=1e-5)


def test_a_row_holds_the_mean_and_what_the_worst_layer_loses() -> None:
    found = {
        "float": {"a": 10.0, "b": 20.0},
        "integer": {"a": 9.5, "b": 19.9},
        "e8m0": {"a": 9.0, "b": 20.5},
    }
    row = scale_formats.line("weights", found.__getitem__)
    assert row == "| weights | 2 | 15.00 | 0.30 (0.50) | 0.25 (1.00) |"


def test_images_are_compared_by_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def record(scales: str, wbits: int, psnr: list[float]) -> Any:
        identity = SimpleNamespace(
            method="svdquant", model="m", wbits=wbits, abits=4, config={"scales": scales}
        )
        return SimpleNamespace(identity=identity, result=SimpleNamespace(per_prompt={"psnr": psnr}))

    records = [
        record("float", 4, [20.0, 30.0, 40.0]),
        record("integer", 4, [19.0, 29.0, 39.0]),
        record("e8m0", 4, [18.0, 27.0, 36.0]),
        record("float", 2, [10.0, 11.0]),  # no others to compare with
    ]
    monkeypatch.setattr(scale_formats, "read_records", lambda run: records)
    scale_formats.images(Path("run"))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| m ")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "m W4A4"
    assert [cell.split()[0] for cell in cells[1:]] == ["30.00", "29.00", "27.00", "1.00", "3.00"]
    # t(0.975, 2) = 4.302653 times the standard error of 2, 3, 4, which is 1 / sqrt(3).
    assert cells[5] == "3.00 [0.52, 5.48]"
