"""Everything a run lacks is said in one line before anything is loaded or downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import call
from harness.datasets.mjhq import MJHQ
from harness.plan import _image_stamps

PAPER = [
    "run", "--models", "flux.1-dev,pixart-sigma", "--dataset", "mjhq,sdci", "--protocol", "svdquant-2024",
    "--methods", "all", "--bits", "w4a4",
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HARNESS_DATA", "TORCH_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(tmp_path)

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a download was begun")

    monkeypatch.setattr("huggingface_hub.HfApi", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


@pytest.mark.parametrize("option", [["--offline"], ["--dry-run"], ["--offline", "--dry-run"]])
def test_the_papers_command_lists_what_it_lacks(option, capsys) -> None:
    assert call([*PAPER, *option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in (
        "flux.1-dev: model_index.json, scheduler/, text_encoder/, text_encoder_2/, tokenizer/, tokenizer_2/",
        "transformer/, vae/ of black-forest-labs/FLUX.1-dev@3de623fc; pixart-sigma: model_index.json",
        "prompts of mjhq: meta_data.json; prompts of sdci: sDCI.yaml; prompts of qdiff: qdiff.yaml",
        "for some figures only, the weights inception, lpips-alex, lpips-vgg, dinov2, clip, clip-336",
        "`harness fetch --protocol svdquant-2024 --models flux.1-dev,pixart-sigma`",
        "--model-path flux.1-dev=DIR --model-path pixart-sigma=DIR --data-path mjhq=PATH --data-path sdci=",
    ):
        assert part in line


def test_without_offline_models_may_come_from_the_hub_but_prompts_must_be_there(capsys) -> None:
    assert call(PAPER) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("harness: missing files: prompts of mjhq: meta_data.json;")
    assert "FLUX" not in line


def test_planning_downloads_nothing(capsys) -> None:
    assert call(["plan", "--models", "flux.1-dev", "--methods", "ptq", "--bits", "4"]) == 2
    assert "flux.1-dev: model_index.json" in capsys.readouterr().err


def test_a_converted_model_is_not_looked_for_on_the_hub(capsys) -> None:
    assert call(["run", "--models", "ldm-4-bedroom", "--methods", "ptq", "--offline"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ldm-4-bedroom's folder, which `harness convert` makes" in line
    assert "harness fetch" not in line


def test_a_calibration_file_may_be_given_where_no_method_reads_it(tmp_path, capsys) -> None:
    (tmp_path / "c.tsv").write_text("caption\tfile_name\na dog\ta.jpg\n")
    (tmp_path / "q.yaml").write_text("'0000': a cat\n")
    given = ["--data-path", f"coco={tmp_path / 'c.tsv'}", "--data-path", f"qdiff={tmp_path / 'q.yaml'}"]
    command = [
        "run",
        "--models",
        "tiny-dit",
        "--methods",
        "nf4",
        "--bits",
        "4",
        "--dry-run",
        "--prompts",
        "1",
    ]
    assert call([*command, "--protocol", "mlperf-sdxl", *given]) == 0
    assert "nf4" in capsys.readouterr().out
    assert call([*command, "--dataset", "coco", *given]) == 2  # scenes-default calibrates on no qdiff
    assert "qdiff is not among the datasets of this run" in capsys.readouterr().err


def test_figures_are_formed_anew_when_real_images_appear_or_change(tmp_path) -> None:
    entries = {f"id{i}": {"category": "food", "prompt": "a dish"} for i in range(3)}
    (tmp_path / "meta_data.json").write_text(json.dumps(entries))
    folder = tmp_path / "mjhq30k_imgs" / "food"
    folder.mkdir(parents=True)

    def stamps() -> dict[str, str]:
        prompts = {"mjhq": MJHQ.prompts(3, tmp_path)}
        return _image_stamps(2, prompts, {"mjhq": MJHQ}, {"mjhq": tmp_path})

    assert stamps() == {}
    (folder / "id0.jpg").write_bytes(b"1")
    one = stamps()
    assert set(one) == {"images of mjhq"}
    (folder / "id2.jpg").write_bytes(b"not among the prompts that count")
    assert stamps() == one
    (folder / "id1.jpg").write_bytes(b"2")
    two = stamps()
    assert two != one
    (folder / "id1.jpg").write_bytes(b"22")
    assert stamps() != two
