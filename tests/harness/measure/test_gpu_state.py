from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.measure import gpu
from harness.measure.gpu import GpuState, gpu_state

LINE = "NVIDIA H200, 580.159.04, 1980, 3201, 41, 312.55, 0x0000000000000004"
STATE = GpuState("NVIDIA H200", "580.159.04", 1980.0, 3201.0, 41.0, 312.55, "0x0000000000000004")


@pytest.fixture(autouse=True)
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch sees a host of which it was given the cards b and a, in this order."""
    cards = {"cuda": "b", "cuda:0": "b", "cuda:1": "a"}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=cards[str(device)])
    )


@pytest.mark.parametrize(("device", "card"), [("cuda", "GPU-b"), (torch.device("cuda", 1), "GPU-a")])
def test_the_card_that_torch_uses_is_asked_for(
    device: Any, card: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, f"{LINE}\n", "")

    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(gpu.subprocess, "run", run)
    assert gpu_state(device) == STATE
    assert [command[-1] for command in asked] == [f"--id={card}"]


def test_a_driver_that_does_not_know_a_field_is_asked_by_its_older_name() -> None:
    def query(_: str, fields: str) -> str | None:
        return None if "event_reasons" in fields else LINE

    assert gpu_state("cuda", query) == STATE


def test_what_the_driver_does_not_tell_is_none() -> None:
    found = gpu_state("cuda", lambda *_: "Card, 1.2, [N/A], 3201, [Not Supported], 70, ")
    assert (found.sm_mhz, found.temperature_c, found.throttled) == (None, None, None)
    assert (found.memory_mhz, found.power_w) == (3201.0, 70.0)


@pytest.mark.parametrize("line", [None, "", "No devices were found"])
def test_no_answer_is_no_state(line: str | None) -> None:
    assert gpu_state("cuda", lambda *_: line) == GpuState()


def test_a_machine_without_nvidia_smi_or_gpu_has_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda _: None)
    assert gpu_state("cuda") == GpuState()
    assert gpu_state("cpu", lambda *_: LINE) == GpuState()
