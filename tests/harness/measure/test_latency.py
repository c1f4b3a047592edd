import numpy as np
import pytest

from harness.measure import latency
from harness.measure.latency import compare_step_ms, time_ms


class Clock:
    """A clock that only the measured functions advance."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def function(self, name: str, durations_ms: list[float]):
        left = list(durations_ms)

        def run() -> None:
            self.calls.append(name)
            self.now += left.pop(0) / 1e3

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: fake.now)
    return fake


def test_median_and_quartiles_of_both_without_the_warm_up(clock: Clock) -> None:
    a, b = [1.0, 2.0, 3.0, 4.0, 100.0], [10.0, 10.0, 20.0, 30.0, 30.0]
    found = compare_step_ms(
        clock.function("a", [999.0, *a]), clock.function("b", [999.0, *b]), "cpu", rounds=5, warm_up=1
    )
    got = [(q.lo, q.median, q.hi) for q in (found.quantized, found.reference)]
    np.testing.assert_allclose(got, [(2.0, 3.0, 4.0), (10.0, 20.0, 30.0)], rtol=1e-9)


def test_rounds_are_interleaved_and_take_turns_in_going_first(clock: Clock) -> None:
    compare_step_ms(
        clock.function("a", [1.0] * 6), clock.function("b", [1.0] * 6), "cpu", rounds=4, warm_up=2
    )
    assert "".join(clock.calls) == "abab" + "abba" + "abba"


def test_a_single_round_has_equal_quartiles(clock: Clock) -> None:
    found = compare_step_ms(
        clock.function("a", [5.0]), clock.function("b", [6.0]), "cpu", rounds=1, warm_up=0
    )
    assert found.quantized.lo == found.quantized.hi == pytest.approx(5.0)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        compare_step_ms(lambda: None, lambda: None, "cpu", rounds=0)


def test_time_is_in_milliseconds(clock: Clock) -> None:
    assert time_ms(clock.function("a", [12.5]), "cpu") == pytest.approx(12.5)


def test_cuda_time_is_taken_by_events_on_an_idle_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    import torch

    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, other: "Event") -> float:
            return 7.0

    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("idle"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert time_ms(lambda: log.append("run"), "cuda:0") == 7.0
    assert log == ["idle", "record", "run", "record", "wait"]
