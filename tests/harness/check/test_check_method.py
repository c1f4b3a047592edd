"""The checks of a method: an honest one passes them all, each fault is named by the check meant for it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.check.checks import CHECKS, reason
from harness.check.evidence import CheckFailedError, Evidence, watched_network
from harness.check.subjects import Subject, subjects
from harness.check.suite import check_on
from harness.errors import UserError
from harness.kernels.layers import PackedLinear
from harness.methods import registry
from harness.methods.contract import MethodConfig, MethodSpec, QuantizeJob
from harness.methods.layers import activation_quantizer, packed_layer, weight_matrix
from harness.methods.rounding import round_uniform

PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.fixture(scope="module")
def dit() -> Subject:
    return subjects()[1]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def honest(job: QuantizeJob, config: MethodConfig, bits: Callable[[int], int] = lambda b: b) -> None:
    for target in job.targets:
        layer = job.layer(target.name)
        weight = round_uniform(weight_matrix(layer), bits(target.w_bits), ranges="minmax").pack()
        job.replace(target.name, packed_layer(layer, weight, activation_quantizer(target)))


def evidence(quantize: Any, dit: Subject, config: MethodConfig | None = None, **traits: Any) -> Evidence:
    spec = MethodSpec(name="tried", config=MethodConfig, quantize=quantize, version=1, **traits)
    return Evidence(spec, config or MethodConfig(), dit)


def failed(found: Evidence) -> dict[str, str]:
    """The checks that fail, with their reasons."""
    reasons = {}
    for name, look in CHECKS.items():
        try:
            look(found)
        except Exception as error:
            reasons[name] = reason(error)
    return reasons


def test_an_honest_method_passes(dit: Subject) -> None:
    assert failed(evidence(honest, dit)) == {}


def test_subjects_are_the_same_each_time_and_leave_the_global_generator_alone(dit: Subject) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = subjects()[1]
    assert torch.equal(torch.rand(3), expected)
    for name, tensor in again.denoiser.state_dict().items():
        assert torch.equal(tensor, dit.denoiser.state_dict()[name])


def test_damaged_subjects_have_the_channels_they_promise(dit: Subject) -> None:
    damaged = dit.damaged()
    names = [target.name for target in damaged.targets(4, 8)]
    for name in names:
        weight = damaged.denoiser.get_submodule(name).get_parameter("weight").flatten(1)
        assert not weight[0].any()
        assert len(weight[1].unique()) == 2  # constant but for the dead input
        assert damaged.calibration.absmax(name)[3] == 0
        assert not damaged.calibration.samples(name)[:, 3].any()
    assert not damaged.calibration.samples(names[0]).any()
    assert dit.calibration.absmax(names[0])[3] > 0


def leaves_one_out(job: QuantizeJob, config: MethodConfig) -> None:
    honest(QuantizeJob(job.denoiser, job.targets[:-1], job.calibration, job.width), config)


def changes_others(job: QuantizeJob, config: MethodConfig) -> None:
    honest(job, config)
    job.denoiser.get_submodule("proj_out").get_parameter("weight").detach().mul_(0.5)


def is_random(job: QuantizeJob, config: MethodConfig) -> None:
    honest(job, config)
    layer = job.denoiser.get_submodule(job.targets[0].name)
    layer.weight.scale.mul_(1 + 0.1 * torch.rand(1).half())


def takes_more_bits(job: QuantizeJob, config: MethodConfig) -> None:
    honest(job, config, lambda bits: bits + 1)


def ignores_the_bits(job: QuantizeJob, config: MethodConfig) -> None:
    honest(job, config, lambda bits: 4)


def leaves_activations_alone(job: QuantizeJob, config: MethodConfig) -> None:
    honest(job, config)
    job.denoiser.get_submodule(job.targets[0].name).act = None


def phones_home(job: QuantizeJob, config: MethodConfig) -> None:
    honest(job, config)
    try:
        socket.create_connection(("198.51.100.1", 80), timeout=1)
    except OSError:
        return


def divides_by_zero(job: QuantizeJob, config: MethodConfig) -> None:
    """As a scale search without a guard does: only a dead channel shows it."""
    honest(job, config)
    for target in job.targets:
        layer = job.denoiser.get_submodule(target.name)
        peak = layer.weight.dequantize().abs().amax(dim=1, keepdim=True)
        layer.weight.scale.mul_((peak / peak).half())


def gives_up(job: QuantizeJob, config: MethodConfig) -> None:
    raise RuntimeError("no idea\nat length")


class Understated(PackedLinear):
    """A layer whose bytes do not count its branch of noise."""

    def bytes_by_part(self) -> dict[str, int]:
        return {**super().bytes_by_part(), "scales": 0}


def understates_its_bytes(job: QuantizeJob, config: MethodConfig) -> None:
    honest(job, config)
    job.denoiser.get_submodule(job.targets[0].name).__class__ = Understated


class Forgetful(PackedLinear):
    """A layer whose forward depends on something that is not stored."""

    gain = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.gain


def stores_too_little(job: QuantizeJob, config: MethodConfig) -> None:
    honest(job, config)
    layer = job.denoiser.get_submodule(job.targets[0].name)
    layer.__class__ = Forgetful
    layer.gain = 1.01


@pytest.mark.parametrize(
    ("quantize", "check", "message"),
    [
        (leaves_one_out, "packed", "left 1 of 20 layers unpacked"),
        (changes_others, "packed", r"proj_out.weight is no target, and was changed \(1 tensors\)"),
        (is_random, "determinism", "two runs differ in 1 tensors, the first is"),
        (takes_more_bits, "bits as declared", "codes of 3 bits, declared 2"),
        (ignores_the_bits, "error falls", "does not fall as bits rise: W2"),
        (leaves_activations_alone, "bits as declared", "activations of 16 bits, asked for 8"),
        (phones_home, "offline", "called socket.create_connection"),
        (divides_by_zero, "dead channels", "are not finite"),
        (understates_its_bytes, "ledger is the file", r"\d+ bytes in the file, \d+ in the ledger"),
        (stores_too_little, "save and load", "predicts something else"),
        (gives_up, "determinism", "RuntimeError: no idea$"),
    ],
)
def test_each_fault_is_found_and_named(quantize: Any, check: str, message: str, dit: Subject) -> None:
    reasons = failed(evidence(quantize, dit))
    assert re.search(message, reasons[check]), reasons


@dataclass(frozen=True)
class MutableConfig(MethodConfig):
    seen: list[int] = field(default_factory=list)


def test_a_method_that_changes_its_settings_is_found(dit: Subject) -> None:
    def remembers(job: QuantizeJob, config: MutableConfig) -> None:
        config.seen.append(1)
        honest(job, config)

    reasons = failed(evidence(remembers, dit, MutableConfig()))
    assert reasons["packed"] == "the method changed its own settings while it ran"


def test_declared_widths_are_what_the_config_says(dit: Subject) -> None:
    class Wider(MethodConfig):
        def mean_bits(self, bits: int) -> tuple[float, float]:
            return bits, bits + 1.0

    assert "bits as declared" in failed(evidence(takes_more_bits, dit))
    assert "bits as declared" not in failed(evidence(takes_more_bits, dit, Wider()))


def test_widths_and_activations_follow_the_declaration(dit: Subject) -> None:
    assert evidence(honest, dit).bits == [2, 3, 4, 6]
    assert evidence(honest, dit, weight_bits=(8, 4)).bits == [4]
    assert evidence(honest, dit, weight_bits=(8,)).bits == [8]
    assert evidence(honest, dit, act_bits=(4, 6, 16)).act_bits == 6
    assert evidence(honest, dit, weight_only=True).act_bits == 16


def test_the_network_is_refused_and_then_there_again() -> None:
    real = socket.create_connection
    with watched_network() as calls, pytest.raises(OSError, match="refused"):
        socket.create_connection(("localhost", 9))
    assert calls == ["socket.create_connection"]
    assert socket.create_connection is real


def test_reasons_are_one_line() -> None:
    assert reason(CheckFailedError("as it is")) == "as it is"
    assert reason(ValueError("first\nsecond")) == "ValueError: first"


@pytest.mark.parametrize("method", ["ptq", "nf4", "mpqdm"])
def test_built_in_methods_pass_on_the_dit(method: str, dit: Subject) -> None:
    findings = list(check_on(method, {}, [dit]))
    assert [f.check for f in findings] == list(CHECKS)
    assert [(f.check, f.detail) for f in findings if not f.ok] == []


def test_an_unknown_method_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"unknown method 'ptw'; did you mean ptq or gptq\?"):
        registry.configure("ptw", {})


def test_the_command_names_what_a_careless_plugin_breaks(tmp_path: Path) -> None:
    source = shutil.copytree(PLUGINS / "careless", tmp_path / "careless")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    install += ["--no-index", "--disable-pip-version-check", "--target", str(tmp_path / "site"), str(source)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-c", "from harness.cli import main; main()", "check-method", "careless"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert [line.split()[1:3] for line in lines] == [
        ["tiny-unet", "determinism"],
        ["tiny-dit", "determinism"],
    ]
    assert "two runs differ in" in lines[0]
    assert done.stdout.rstrip().endswith("careless: 2 checks failed")
