"""Few tokens that are held in registers, in Triton's interpreter on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from interpreter import needs_interpreter, normal
from torch import Tensor

from harness.conformance.definition import relative_error
from harness.conformance.packed import uniform_weight
from harness.kernels import dispatch
from harness.kernels.layers import PackedLinear

pytestmark = needs_interpreter


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Let the kernel be taken on a CPU, by programs of two tiles or more; note the inputs it was given."""
    from harness.kernels.triton import few, launch

    seen: list[tuple[int, ...]] = []
    several = few.several

    def noted(x: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append(tuple(x.shape))
        return several(x, *args, **options)

    few._several.cache_clear()
    monkeypatch.setattr(few, "HOLDING_PROGRAMS", 2)
    monkeypatch.setattr(few, "several", noted)
    monkeypatch.setattr(launch, "has_copy_engine", lambda _: True)
    yield seen
    few._several.cache_clear()


@pytest.mark.parametrize(
    ("bits", "grid", "cols"),
    [
        (4, "narrow", 512), (4, "narrow", 1536), (4, "asymmetric", 1024), (3, "asymmetric", 1024),
        (3, "narrow", 1536), (2, "asymmetric", 3072), (2, "narrow", 512),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("tokens", "outs"), [(3, 5), (16, 53)])
def test_held_tokens(
    bits: int, grid: str, cols: int, tokens: int, outs: int, held: list[tuple[int, ...]]
) -> None:
    bias = normal(outs, seed=1) if outs > 16 else None
    layer = PackedLinear(uniform_weight(normal(outs, cols), bits, grid, 64), bias=bias)
    x = normal(tokens, cols, seed=2).half()
    with torch.no_grad(), dispatch.use_backend("triton"):
        y = layer(x)
    assert (layer.road_taken, held) == ("gemv", [(tokens, cols)])
    # No weight is rounded: what is left is the output's 11 bits.
    assert relative_error(y.float(), layer.reference(x.float())) < 4e-4


def test_held_tokens_in_another_layout(held: list[tuple[int, ...]]) -> None:
    layer = PackedLinear(uniform_weight(normal(21, 512), 4, "narrow", 64))
    x = normal(512, 3, seed=2).half().t()
    with torch.no_grad(), dispatch.use_backend("triton"):
        assert torch.equal(layer(x), layer(x.contiguous()))
    assert held == [(3, 512)] * 2


def test_outputs_are_those_of_their_tokens_alone(held: list[tuple[int, ...]]) -> None:
    layer = PackedLinear(uniform_weight(normal(21, 1024), 2, "asymmetric", 64))
    x = normal(16, 1024, seed=2).half()
    with torch.no_grad(), dispatch.use_backend("triton"):
        whole = layer(x)
        x[3] = float("nan")
        rest = layer(x)
    assert not torch.isfinite(rest[3]).any()
    others = [token for token in range(16) if token != 3]
    assert torch.equal(rest[others], whole[others])
    assert len(held) == 2


@pytest.mark.parametrize(
    ("bits", "grid", "group", "tokens", "cols"),
    [
        (4, "narrow", 32, 3, 512),  # half a group for a warp
        (4, "narrow", None, 3, 512),
        (4, "narrow", 64, 3, 480),  # the last group is not whole
        (4, "narrow", 64, 3, 576),  # scales of a row are not whole 16 bytes
        (2, "asymmetric", 64, 3, 512),  # nor are zero points
        (4, "narrow", 64, 3, 3584),  # more than registers hold
    ],
)
def test_what_is_not_held(
    bits: int, grid: str, group: int | None, tokens: int, cols: int, held: list[tuple[int, ...]]
) -> None:
    layer = PackedLinear(uniform_weight(normal(21, cols), bits, grid, group))
    x = normal(tokens, cols, seed=2).half()
    with torch.no_grad(), dispatch.use_backend("triton"):
        y = layer(x)
    assert (layer.road_taken, held) == ("gemv", [])
    assert relative_error(y.float(), layer.reference(x.float())) < 4e-4


def test_what_is_not_held_on_a_gpu() -> None:
    from harness.kernels.triton import few

    class OnGpu:
        is_cuda, shape = True, (2, 512)

        def __init__(self, dtype: torch.dtype, device: int) -> None:
            self.dtype, self.device = dtype, device

        def __len__(self) -> int:
            return self.shape[0]

        def get_device(self) -> int:
            return self.device

    def holds(dtype: torch.dtype, device: int) -> bool:
        rows = (torch.zeros(3, 256, dtype=torch.uint8), torch.zeros(3, 8, dtype=torch.float16), None)
        return few.holds_tokens(OnGpu(dtype, device), rows, 64)  # type: ignore[arg-type]

    beside, elsewhere = -1, 0  # of rows that are on the CPU
    assert holds(torch.bfloat16, beside)
    assert not holds(torch.float16, beside)  # which is not lifted
    assert not holds(torch.bfloat16, elsewhere)  # where no descriptor says that a kernel cannot read
