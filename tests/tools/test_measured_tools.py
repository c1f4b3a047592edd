"""The tools behind the measured tables of the methods' pages."""

from __future__ import annotations

import re
from pathlib import Path

import layer_errors
import numpy as np
import paired_differences
import pytest
from scipy import stats

from harness.reports.record import read_records

RECORDS = Path(__file__).parents[2] / "docs" / "results" / "default" / "records.jsonl"


def test_a_difference_is_that_of_a_paired_t_test():
    records = read_records(RECORDS)
    found = paired_differences.differences(records, "ptq", "default", "psnr")
    assert all(r.identity.method not in {"ptq", "reference"} for r, _ in found)
    chosen = next((r, i) for r, i in found if (r.identity.method, r.identity.wbits) == ("svdquant", 2))
    record, interval = chosen
    over = next(
        r
        for r in records
        if (r.identity.method, r.identity.model, r.identity.wbits) == ("ptq", record.identity.model, 2)
    )
    pairs = [np.array(r.result.per_prompt["psnr"]) for r in (record, over)]
    test = stats.ttest_rel(*pairs)
    expected = test.confidence_interval(0.95)
    assert interval.value == pytest.approx(float((pairs[0] - pairs[1]).mean()))
    assert (interval.lo, interval.hi) == pytest.approx((expected.low, expected.high))
    with pytest.raises(ValueError, match="no cell"):
        paired_differences.differences(records, "ptq", "range=none", "psnr")


def test_layers_err_less_at_more_bits(monkeypatch, capsys):
    asked = "--models tiny-dit --methods ptq:ranges --bits w4a8 --set ptq.group=64"
    monkeypatch.setattr(layer_errors, "PROMPTS", 2)
    monkeypatch.setattr("sys.argv", ["layer_errors.py", *asked.split()])
    layer_errors.main()
    lines = re.findall(
        r"\| tiny-dit \| W4A8 \| ptq (\S+) \| ([\d.]+) \| ([\d.]+) \| (\S+) \|", capsys.readouterr().out
    )
    errors = {name: float(error) for name, error, _, _ in lines}
    assert all(0 < error < 1 for error in errors.values())
    assert "group=64,range=minmax" in errors
    assert errors["group=64"] < errors["group=64,range=minmax"]
    assert next(float(ratio) for _, _, ratio, _ in lines) == 1.0
