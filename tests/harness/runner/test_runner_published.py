"""Quantize, generate, measure and report every published pipeline class, random weights, reduced size."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reduced
from PIL import Image
from rich.console import Console

import harness.run
from harness.models.registry import get
from harness.request import Request

METHOD = "ptq"
MODELS = [name for name in reduced.BUILD if name != "ldm-4-bedroom"]
PROMPTS = 2


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Path]:
    """One run over all classes: (model, method, dataset) -> folder of the cell."""
    root = tmp_path_factory.mktemp("published")
    for name in MODELS:
        reduced.save_reduced(name, root / name)
    out = root / "run"
    console = Console(file=io.StringIO(), width=200)
    request = Request(
        models=tuple(MODELS), methods=(METHOD,), bits="w4a8", datasets=("scenes", "classes"),
        prompts=PROMPTS, device="cpu", workers=2, out=out,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDUCED", str(root))
        patch.setattr(harness.run, "DEFAULT_WORLD", "reduced_world:WORLD")
        harness.run.run(request, console)
    found = {}
    for path in out.glob("cells/*/record.json"):
        identity = json.loads(path.read_text())["identity"]
        found[identity["model"], identity["method"], identity["dataset"]] = path.parent
    return found


def record(cell: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((cell / "record.json").read_text())
    return content


def dataset_of(model: str) -> str:
    return "scenes" if get(model).condition == "text" else "classes"


@pytest.mark.parametrize("model", MODELS)
def test_a_published_class_is_quantized_generated_measured_and_reported(
    cells: dict[tuple[str, str, str], Path], model: str
) -> None:
    dataset = dataset_of(model)
    reference, ours = cells[model, "reference", dataset], cells[model, METHOD, dataset]
    result, measured = record(ours)["result"], record(ours)["measured"]
    assert record(reference)["result"]["state"] == "ok", record(reference)["result"]["message"]
    assert result["state"] == "ok", result["message"]
    assert result["execution"] == "packed"
    assert 4 < result["effective_bits"] < 8
    assert result["weight_bytes"] < record(reference)["result"]["weight_bytes"]
    assert 5 < result["metrics"]["psnr"]["value"] < 60
    assert min(measured[name] for name in ("step_ms", "step_ms_ref", "peak_bytes", "quantize_s")) > 0
    pictures = [np.asarray(Image.open(cell / "blocks" / "0000" / "00.png")) for cell in (reference, ours)]
    assert all(picture.shape == (reduced.SIDE, reduced.SIDE, 3) for picture in pictures)
    assert (pictures[0] != pictures[1]).any()


def test_a_model_and_a_prompt_set_that_do_not_fit_are_typed_rows(
    cells: dict[tuple[str, str, str], Path],
) -> None:
    wrong = record(cells["dit-xl-2", METHOD, "scenes"])["result"]
    assert wrong["state"] == "unsupported"
    assert wrong["message"] == "dit-xl-2 draws classes; dataset scenes has captions"
    wrong = record(cells["sdxl", "reference", "classes"])["result"]
    assert wrong["state"] == "unsupported"
    assert wrong["message"] == "sdxl reads captions; dataset classes has classes"
