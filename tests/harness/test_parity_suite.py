import math

import pytest
import torch
from torch import Tensor

from harness.conformance.cases import CASES, Case
from harness.conformance.definition import layer_float64, relative_error
from harness.conformance.parity import TOLERANCE, check_parity, poisoned
from harness.kernels.layers import PackedLinear


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def case(like: type[PackedLinear], name: str = "broken") -> Case:
    """A small linear layer with another forward."""
    layer, x = CASES[0].build()
    layer.__class__ = like
    return Case(name, lambda: (layer, x))


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_every_case_agrees_on_this_machine(device: str) -> None:
    found = list(check_parity(device))
    assert [one.case for one in found] == [one.name for one in CASES]
    assert [one for one in found if not one.ok] == []
    # The bf16 output alone is off by this much: the error was measured, not assumed.
    assert all(1e-4 < one.error < TOLERANCE for one in found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tokens_that_are_held_take_their_kernel() -> None:
    from harness.kernels.triton import few, launch

    if not launch.has_copy_engine(torch.empty(0, device="cuda")):
        pytest.skip("needs compute capability 9.0")
    chosen = [one for one in CASES if "16x3072" in one.name]
    few._several.cache_clear()
    assert [one.ok for one in check_parity("cuda", chosen)] == [True] * len(chosen)
    assert few._several.cache_info().misses == len(chosen) > 0


def test_cases_have_names_of_their_own_and_are_the_same_each_time() -> None:
    assert len({one.name for one in CASES}) == len(CASES)
    for one in CASES[::7]:
        (a, x), (b, y) = one.build(), one.build()
        assert torch.equal(x, y)
        assert all(torch.equal(p, q) for p, q in zip(a.buffers(), b.buffers(), strict=True))


def test_cases_cover_every_kind_of_weight_and_layer() -> None:
    from harness.kernels.weights import WEIGHTS

    own = {kind for kind, weight in WEIGHTS.items() if weight.__module__ == "harness.kernels.weights"}
    built = [one.build()[0] for one in CASES]
    assert {layer.weight.kind for layer in built} == own
    assert {layer.kind for layer in built} == {"linear", "conv2d"}
    for layer in ("linear", "conv2d"):
        same = [one for one in built if one.kind == layer]
        assert {one.branch is None for one in same} == {one.act is None for one in same} == {True, False}


def test_float64_differs_from_the_layer_by_its_rounding_alone() -> None:
    layer, x = CASES[0].build()
    with torch.no_grad():
        assert relative_error(layer(x), layer_float64(layer, x)) < 1e-6


class Shifted(PackedLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.01


class Holes(PackedLinear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        out = torch.empty_like(y)
        out[..., :-1] = y[..., :-1]
        return out


class Keeps(PackedLinear):
    """Keeps a buffer between calls and leaves its last row as it was."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not hasattr(self, "kept"):
            self.kept = torch.zeros_like(y) + y
        self.kept[..., :-1] = y[..., :-1]
        return self.kept.clone()


class Wanders(PackedLinear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Wanders.calls += 1
        return super().forward(x) * (1 + 0.002 * (Wanders.calls % 2))


class Breaks(PackedLinear):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("out of\nregisters")


class Widens(PackedLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


@pytest.mark.parametrize(
    ("like", "detail"),
    [
        (Shifted, "the error is above 0.004"),
        (Holes, "values were not written"),
        (Wanders, "a second run gives another result"),
        (Breaks, "RuntimeError: out of registers"),
        (Widens, "the output is torch.float32"),
    ],
)
def test_a_wrong_layer_is_found(like: type[PackedLinear], detail: str) -> None:
    found = next(iter(check_parity("cpu", [case(like)])))
    assert not found.ok
    assert detail in found.detail


def test_what_a_backend_keeps_between_calls_is_poisoned_too() -> None:
    (found,) = check_parity("cpu", [case(Keeps)])
    assert not found.ok
    assert "values were not written" in found.detail
    assert math.isnan(found.error)


def test_poison_ends_with_the_block() -> None:
    with poisoned():
        assert bool(torch.isnan(torch.empty(1000)).all())
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
