import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cli import call
from harness.conformance.check import Check
from harness.metrics import METRICS


@pytest.fixture(autouse=True)
def empty_caches(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))


def with_checks(monkeypatch: pytest.MonkeyPatch, *values: tuple[float, float]) -> None:
    checks = tuple(Check(f"m{i}", "a source", lambda v=v: v) for i, v in enumerate(values))
    monkeypatch.setattr("harness.conformance.suite.CHECKS", checks)


def test_it_says_which_metric_needs_which_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["doctor", "--no-checks"]) == 0
    text = capsys.readouterr().out
    assert "torch 2" in text
    lines = {line.split()[0]: line for line in text.partition("metrics\n")[2].splitlines()}
    assert set(METRICS) <= set(lines)
    assert lines["psnr"].split() == ["psnr", "ready"]
    assert "vgg16-397923af.pth" in lines["lpips_vgg"]
    assert lines["fid"].split()[1] == "scenes"


def test_a_figure_that_differs_is_exit_code_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_checks(monkeypatch, (1.0, 1.0), (2.0, 3.0))
    assert call(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "found 2, expected 3" in text
    assert text.endswith("1 of 2 checks agree, 1 differ, 0 not run\n")
    with_checks(monkeypatch, (1.0, 1.0))
    assert call(["doctor"]) == 0


def test_json_holds_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with_checks(monkeypatch, (1.0, 1.0))
    assert call(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["checks"][0]["outcome"] == "ok"
    assert [row["name"] for row in report["metrics"]] == list(METRICS)
    assert report["environment"]["python"]


def test_a_wrong_path_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["doctor", "--data-path", "incepton=x"]) == 2
    assert "did you mean inception" in capsys.readouterr().err
    assert call(["doctor", "--data-path", "inception=nowhere.pth"]) == 2
    assert "nowhere.pth is not a file" in capsys.readouterr().err


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has a GPU."""
    import torch

    from harness.cli import doctor

    environment = {**doctor._environment(), "gpu": {"name": "Card", "memory_bytes": 2**30, "cuda": "13"}}
    monkeypatch.setattr(doctor, "_environment", lambda: environment)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_kernels_need_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(["doctor", "--gpu"]) == 2
    assert "sees no CUDA device" in capsys.readouterr().err


@pytest.mark.usefixtures("card")
def test_kernels_are_checked_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.conformance import cases, parity

    check, devices = parity.check_parity, []

    def on_the_cpu(device: str) -> Iterator[parity.Parity]:
        devices.append(device)
        return check("cpu", cases.CASES[:2])

    monkeypatch.setattr(parity, "check_parity", on_the_cpu)
    assert call(["doctor", "--gpu"]) == 0
    text = capsys.readouterr().out
    assert "gpu: Card, 1 GiB, CUDA 13" in text
    assert text.endswith("2 of 2 layers agree, 0 differ\n")
    assert call(["doctor", "--gpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["ok"] for one in report["kernels"]] == [True, True]
    assert all(one["error"] < report["tolerance"] for one in report["kernels"])
    assert devices == ["cuda", "cuda"]


@pytest.mark.usefixtures("card")
def test_kernels_that_differ_are_exit_code_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.conformance import parity

    def wrong(_device: str) -> list[parity.Parity]:
        return [
            parity.Parity("linear w4", False, "int8", float("nan"), 0.5, "3 of 9 values were not written")
        ]

    monkeypatch.setattr(parity, "check_parity", wrong)
    assert call(["doctor", "--gpu"]) == 1
    text = capsys.readouterr().out
    assert "linear w4: int8, nan, 0.5, differs: 3 of 9 values were not written" in text
    assert call(["doctor", "--gpu", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["kernels"][0]["error"] is None


def test_a_pickle_that_would_execute_is_damaged_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"weight": Payload()}))
    assert call(["doctor", "--no-checks", "--data-path", f"inception={evil}"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["fid"])
    assert "damaged" in line
    assert "could run code" in line
    assert not (tmp_path / "ran").exists()
