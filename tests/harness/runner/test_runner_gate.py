"""The gate on the toy world: what it generates, what it leaves alone, and how it ends."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from toy_world import ToySet

import harness.gate
from harness.cli import call
from harness.errors import UserError
from harness.files import write_json
from harness.gate import GateRequest, gate
from harness.metrics import MetricSpec
from harness.prompting import prompt_digest
from harness.reports.gate import sides
from harness.reports.record import Record
from harness.request import Request

SPEC = MetricSpec("brightness", "", "higher", False, 1, "of a toy")


@pytest.fixture
def toy_gate(toy, tmp_path, monkeypatch):
    """Return a function that gates the toy's run on a baseline, changed as asked."""
    monkeypatch.setattr(harness.gate, "METRICS", {"brightness": SPEC})
    toy.run(methods=("fine", "weighty"), prompts=64)
    records = sides.read_side(toy.out)
    toy.trace_file.write_text("")

    def run(change=lambda values: values, name="new", **options):
        path = tmp_path / "base.jsonl"
        data = [record.to_json() for record in records]
        for entry in data:
            if entry["identity"]["method"] == "fine":
                values = entry["result"]["per_prompt"]["brightness"]
                entry["result"]["per_prompt"]["brightness"] = [float(v) for v in change(np.array(values))]
        sides.write_side(path, [Record.from_json(entry) for entry in data])
        request = GateRequest(
            tmp_path / name, path, metrics=("brightness",), costs=False,
            options=Request(workers=2), **options,
        )  # fmt: skip
        found = gate(request, Console(file=io.StringIO()))
        return {one.name.method: one for one in found}

    return run


def noisy(sd):
    return lambda values: values + np.random.default_rng(0).normal(0, sd, len(values))


def test_an_absent_run_is_made_with_sixteen_prompts_and_passes(toy_gate, toy):
    found = toy_gate()
    assert {one.verdict for one in found.values()} == {"pass"}
    assert {one.comparisons[0].n for one in found.values()} == {16}
    assert len(toy.trace("generate")) == 3


def test_only_undecided_cells_are_escalated(toy_gate, toy):
    found = toy_gate(noisy(3.0), margins=("brightness=0.5",))
    assert (found["fine"].verdict, found["fine"].comparisons[0].n) == ("undecided", 64)
    assert found["weighty"].comparisons[0].n == 16
    digests = [line.split()[2] for line in toy.trace("generate")]
    # 64 prompts are four blocks: of the undecided cell and of its reference, not of the third.
    assert sorted(digests.count(digest) for digest in set(digests)) == [1, 4, 4]
    assert toy.trace("quantize", "toy-a", "weighty") == ["quantize toy-a weighty 4 16"]


def test_a_worse_run_fails_at_the_first_look(toy_gate, toy):
    found = toy_gate(lambda values: values + 20)
    assert (found["fine"].verdict, found["fine"].comparisons[0].n) == ("fail", 16)
    assert len(toy.trace("generate")) == 3


def test_a_stored_run_is_used_and_nothing_is_generated(toy_gate, toy):
    toy_gate(name="run")
    assert toy.trace() == []


def test_without_generating_what_is_missing_stays_undecided(toy_gate, toy, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        toy_gate(generate=False)
    toy.out = tmp_path / "half"
    toy.run(methods=("weighty",), prompts=16)
    toy.trace_file.write_text("")
    found = toy_gate(name="half", generate=False)
    assert {name: one.verdict for name, one in found.items()} == {
        "reference": "pass", "weighty": "pass", "fine": "undecided",
    }  # fmt: skip
    assert toy.trace() == []


def test_a_variant_is_made_with_its_settings(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(harness.gate, "METRICS", {"brightness": SPEC})
    toy.run(settings=("fine.group=32",), prompts=16)
    request = GateRequest(tmp_path / "new", toy.out, metrics=("brightness",), options=Request(workers=2))
    found = gate(request, Console(file=io.StringIO()))
    assert [(str(one.name), one.verdict) for one in found if one.name.method == "fine"] == [
        ("toy-a fine [group=32] W4A8 on scenes", "pass")
    ]


def test_another_block_size_is_another_protocol(toy, tmp_path):
    toy.run(block=4, prompts=8)
    header = json.loads((toy.out / "run.json").read_text())
    assert header["protocol"]["block"] == 4
    assert len(toy.trace("generate")) == 4
    first = sides.by_name(sides.read_side(toy.out), "run")
    toy.out = tmp_path / "other"
    toy.run(prompts=8)
    second = sides.by_name(sides.read_side(toy.out), "run")
    assert [r.result.per_prompt for r in first.values()] == [r.result.per_prompt for r in second.values()]
    assert call(["gate", str(toy.out), "--baseline", str(tmp_path / "run"), "--no-generate"]) == 2


def test_records_hold_the_prompts_and_others_are_refused_before_anything_is_made(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(harness.gate, "METRICS", {"brightness": SPEC})
    toy.run(prompts=16)
    records = sides.read_side(toy.out)
    assert [len(set(record.result.prompts)) for record in records] == [16, 16]
    assert records[0].result.prompts == records[1].result.prompts == [
        prompt_digest(prompt) for prompt in ToySet("scenes").prompts(16)
    ]  # fmt: skip
    data = [record.to_json() for record in records]
    for entry in data:
        entry["result"]["prompts"][3] = "0" * 12
    path = tmp_path / "others.jsonl"
    sides.write_side(path, [Record.from_json(entry) for entry in data])
    toy.trace_file.write_text("")
    for run in ("new", "run"):
        request = GateRequest(tmp_path / run, path, metrics=("brightness",), options=Request(workers=2))
        with pytest.raises(UserError, match=r"prompts here are others|made from other prompts"):
            gate(request, Console(file=io.StringIO()))
    assert toy.trace() == []


@pytest.mark.parametrize("block", [None, 0, True, "16"])
def test_a_run_folder_without_its_block_size_is_named(toy, tmp_path, capsys, block):
    toy.run(prompts=16)
    path = toy.out / "run.json"
    header = json.loads(path.read_text())
    header["protocol"] = {} if block is None else header["protocol"] | {"block": block}
    write_json(path, {key: value for key, value in header.items() if key != "sha256"})
    assert call(["gate", str(tmp_path / "new"), "--baseline", str(toy.out)]) == 2
    error = capsys.readouterr().err
    assert "run.json is damaged: its protocol has no block size" in error
    assert len(error.splitlines()) == 1


MISTAKES = {
    "no baseline": (["run"], "give --baseline RUN|FILE"),
    "unknown metric": (["run", "--baseline", "b", "--metrics", "psnrr"], "did you mean psnr"),
    "margin of nothing": (["run", "--baseline", "b", "--margin", "psn=1"], "did you mean psnr"),
    "margin no number": (["run", "--baseline", "b", "--margin", "psnr=x"], "is not METRIC=NUMBER"),
    "negative margin": (["run", "--baseline", "b", "--margin", "psnr=-1"], "is not METRIC=NUMBER"),
    "alpha": (["run", "--baseline", "b", "--alpha", "0.7"], "--alpha 0.7"),
    "latency": (["run", "--baseline", "b", "--latency-bound", "-1"], "--latency-bound -1"),
    "no such baseline": (["run", "--baseline", "/none"], "cannot read /none"),
    "half a benchmark": (["run", "--baseline", "b", "--benchmark", "x"], "belong together"),
    "no folder": (["run", "--baseline", "b", "--markdown", "none/x.md"], "none is not a folder"),
    "a folder": (["run", "--baseline", "b", "--junit", "."], "cannot write .: it is a folder"),
    "save nowhere": (["run", "--save", "none/x"], "none is not a folder"),
    "save nothing": (["/none", "--save", "x"], "cannot read /none"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_code_2(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[name]
    assert call(["gate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
