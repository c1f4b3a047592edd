import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.measure import latency
from harness.measure.timing import (
    ROTATED_BYTES,
    Contestant,
    Times,
    copies_needed,
    paired_ratio,
    prepare,
    race,
)


class Clock:
    """A clock that only the timed functions advance."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def takes(self, name: str, ms: float, then: float | None = None):
        left = [ms]

        def run() -> None:
            self.calls.append(name)
            self.now += left[0] / 1e3
            left[0] = ms if then is None else then

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: fake.now)
    return fake


def test_contestants_take_turns_and_each_goes_first_in_its_turn(clock: Clock) -> None:
    three = [Contestant(name, (clock.takes(name, 1.0),)) for name in "abc"]
    race(three, "cpu", repetitions=4, warm_up=2)
    assert "".join(clock.calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"


def test_a_repetition_runs_over_all_copies_and_counts_one_call(clock: Clock) -> None:
    copies = tuple(clock.takes(name, ms) for name, ms in (("x", 2.0), ("y", 4.0), ("z", 6.0)))
    found = race([Contestant("one", copies)], "cpu", repetitions=2, warm_up=1)
    assert found["one"].ms == pytest.approx((4.0, 4.0))
    assert "".join(clock.calls) == "xyz" * 3


def test_the_warm_up_is_not_counted(clock: Clock) -> None:
    found = race([Contestant("a", (clock.takes("a", 900.0, then=1.0),))], "cpu", repetitions=3, warm_up=1)
    assert found["a"].ms == pytest.approx((1.0, 1.0, 1.0))


def test_one_that_raises_has_a_reason_and_the_others_go_on(clock: Clock) -> None:
    def broken() -> None:
        raise RuntimeError("no such\nkernel")

    found = race(
        [Contestant("bad", (broken,)), Contestant("good", (clock.takes("g", 3.0),))], "cpu", repetitions=2
    )
    assert found["bad"] == Times((), "RuntimeError: no such kernel")
    assert found["bad"].quartiles is None
    quartiles = found["good"].quartiles
    assert quartiles is not None
    assert quartiles.median == pytest.approx(3.0)
    assert list(found) == ["bad", "good"]


def test_two_of_one_name_and_no_repetitions_are_refused() -> None:
    twice = [Contestant("a", (lambda: None,))] * 2
    with pytest.raises(ValueError, match="one name"):
        race(twice, "cpu")
    with pytest.raises(ValueError, match="at least one repetition"):
        race(twice[:1], "cpu", repetitions=0)
    with pytest.raises(ValueError, match="at least one repetition"):
        race(twice[:1], "cpu", warm_up=0)


@given(st.integers(1, 10**9))
def test_copies_together_exceed_the_bytes_to_rotate_over(size: int) -> None:
    count = copies_needed(size)
    assert count == 64 or count * size >= ROTATED_BYTES
    assert count == 1 or (count - 1) * size < ROTATED_BYTES


def test_the_ratio_is_that_of_the_medians() -> None:
    found = paired_ratio([2.0, 3.0, 40.0], [1.0, 1.5, 1.0])
    assert found.median == pytest.approx(3.0)
    assert found.lo <= found.median <= found.hi


def test_a_constant_ratio_has_no_width_however_much_both_vary() -> None:
    ours = np.random.default_rng(0).uniform(1, 100, 31)
    found = paired_ratio(list(1.5 * ours), list(ours))
    assert (found.lo, found.median, found.hi) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(100):
        theirs, ours = rng.lognormal(np.log(2.0), 0.1, 40), rng.lognormal(0.0, 0.1, 40)
        found = paired_ratio(list(theirs), list(ours), seed)
        hits += found.lo <= 2.0 <= found.hi
    assert 86 <= hits <= 100


def test_unequal_numbers_of_repetitions_make_no_pairs() -> None:
    with pytest.raises(ValueError, match="make no pairs"):
        paired_ratio([1.0, 2.0], [1.0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_replays_every_call() -> None:
    counters = [torch.zeros(1, device="cuda") for _ in range(3)]
    replay = prepare(
        Contestant("count", tuple(lambda c=c: c.add_(1) for c in counters), graph=True), "cuda", 2
    )
    before = [float(c) for c in counters]
    replay()
    replay()
    assert [float(c) for c in counters] == [b + 2 for b in before]
