import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.measure.memory import forward_peak_bytes, module_bytes, running_peak

ROWS = 250_000
BLOCK = 4 * ROWS
SMALL = 4096
"""Scalars that operators wrap into tensors."""


def test_a_sequence_of_known_peak() -> None:
    x = torch.ones(ROWS)

    def sequence() -> Tensor:
        a = x.exp()  # 1 block
        b = a.exp()  # 2
        c = b.exp()  # 3, the peak
        del a, b  # 1
        d = c.exp()  # 2
        del c
        return d.sum()

    assert forward_peak_bytes(sequence, "cpu") == pytest.approx(3 * BLOCK, abs=SMALL)


def test_in_place_work_needs_no_memory_and_a_cat_needs_the_sum() -> None:
    x = torch.ones(ROWS)
    assert forward_peak_bytes(lambda: x.mul_(2).add_(1), "cpu") < SMALL
    assert forward_peak_bytes(lambda: torch.cat([x, x, x]), "cpu") == pytest.approx(3 * BLOCK, abs=SMALL)


def test_memory_that_was_held_before_is_not_counted() -> None:
    held = [torch.ones(10 * ROWS)]
    x = torch.ones(ROWS)
    assert forward_peak_bytes(x.exp, "cpu") == pytest.approx(BLOCK, abs=SMALL)
    assert len(held) == 1


def test_what_the_first_call_keeps_is_not_part_of_a_forward() -> None:
    cache: list[Tensor] = []
    x = torch.ones(ROWS)

    def forward() -> Tensor:
        if not cache:
            cache.append(torch.ones(5 * ROWS))
        return x.exp()

    assert forward_peak_bytes(forward, "cpu") == pytest.approx(BLOCK, abs=SMALL)


def test_resident_bytes_are_added() -> None:
    linear = nn.Linear(512, 512, bias=False)
    weights = module_bytes(linear)
    assert weights == 512 * 512 * 4
    x = torch.ones(1000, 512)
    with torch.inference_mode():
        found = forward_peak_bytes(lambda: linear(x), "cpu", resident=weights)
    assert found == pytest.approx(weights + 1000 * 512 * 4, rel=0.02)


def test_shared_storage_is_counted_once() -> None:
    net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    assert module_bytes(net) == 2 * 64 * 64 * 4
    net[1].weight = net[0].weight
    assert module_bytes(net) == 64 * 64 * 4
    net.register_buffer("codes", torch.zeros(100, dtype=torch.uint8))
    assert module_bytes(net) == 64 * 64 * 4 + 100


def test_running_peak_follows_time_and_not_the_given_order() -> None:
    events = [(3, 50), (1, 100), (4, -50), (2, -100)]
    assert running_peak(events) == 100
    assert running_peak([(1, 100), (2, 50), (3, -100), (4, 60)]) == 150
    assert running_peak([(1, -100), (2, 40)]) == 0
    assert running_peak([]) == 0


@given(st.lists(st.integers(1, 1000), max_size=20))
def test_running_peak_of_a_stack_is_its_sum(sizes: list[int]) -> None:
    grow = [(i, size) for i, size in enumerate(sizes)]
    shrink = [(100 + i, -size) for i, size in enumerate(reversed(sizes))]
    assert running_peak(shrink + grow) == sum(sizes)


def test_cuda_peak_is_the_allocators_beyond_what_was_held(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"held": 1000, "peak": 9999}

    def reset(device: torch.device) -> None:
        state["peak"] = state["held"]

    def forward() -> None:
        state["peak"] = max(state["peak"], state["held"] + 500)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: state["held"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: state["peak"])
    assert forward_peak_bytes(forward, "cuda", resident=20) == 520
