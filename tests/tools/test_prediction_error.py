"""The tool behind the figures of docs/methods.md."""

from __future__ import annotations

import re

import prediction_error
import pytest


def test_the_prediction_nears_the_reference_with_the_bits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "--models tiny-dit --methods ptq --bits 2,8 --prompts 1 --set ptq.range=minmax"
    monkeypatch.setattr("sys.argv", ["prediction_error.py", *asked.split()])
    prediction_error.main()
    found = re.findall(r"\| tiny-dit W(\d) \| (-?[\d.]+) \(([\d.]+)\) \|", capsys.readouterr().out)
    (two, low, small), (eight, high, large) = ((int(w), float(db), float(bits)) for w, db, bits in found)
    assert (two, eight) == (2, 8)
    assert 2 < small < 3
    assert 8 < large < 9
    assert low < 15
    assert high > 30
