"""Protocols as data: hashes, what they say of a model, and the plan they lead to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli import call
from harness.datasets import registry
from harness.datasets.contract import Prompt
from harness.datasets.leaks import coco_number, described_images, overlap
from harness.project import effective_card
from harness.prompting import calibration_prompts, evaluation_prompts
from harness.protocols import EffectiveProtocol, ModelSettings, for_model, names, settle

WANTED = ("scenes-default", "svdquant-2024", "mlperf-sdxl", "mpqdm-sd14-coco10k", "adm-50k")


def test_the_protocols_are_there_and_differ() -> None:
    assert set(WANTED) <= set(names())
    assert len({settle(name, None).hash for name in names()}) == len(names())


def test_the_hash_of_a_published_table_stays() -> None:
    assert settle("scenes-default", None).hash == "cb51af0ee7e5"  # docs/results/default


def test_everything_that_decides_is_hashed_and_nothing_else() -> None:
    found = settle("svdquant-2024", None)
    changed = {
        "seeds": "sha256", "calibration_dataset": None, "policy": "harness", "block": 2, "models": {},
        "calibration_prompts": 64, "selection": "nesting order",
    }  # fmt: skip
    hashes = {
        EffectiveProtocol(replace(found.base, **{key: value}), found.seed).hash
        for key, value in changed.items()
    }
    assert len(hashes | {found.hash}) == len(changed) + 1
    said = replace(found.base, summary="x", dataset="sdci", published_n=1, source="y")
    assert EffectiveProtocol(said, found.seed).hash == found.hash


def test_a_model_gets_its_own_settings_in_the_place_of_the_general_ones() -> None:
    general = settle("scenes-default", None)
    base = replace(
        general.base, steps=7, models={"tiny-dit": ModelSettings("float16", guidance=1.5, height=32)}
    )
    hashed = EffectiveProtocol(base, 0).to_json()
    ours, other = for_model(hashed, "tiny-dit"), for_model(hashed, "tiny-unet")
    assert (ours["dtype"], ours["steps"], ours["guidance"]) == ("float16", 7, 1.5)
    assert (other["dtype"], other["steps"], other["guidance"]) == ("float32", 7, None)
    card = effective_card("tiny-dit", ours)
    assert (card.sampling.steps, card.sampling.guidance) == (7, 1.5)
    assert (card.sampling.height, card.sampling.width) == (32, 64)
    assert effective_card("tiny-unet", other).sampling.height == 64


def test_a_negative_prompt_joins_the_models_own_arguments() -> None:
    protocol = {"steps": None, "guidance": None, "negative_prompt": "blurry"}
    plain = effective_card("tiny-dit", protocol | {"negative_prompt": None}).sampling.call
    assert effective_card("tiny-dit", protocol).sampling.call == {**plain, "negative_prompt": "blurry"}


def test_overlap_counts_captions_and_images() -> None:
    calibration = [Prompt("0", "A Dog\nruns"), Prompt("1", "a cat"), Prompt("2", "seen nowhere")]
    evaluation = [
        Prompt("COCO_val2014_000000000007", "a  dog RUNS"),
        Prompt("COCO_val2014_000000000008", "another dog"),
        Prompt("COCO_val2014_000000000009", "a bird"),
    ]
    plain = overlap(calibration, evaluation)
    assert (plain.calibration, plain.evaluation, plain.prompts, plain.images) == (3, 3, 1, None)
    assert plain.ids == (evaluation[0].id,)
    leak = overlap(calibration, evaluation, {"a cat": {8, 70}, "a bird": {9}})
    assert (leak.prompts, leak.images, leak.ids) == (1, 1, (evaluation[0].id, evaluation[1].id))
    assert [coco_number(name) for name in ("000000000008", "COCO_train2014_000000000008", "8")] == [
        8,
        8,
        None,
    ]


CAPTIONS = {
    "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(12)],
    "annotations": [{"image_id": i, "id": i, "caption": f"caption {i}"} for i in range(12)],
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    coco, qdiff = tmp_path / "captions.json", tmp_path / "qdiff.yaml"
    coco.write_text(json.dumps(CAPTIONS))
    lines = [f"'{i:04d}': Caption {i}" for i in range(6)] + [f"'{i:04d}': other {i}" for i in range(6, 140)]
    qdiff.write_text("\n".join(lines) + "\n")
    return str(coco), str(qdiff)


def test_described_images(files: tuple[str, str]) -> None:
    assert described_images(Path(files[0]))["caption 3"] == {3}


def test_leaks_command(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    coco, qdiff = files
    assert call(["leaks", f"qdiff={qdiff}", f"coco={coco}", "--images", coco]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == (
        "6 of 12 evaluation prompts are among the 140 calibrated on, and 6 are of images described there"
    )
    assert len(out) == 7


def test_prompts_command(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["prompts", f"coco={files[0]}", "--protocol", "svdquant-2024", "-n", "12"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "coco: 12 prompts, 12 different texts; 12 images with 12 captions"
    assert len(out) == 14
    assert call(["prompts", f"coco={files[0]}", "-n", "2", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["caption 0", "caption 1"]


def test_protocol_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["protocol", "show", "mlperf-sdxl", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["hash"] == settle("mlperf-sdxl", None).hash
    assert shown["models"]["sdxl"]["guidance"] == 8.0
    assert call(["protocol", "diff", "scenes-default", "scenes-pinned"]) == 0
    ours, theirs = settle("scenes-default", None), settle("scenes-pinned", None)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"hash: {ours.hash} | {theirs.hash}", f"seed: 0 | {theirs.seed}"]
    assert call(["protocol", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(names())
    assert call(["protocol", "show", "svdquant"]) == 2
    assert "did you mean svdquant-2024" in capsys.readouterr().err


def test_a_dry_run_on_a_file_of_captions(
    files: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "nothing"))
    coco, qdiff = files
    common = [
        "run",
        "--dry-run",
        "--models",
        "tiny-dit",
        "--bits",
        "4",
        "--prompts",
        "12",
        "--dataset",
        "coco",
    ]
    common += ["--data-path", f"coco={coco}", "--protocol", "svdquant-2024"]
    assert call([*common, "--methods", "nf4"]) == 0
    assert "calibration leak" not in capsys.readouterr().out
    assert call([*common, "--methods", "svdquant"]) == 2
    assert "give --data-path qdiff=PATH" in capsys.readouterr().err
    assert call([*common, "--methods", "svdquant", "--data-path", f"qdiff={qdiff}"]) == 0
    out = capsys.readouterr().out
    assert "evaluation prompts are among the 128 calibrated on (coco)" in out
    assert call([*common, "--methods", "nf4", "--prompts", "13"]) == 2
    assert "coco has 12 prompts, not 13" in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["captions.json", "qdiff.yaml"]


def test_another_calibration_file_makes_another_cell(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, qdiff = files

    def key_of(calibration: str) -> str:
        asked = ["run", "--dry-run", "--models", "tiny-dit", "--methods", "svdquant", "--bits", "4"]
        asked += ["--prompts", "12", "--dataset", "coco", "--protocol", "svdquant-2024"]
        paths = ["--data-path", f"coco={coco}", "--data-path", f"qdiff={calibration}"]
        assert call([*asked, *paths, "--out", str(tmp_path / "run")]) == 0
        return next(line.split()[0] for line in capsys.readouterr().out.splitlines() if " svdquant " in line)

    other = tmp_path / "other.yaml"
    text = Path(qdiff).read_text(encoding="utf-8")
    other.write_text(text + "\n", encoding="utf-8")
    assert key_of(qdiff) == key_of(qdiff) != key_of(str(other))


def test_calibrating_on_the_evaluated_set_takes_other_prompts() -> None:
    scenes = registry.get("scenes")
    protocol = settle("scenes-default", None)
    protocol = replace(protocol, base=replace(protocol.base, calibration_dataset="scenes"))
    evaluated = {prompt.id for prompt in evaluation_prompts(scenes, 64, protocol, None)}
    calibrated = calibration_prompts(scenes, "scenes", protocol, None)
    assert len(calibrated) == protocol.base.calibration_prompts
    assert evaluated.isdisjoint(prompt.id for prompt in calibrated)
