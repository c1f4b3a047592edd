import json

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


def test_kernels_are_checked_where_they_can_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from harness.conformance import cases, parity

    if not torch.cuda.is_available():
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        assert call(["doctor", "--gpu"]) == 2
        assert "sees no CUDA device" in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # The default is bound when the function is defined.
    monkeypatch.setattr(parity.check_parity, "__defaults__", (cases.CASES[:2],))
    assert call(["doctor", "--gpu"]) == 0
    assert "2 of 2 layers agree, 0 differ" in capsys.readouterr().out
    assert call(["doctor", "--gpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["ok"] for one in report["kernels"]] == [True, True]
    assert all(one["error"] < report["tolerance"] for one in report["kernels"])


def test_kernels_that_differ_are_exit_code_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.conformance import parity

    def wrong(_device: str) -> list[parity.Parity]:
        return [
            parity.Parity("linear w4", False, "int8", float("nan"), 0.5, "3 of 9 values were not written")
        ]

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(parity, "check_parity", wrong)
    assert call(["doctor", "--gpu"]) == 1
    text = capsys.readouterr().out
    assert "linear w4: int8, nan, 0.5, differs: 3 of 9 values were not written" in text
    assert call(["doctor", "--gpu", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["kernels"][0]["error"] is None
