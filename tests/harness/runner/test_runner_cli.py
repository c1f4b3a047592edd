"""The command line: help without heavy imports, and one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from harness.cli import call
from harness.store import RunStore


@pytest.mark.parametrize("command", ["import harness", "import harness.cli", "HELP"])
def test_import_and_help_touch_nothing_heavy(command):
    code = command if command != "HELP" else "from harness.cli import call; assert call(['--help']) == 0"
    heavy = "{'torch', 'diffusers', 'transformers', 'pandas', 'numpy', 'matplotlib', 'scipy'}"
    code += f"\nimport sys; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


MISTAKES = {
    "unknown model": (["--models", "toy-c"], "unknown model 'toy-c'; did you mean toy-"),
    "unknown method": (["--methods", "fin"], "unknown method 'fin'; did you mean fine"),
    "unknown dataset": (["--dataset", "scene"], "unknown dataset 'scene'; did you mean scenes"),
    "unknown protocol": (["--protocol", "scenes"], "unknown protocol 'scenes'"),
    "unknown device": (["--device", "gpu"], "unknown device 'gpu'"),
    "absent device": (["--device", "cuda"], "there is none"),
    "no prompts": (["--prompts", "0"], "--prompts 0"),
    "negative prompts": (["--prompts", "-3"], "--prompts -3"),
    "prompts no number": (["--prompts", "many"], "--prompts"),
    "too many prompts": (["--dataset", "few", "--prompts", "21"], "few has 20 prompts, not 21"),
    "no workers": (["--workers", "0"], "--workers 0"),
    "bits": (["--bits", "9"], "bits '9'"),
    "bits no number": (["--bits", "two"], "bits 'two' is not a number"),
    "act bits": (["--act-bits", "9"], "--act-bits 9"),
    "both act bits": (["--bits", "w4a4", "--act-bits", "8"], "both set the activation bits"),
    "fixed seed": (["--protocol", "scenes-pinned", "--seed", "1"], "fixes its seed"),
    "set without value": (["--set", "fine.group"], "is not METHOD.KEY=VALUE"),
    "set of another method": (["--methods", "fine", "--set", "weighty.group=3"], "weighty is not among"),
    "set of no method": (["--set", "fin.group=3"], "unknown method 'fin'"),
    "set of no key": (["--methods", "fine", "--set", "fine.groop=3"], "did you mean group"),
    "data path of nothing": (["--data-path", "x=y"], "unknown --data-path name 'x'"),
    "data path without name": (["--data-path", "y"], "is not NAME=PATH"),
    "data path refused": (["--data-path", "scenes=/tmp"], "takes no path"),
    "data path missing": (["--dataset", "files"], "give --data-path files=PATH"),
    "data path not there": (["--dataset", "files", "--data-path", "files=/none"], "/none does not exist"),
    "model path not there": (["--model-path", "toy-a=/none"], "/none is not a folder"),
    "model path of nothing": (["--model-path", "toy-z=/tmp"], "unknown model 'toy-z'"),
    "model path of another": (["--models", "toy-a", "--model-path", "toy-b=/tmp"], "toy-b is not among"),
    "no timeout": (["--timeout", "0"], "--timeout 0"),
    "unknown option": (["--promts", "3"], "--promts"),
    "stray argument": (["extra"], "extra"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_code_2(toy, capsys, name):
    arguments, message = MISTAKES[name]
    assert call(["run", "--out", str(toy.out), *arguments]) == 2
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert err.startswith("harness: ")
    assert message in err
    assert not toy.out.exists(), "a refused request leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "model"], "did you mean models"),
        (["report", "/nowhere"], "does not exist"),
        (["show", "/nowhere", "x"], "does not exist"),
        (["show", "/usr", "x"], "is not a run folder"),
        (["report", "/nowhere", "--format", "jsn"], "did you mean json"),
        (["rune"], "rune"),
    ],
)
def test_mistakes_of_other_commands(capsys, arguments, message):
    assert call(arguments) == 2
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert message in err


ONE = ["--models", "toy-a", "--methods", "fine", "--bits", "4", "--prompts", "4"]


def test_run_show_and_report(toy, capsys):
    assert call(["run", *ONE, "--out", str(toy.out)]) == 0
    key = toy.cell("fine").name
    capsys.readouterr()
    assert call(["show", str(toy.out), key[:6]]) == 0
    shown = capsys.readouterr().out
    for text in ('method: "fine"', 'state: "ok"', "effective_bits: 4.5", "quantizing with fine", "step_ms:"):
        assert text in shown
    assert "kernels: gemv 1, int8 2" in shown.splitlines()
    assert call(["show", str(toy.out), "zzz"]) == 2
    assert "unknown cell 'zzz'" in capsys.readouterr().err
    assert call(["show", str(toy.out), ""]) == 2
    assert "ambiguous" in capsys.readouterr().err

    assert call(["report", str(toy.out), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["method"]: row["n"] for row in rows} == {"reference": 4, "fine": 4}
    target = toy.out.parent / "table.csv"
    assert call(["report", str(toy.out), "--format", "csv", "-o", str(target)]) == 0
    assert len(target.read_text().splitlines()) == 3
    assert call(["report", str(toy.out), "-o", str(toy.out / "no" / "folder.txt")]) == 2
    (toy.cell("fine") / "record.json").write_text("{")
    capsys.readouterr()
    assert call(["report", str(toy.out)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_failed_cell_is_code_1_and_another_configuration_code_2(toy, capsys):
    assert call(["run", *ONE[:2], "--methods", "raises", *ONE[4:], "--out", str(toy.out)]) == 1
    capsys.readouterr()
    assert call(["run", *ONE, "--out", str(toy.out), "--seed", "5"]) == 2
    assert "give another --out" in capsys.readouterr().err
    (toy.steer / "mine").mkdir()
    (toy.steer / "mine" / "thesis").touch()
    assert call(["run", *ONE, "--out", str(toy.steer / "mine")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_a_dry_run_writes_nothing_and_shows_what_is_stored(toy, capsys):
    assert call(["run", *ONE, "--out", str(toy.out), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert not toy.out.exists()
    assert out.count("missing") == 2
    assert "disk about" in out
    call(["run", *ONE, "--out", str(toy.out)])
    capsys.readouterr()
    call(["run", *ONE, "--prompts", "20", "--out", str(toy.out), "--dry-run"])
    out = capsys.readouterr().out
    assert out.count("partial") == 2
    assert out.count("1/2") == 2


def test_the_run_folder_is_named_by_the_protocol(toy, capsys, monkeypatch):
    monkeypatch.chdir(toy.steer)
    assert call(["run", *ONE]) == 0
    (folder,) = (toy.steer / "runs").iterdir()
    header = json.loads((folder / "run.json").read_text())
    assert folder.name == f"scenes-default-{header['hash']}"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("out", ["file", "file/inside", "x" * 300])
def test_an_impossible_run_folder_is_one_line(toy, capsys, monkeypatch, out, dry):
    monkeypatch.chdir(toy.steer)
    (toy.steer / "file").write_text("mine")
    code = call(["run", *ONE, "--out", out, *dry])
    assert (toy.steer / "file").read_text() == "mine"
    if out != "file/inside" or not dry:
        assert code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_show_prints_the_layers_of_an_undamaged_checkpoint_only(tmp_path, capsys):
    store = RunStore(tmp_path)
    store.claim({"name": "p", "seed": 0}, "hash")
    files = store.cell("key")
    layer = {"name": "blocks.0.proj", "role": "proj.in", "shape": [4, 8], "w_bits": 3, "a_bits": 8}
    ledger = {"rows": [{**layer, "mean_bits": 3.0, "bytes": {"codes": 12, "zeros": 0}}]}
    files.write_checkpoint(lambda to: (to / "ledger.json").write_text(json.dumps(ledger)), lambda: {})
    files.write_record({"measured": {"roads": {"blocks.0.proj": "expand16"}}}, "source")
    assert call(["show", str(tmp_path), "k"]) == 0
    line = "  blocks.0.proj (proj.in, 4x8): W3A8, mean 3 bits; bytes: codes 12; kernels: expand16"
    assert line in capsys.readouterr().out.splitlines()
    (files.checkpoint / "ledger.json").write_text("{}")
    assert call(["show", str(tmp_path), "k"]) == 0
    assert "layers:" not in capsys.readouterr().out


def test_no_arguments_print_the_help_and_are_a_mistake(capsys):
    assert call([]) == 2
    assert "Commands:" in capsys.readouterr().out.splitlines()


def test_a_reconstruction_is_said_once(capsys):
    assert call(["list", "methods"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mpqdmv2")]
    assert [line.count("reconstruction") for line in lines] == [1]


def test_lists_name_what_there_is(capsys):
    for kind, name in (("models", "tiny-dit"), ("datasets", "scenes"), ("metrics", "psnr")):
        assert call(["list", kind, "--json"]) == 0
        assert name in {row["name"] for row in json.loads(capsys.readouterr().out)}
        assert call(["list", kind]) == 0
        assert name in capsys.readouterr().out


def test_offline_reaches_the_libraries(toy, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    call(["run", *ONE, "--out", str(toy.out), "--offline", "--dry-run"])
    assert os.environ["HF_HUB_OFFLINE"] == "1"
