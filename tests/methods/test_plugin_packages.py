"""Methods of other packages, really installed by pip into a folder of their own and found by entry points."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.methods import registry

PLUGINS = Path(__file__).parent.parent / "plugins"

QUANTIZE = """
import json
import torch
from torch import nn
from harness.errors import UserError
from harness.methods import registry
from harness.methods.contract import LayerTarget, QuantizeJob

torch.set_num_threads(1)
torch.manual_seed(0)
report = {"names": registry.names(), "broken": registry.broken()}
for method in ("faulty-import", "absmax", "faulty-raise", "faulty-nan"):
    net = nn.ModuleDict({"l": nn.Linear(100, 8), "c": nn.Conv2d(4, 6, 3)})
    targets = (
        LayerTarget("l", "ffn.up", "linear", 4, 8, "l"),
        LayerTarget("c", "conv.res", "conv2d", 4, 8, "c"),
    )
    x, wanted = torch.randn(5, 100), None
    wanted = net["l"](x).detach()
    try:
        spec = registry.get(method)
        config = registry.configure(method, {"group": "32"} if method == "absmax" else {})
        spec.quantize(QuantizeJob(net, targets, None, 96), config)
        got = net["l"](x)
        report[method] = float(((got - wanted).norm() / wanted.norm()).detach())
        report[method + " layer"] = type(net["l"]).__name__, list(net["l"].weight.scale.shape)
    except (UserError, RuntimeError) as error:
        report[method] = f"{type(error).__name__}: {error}"
print(json.dumps(report))
"""


def _install(plugin: str, folder: Path, scratch: Path) -> None:
    # From a copy: setuptools builds inside the source folder.
    source = shutil.copytree(PLUGINS / plugin, scratch / plugin)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--disable-pip-version-check", "--target", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    scratch = tmp_path_factory.mktemp("plugins")
    for plugin in ("absmax", "faulty"):
        _install(plugin, scratch / "installed", scratch)
    path = os.pathsep.join([str(scratch / "installed"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-c", QUANTIZE]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        cwd=scratch,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_an_installed_method_stands_beside_the_built_in_ones(report: dict[str, object]) -> None:
    names, built_in = report["names"], list(registry.BUILT_IN)
    assert isinstance(names, list)
    assert names[: len(built_in)] == built_in
    # This package's own entry point, the methods of other libraries, is there in an ordinary install.
    assert {"absmax", "faulty-nan", "faulty-raise"} <= set(names[len(built_in) :])


def test_an_installed_method_quantizes_with_its_own_settings(report: dict[str, object]) -> None:
    assert isinstance(report["absmax"], float)
    assert 0 < report["absmax"] < 0.15
    assert report["absmax layer"] == ["PackedLinear", [8, 4]]


def test_a_method_that_fails_to_import_leaves_the_others_alone(report: dict[str, object]) -> None:
    reason = "ModuleNotFoundError: No module named 'a_package_that_does_not_exist'"
    assert report["broken"] == {"faulty-import": reason}
    assert report["faulty-import"] == f"UserError: method 'faulty-import' could not be loaded: {reason}"


def test_the_other_faulty_methods_fail_as_they_should(report: dict[str, object]) -> None:
    assert report["faulty-raise"] == "RuntimeError: no idea how to quantize l"
    assert report["faulty-nan"] != report["faulty-nan"]
