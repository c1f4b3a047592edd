"""Which layers read the output of GELU or SiLU, checked by what really goes into them."""

from __future__ import annotations

import pytest

from harness.check.subjects import subjects
from harness.methods.svdquant import SHIFTS


@pytest.mark.parametrize(("index", "role", "after"), [(0, "conv.res", "silu"), (1, "ffn.down", "gelu")])
def test_inputs_behind_an_activation_are_above_its_minimum(index: int, role: str, after: str) -> None:
    subject = subjects()[index]
    targets = subject.targets(4, 4)
    assert {(t.role, t.after) for t in targets if t.after} == {(role, after)}
    assert all(t.after for t in targets if t.role == role)
    for target in targets:
        smallest = float(subject.calibration.step_range(target.name).min())
        if target.after:
            assert -SHIFTS[after] - 0.006 < smallest < 0
    # A gated feed-forward's product has either sign, far below the shift.
    gated = [t for t in targets if t.role == "ffn.down" and not t.after]
    assert bool(gated) == (index == 0)
