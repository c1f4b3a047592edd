"""The runner on the real project: tiny random pipelines, real methods, and plugins installed by pip."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pipelines
import pytest
import torch
from records import result_bytes
from torch import nn

from harness.errors import CellError, UserError
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import UniformWeight
from harness.methods.training.state import CURVE_FILE, STATE_FILE
from harness.project import WORLD, check_packed, parameter_count, variant_of
from harness.protocols import settle
from harness.store import TRAINING_STATE, CellStore
from harness.world import Setting

PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.fixture(scope="module")
def plugins(tmp_path_factory) -> Path:
    """The plugin packages, installed by pip into a folder of their own."""
    folder = tmp_path_factory.mktemp("plugins")
    for name in ("absmax", "faulty"):
        source = shutil.copytree(PLUGINS / name, folder / "source" / name)
        options = ["--no-index", "--no-build-isolation", "--no-deps", "--quiet", "--target", folder / "site"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True, timeout=120)
    return folder / "site"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return pipelines.save_tiny("tiny-dit", tmp_path_factory.mktemp("model") / "tiny-dit")


def command(plugins: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from harness.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(plugins)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_a_grid_with_installed_plugins(plugins, model, tmp_path):
    out = tmp_path / "run"
    arguments = ["run", "--models", "tiny-dit", "--model-path", f"tiny-dit={model}", "--offline"]
    arguments += ["--bits", "4", "--prompts", "2", "--out", str(out)]
    done = command(plugins, *arguments, "--methods", "ptq,absmax,faulty-raise,faulty-nan")
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    records = {}
    for path in out.glob("cells/*/record.json"):
        record = json.loads(path.read_text())
        records[record["identity"]["method"]] = record
    states = {method: record["result"]["state"] for method, record in records.items()}
    good = {"reference": "ok", "ptq": "ok", "absmax": "ok"}
    assert states == {**good, "faulty-raise": "crashed", "faulty-nan": "nan"}
    assert "no idea how to quantize" in records["faulty-raise"]["result"]["message"]

    ptq = records["ptq"]
    cell = out / "cells" / ptq["identity"]["cell"]
    assert 4 < ptq["result"]["effective_bits"] < 6
    assert ptq["result"]["execution"] == "packed"
    stored = sum((cell / "checkpoint" / name).stat().st_size for name in ("model.safetensors", "layers.json"))
    assert ptq["result"]["checkpoint_bytes"] == stored
    assert ptq["result"]["metrics"]["psnr"]["value"] > 0
    measured = ptq["measured"]
    assert min(measured[name] for name in ("step_ms", "step_ms_ref", "peak_bytes", "quantize_s")) > 0
    floats = parameter_count((model / "transformer").glob("*.safetensors"))
    assert records["reference"]["result"]["weight_bytes"] == 2 * floats
    assert (out / "contact-tiny-dit.png").is_file()

    # A damaged checkpoint is redone from the stored statistics, and gives the same bytes.
    before = result_bytes(cell)
    (cell / "checkpoint" / "model.safetensors").write_bytes(b"damaged")
    (cell / "blocks" / "0000" / "00.png").unlink()
    again = command(plugins, *arguments, "--methods", "ptq")
    assert again.returncode == 0, again.stderr
    assert result_bytes(cell) == before


def test_a_plugin_that_cannot_be_imported_is_named_and_listed(plugins):
    asked = command(plugins, "run", "--methods", "faulty-import", "--dry-run")
    assert asked.returncode == 2
    assert len(asked.stderr.splitlines()) == 1
    assert "a_package_that_does_not_exist" in asked.stderr
    listed = json.loads(command(plugins, "list", "methods", "--json").stdout)
    assert "a_package_that_does_not_exist" in next(
        r["broken"] for r in listed if r["name"] == "faulty-import"
    )
    assert {"ptq", "absmax"} <= {row["name"] for row in listed}


def packed(linear: nn.Linear) -> PackedLinear:
    codes = quantize_uniform(linear.weight.detach(), 4, grid="asymmetric", group=None, ranges="minmax")
    return PackedLinear.like(linear, UniformWeight.pack(codes, 4, "asymmetric", None))


def test_what_a_method_leaves_behind_is_checked():
    model = nn.Sequential(packed(nn.Linear(8, 4)), nn.Linear(4, 4))
    check_packed(model, ["0"])
    with pytest.raises(CellError, match="left 1 of 2 layers unpacked: 1") as caught:
        check_packed(model, ["0", "1"])
    assert caught.value.state == "crashed"
    model[1] = packed(nn.Linear(4, 4))
    check_packed(model, ["0", "1"])
    model[1].bias[2] = torch.nan
    with pytest.raises(CellError, match="weights of 1 are not finite") as caught:
        check_packed(model, ["0", "1"])
    assert caught.value.state == "nan"


def test_a_damaged_weight_file_is_the_users_to_know(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not a header")
    with pytest.raises(UserError, match="is damaged"):
        parameter_count([tmp_path / "x.safetensors"])


def test_weights_that_change_during_a_run_are_noticed(tmp_path):
    folder = Path(shutil.copytree(pipelines.save_tiny("tiny-dit", tmp_path / "made"), tmp_path / "tiny-dit"))
    protocol = settle("scenes-default", None).to_json()
    facts = WORLD.model("tiny-dit", protocol, {"tiny-dit": folder})
    setting = Setting(facts, "scenes", protocol, "cpu", {})
    WORLD.open(setting)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    os.utime(weights, ns=(1, 1))
    with pytest.raises(CellError, match="changed during the run") as caught:
        WORLD.open(setting)
    assert caught.value.state == "corrupt"


def test_a_session_trains_in_its_workspace_and_the_cell_keeps_the_curve_alone(model, tmp_path):
    torch.set_num_threads(1)
    protocol = settle("scenes-default", None).to_json()
    facts = WORLD.model("tiny-dit", protocol, {"tiny-dit": model})
    setting = Setting(facts, "scenes", protocol, "cpu", {})
    calibration = tmp_path / "calibration.safetensors"
    WORLD.open(setting).calibrate(pipelines.prompts(2), calibration)
    files = CellStore(tmp_path / "cell")
    chosen = {"train_steps": "2", "train_prompts": "3", "act": "per_step"}
    method = WORLD.method("mpqdm", chosen)
    assert "train_steps=2" in method.variant
    session = WORLD.open(setting)
    session.quantize(method, (2, 6), calibration, files.training)
    names = {path.name for path in files.training.iterdir()}
    assert names == {"curve.csv", "state.safetensors"} == {CURVE_FILE, STATE_FILE}
    assert STATE_FILE == TRAINING_STATE
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    session.save(checkpoint)
    made = session.generate(pipelines.prompts(2))
    loaded = WORLD.open(setting)
    loaded.load(checkpoint)
    assert (loaded.generate(pipelines.prompts(2)) == made).all()
    files.drop_training_state()
    assert [path.name for path in files.training.iterdir()] == ["curve.csv"]


def test_variants_are_canonical():
    assert variant_of({}) == "default"
    assert variant_of({"range": "minmax", "group": 64, "bias": True}) == "bias=true,group=64,range=minmax"
