"""Phases add up while a clock runs, and cost nothing without one."""

from __future__ import annotations

import pytest
import torch

from harness.methods import phases
from harness.methods.phases import clocked, phase


def test_phases_nest_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 10.0, 20.0, 25.0])
    monkeypatch.setattr(phases.time, "perf_counter", lambda: next(now))
    with clocked(torch.device("cpu")) as clock:
        with phase("outer"), phase("inner"):
            pass
        with pytest.raises(KeyError), phase("outer"):
            raise KeyError
    assert clock.seconds == {"outer": 15.0, "inner": 2.0}


def test_without_a_clock_nothing_is_counted() -> None:
    with clocked(torch.device("cpu")) as clock:
        pass
    with phase("outer"):
        pass
    assert clock.seconds == {}
