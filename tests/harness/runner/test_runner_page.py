"""`harness report RUN --format html`: what the command puts into the page."""

from __future__ import annotations

import json
import re

import pages
import pytest
from PIL import Image

from harness.cli import call
from harness.datasets import registry
from harness.files import write_json
from harness.reports.record import Identity, Measured, Metric, Record, Result

KEY = "ab" * 8


@pytest.fixture
def run(tmp_path):
    identity = Identity(
        cell=KEY, model="m", method="reference", variant="default", config={}, dataset="scenes", protocol="p",
        protocol_hash="0", seed=0, device="cpu", backend="reference", dtype="float32", wbits=16, abits=16,
    )  # fmt: skip
    result = Result("ok", "reference", 3, metrics={"prompt_accuracy": Metric(1.0)})
    cell = tmp_path / "run" / "cells" / KEY
    pages.write_images(cell, [pages.pixels(i) for i in range(3)])
    (cell / "record.json").write_text(json.dumps(Record(identity, result, Measured()).to_json()))
    header = {"schema": 1, "protocol": {"name": "p", "seed": 0, "block": 16}, "hash": "0"}
    write_json(tmp_path / "run" / "run.json", header)
    return tmp_path / "run"


def content(text):
    blocks = re.findall(r'<script type="application/json" id="[^"]*">(.*?)</script>', text)
    return [json.loads(block) for block in blocks]


def test_the_page_holds_images_prompts_and_protocol(run, tmp_path):
    page = tmp_path / "page.html"
    assert call(["report", str(run), "--format", "html", "-o", str(page)]) == 0
    head, detail = content(page.read_text(encoding="utf-8"))
    assert head["groups"][0]["captions"] == [prompt.text for prompt in registry.get("scenes").prompts(3)]
    assert head["protocol"]["block"] == 16
    assert sum(image is not None for image in detail["images"]) == 3


def test_a_damaged_image_is_one_line(run, tmp_path, capsys):
    image = next((run / "cells").rglob("01.png"))
    Image.new("RGB", (5000, 1)).save(image)
    assert call(["report", str(run), "--format", "html", "-o", str(tmp_path / "page.html")]) == 2
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert "01.png: 5000 x 1 pixels are too many" in err
    assert not (tmp_path / "page.html").exists()


def test_a_terminal_is_not_flooded(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert call(["report", str(run), "--format", "html"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "give -o page.html" in err
