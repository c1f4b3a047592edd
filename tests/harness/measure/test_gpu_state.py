import pytest

from harness.measure import gpu
from harness.measure.gpu import GpuState, gpu_state


def test_a_line_of_nvidia_smi_is_read() -> None:
    asked: list[int] = []

    def query(index: int) -> str:
        asked.append(index)
        return "NVIDIA H200, 580.159.04, 1980, 3201, 41, 312.55"

    assert gpu_state(1, query) == GpuState("NVIDIA H200", "580.159.04", 1980.0, 3201.0, 41.0, 312.55)
    assert asked == [1]


def test_what_the_driver_does_not_tell_is_none() -> None:
    found = gpu_state(0, lambda _: "Card, 1.2, [N/A], 3201, [Not Supported], 70")
    assert (found.sm_mhz, found.temperature_c) == (None, None)
    assert (found.memory_mhz, found.power_w) == (3201.0, 70.0)


@pytest.mark.parametrize("line", [None, "", "No devices were found"])
def test_no_answer_is_no_state(line: str | None) -> None:
    assert gpu_state(0, lambda _: line) == GpuState()


def test_a_machine_without_nvidia_smi_has_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda _: None)
    assert gpu_state() == GpuState()
