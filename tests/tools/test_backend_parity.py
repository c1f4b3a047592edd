"""The tool that compares the kernels with the definition on the embedded models."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import backend_parity
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.calibrate import Calibration, InputStatistics
from harness.kernels import dispatch
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import UniformWeight
from harness.plan import Plan, make_plan
from harness.project import WORLD, ModelSession
from harness.request import Request


class Louder(PackedLinear):
    """A layer that a backend computes wrongly."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.0625


def small_plan() -> Plan:
    """One cell that needs no calibration, of two prompts."""
    asked = Request(models=("tiny-dit",), methods=("nf4",), bits="4", device="cpu", backend="reference")
    plan = make_plan(asked, WORLD)
    return replace(plan, n=2, prompts={name: found[:2] for name, found in plan.prompts.items()})


def here(function: Callable[..., Any], *args: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(function(*args))
    return future


def test_errors_of_layers_are_those_put_in() -> None:
    torch.manual_seed(0)
    weight = UniformWeight.pack(
        quantize_uniform(torch.randn(32, 64), 4, grid="narrow", group=64), 4, "narrow", 64
    )
    model = nn.ModuleDict(
        {"right": PackedLinear(weight), "not packed": nn.Linear(64, 32), "wrong": Louder(weight)}
    )
    x = torch.randn(256, 64)
    entry = InputStatistics(x.abs().amax(dim=0), torch.tensor([[-9.0, 9.0]]), x)
    inputs = Calibration(1, {"x": entry}, {"right": "x", "wrong": "x"})
    cpu = torch.device("cpu")
    right, wrong = backend_parity.layer_errors(model, inputs, "reference", cpu)
    assert (right.name, right.road, wrong.name) == ("right", "reference", "wrong")
    assert 0.0015 < right.error < 0.0019  # rounding to bf16 alone, 2^-9 / sqrt(3) on a logarithmic scale
    assert wrong.error == pytest.approx(0.0625, rel=0.01)
    assert len(list(backend_parity.layer_errors(model, inputs, "reference", cpu, 1))) == 1
    line = backend_parity.row(backend_parity.Found("tiny", "ptq", "default", "W4A16", [right, wrong]))
    assert "| tiny ptq W4A16 | 2 | reference 2 | 0.06" in line
    assert line.endswith("| 1 | wrong (reference) | – | – | – |")


def test_a_value_that_was_not_written_is_the_largest_error() -> None:
    layers = [backend_parity.LayerError(*each) for each in (("a", "int8", 0.5), ("b", "int8", float("nan")))]
    line = backend_parity.row(backend_parity.Found("tiny", "ptq", "default", "W4A8", layers))
    assert "| int8 2 | nan | 2 | b (int8) |" in line


def test_images_are_compared_by_their_pooled_error() -> None:
    images = np.full((4, 8, 8, 3), 100, dtype=np.uint8)
    other = images.copy()
    assert backend_parity.difference(images, other) == backend_parity.ImageDifference(4, 4, None, None)
    other[2] += 5
    found = backend_parity.difference(images, other)
    assert (found.images, found.equal) == (4, 3)
    assert found.worst == pytest.approx(20 * np.log10(255 / 5))
    assert found.psnr == pytest.approx(10 * np.log10(255**2 / (25 / 4)))


def test_a_cell_is_drawn_on_both_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(_session: ModelSession, prompts: list[Any]) -> Any:
        asked.append(dispatch._chosen["backend"])
        return np.full((len(prompts), 4, 4, 3), 10 * len(asked), dtype=np.uint8)

    asked: list[str] = []
    monkeypatch.setattr(ModelSession, "generate", generate)
    plan = small_plan()
    options = backend_parity._options(["--images-only"])
    assert options.backend == "triton"
    (task,) = backend_parity.tasks_of(plan, options, tmp_path)
    found = backend_parity.examine(task)
    assert asked == ["triton", "reference"]
    assert found.images is not None
    assert (found.images.images, found.images.equal) == (2, 0)
    assert [found.images.psnr, found.images.worst] == pytest.approx([20 * np.log10(25.5)] * 2)
    assert (found.layers, found.failed) == ([], "")


def test_a_backend_equals_itself(capsys: pytest.CaptureFixture[str]) -> None:
    options = backend_parity._options(["--backend", "reference"])
    (found,) = backend_parity.run(small_plan(), options, here)
    assert len(found.layers) == 80
    assert all(0.0014 < layer.error < 0.002 and layer.road == "reference" for layer in found.layers)
    line = capsys.readouterr().out
    assert re.match(r"\| tiny-dit nf4 W4A16 \| 80 \| reference 80 \| 0\.001\d+ \| 0 \|", line)
    assert line.endswith("| 2 of 2 | equal | equal |\n")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("--methods ptqq", "did you mean ptq"),
        ("--device cpu", "--backend triton needs"),
        ("--jobs x", "--jobs"),
        ("--jobs 0", "--jobs 0: give at least 1"),
        ("--layers-only --images-only", "not allowed with"),
        ("--json /nowhere/found.json", "/nowhere is not a folder"),
    ],
)
def test_mistakes_are_told_in_one_line(
    asked: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backend_parity.main(["--device", "cpu", *asked.split()]) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")
