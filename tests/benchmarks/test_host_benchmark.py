"""Time in Python of one forward of a packed layer, without a GPU: `pytest tests/benchmarks --benchmark-only`.

Layers are small, which is no matter to Python, and take a GPU's roads; a driver that stands in for CUDA's
leaves out the launch alone (`standin_driver`), and a stand-in for the vendor's product what that computes.
What is missing: the launch itself, memory from CUDA's allocator, the vendor's library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.kernels import dispatch
from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.joined import join_linear
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.scales import ScaleFormat
from harness.kernels.weights import UniformWeight

pytestmark = pytest.mark.skipif(
    not dispatch.HAS_TRITON or dispatch.INTERPRETED,
    reason="needs Triton, and not its interpreter",
)
TOKENS, COLS, ROWS = 64, 256, 512


@pytest.fixture(autouse=True)
def _a_gpus_roads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import triton
    from standin_driver import Driver

    from harness.kernels.triton import launch

    def product(codes: Tensor, weight: Tensor, *, out_dtype: torch.dtype, **_: Any) -> Tensor:
        return torch.empty(codes.shape[0], weight.shape[1], dtype=out_dtype)

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    monkeypatch.setattr(dispatch, "triton_runs_on", lambda _: True)
    monkeypatch.setattr(dispatch, "appends_branch", lambda *_: True)
    monkeypatch.setattr(launch, "has_vendor_product", lambda codes, *_: codes.dtype == torch.float8_e4m3fn)
    monkeypatch.setattr(launch, "has_copy_engine", lambda _: True)
    monkeypatch.setattr(torch, "_scaled_mm", product)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad(), dispatch.use_backend("triton"):
        yield
    torch.set_num_threads(threads)


def time_calls(benchmark: Any, layer: Callable[[Tensor], Any], x: Tensor) -> Any:
    layer(x)  # compiles
    return benchmark.pedantic(layer, (x,), rounds=50, iterations=100, warmup_rounds=2)


def coded(scales: ScaleFormat, rows: int = ROWS) -> PackedLinear:
    weight = UniformWeight(rows, COLS, 4, "narrow", 64, scales)
    act = ActQuantizer(4, "group", "dynamic", True, scale_format=scales)
    branch = LowRankBranch(torch.ones(32, COLS), torch.ones(rows, 32))
    return PackedLinear(weight, bias=torch.ones(rows), act=act, smooth=torch.ones(COLS), branch=branch)


@pytest.mark.parametrize(("scales", "road"), [("e8m0", "fp8"), ("integer", "int8")])
def test_coded_tokens(benchmark: Any, scales: ScaleFormat, road: str) -> None:
    """SVDQuant's W4A4 with scales of two levels and a branch of rank 32."""
    layer = coded(scales)
    y = time_calls(benchmark, layer, torch.ones(1, TOKENS, COLS, dtype=torch.bfloat16))
    assert (layer.road_taken, y.shape) == (road, (1, TOKENS, ROWS))


def test_joined_layers(benchmark: Any) -> None:
    """q, k and v, in a tensor each."""
    rows = ROWS // 4  # more at once would be memory that the CPU's allocator asks the system for each time
    joined = join_linear([coded("e8m0", rows) for _ in range(3)])
    assert joined is not None
    x = torch.ones(1, TOKENS, COLS, dtype=torch.bfloat16)
    found = time_calls(benchmark, lambda x: [each.contiguous() for each in joined(x).chunk(3, dim=-1)], x)
    assert [each.shape for each in found] == [(1, TOKENS, rows)] * 3


@pytest.mark.parametrize("tokens", [1, 4])
def test_few_tokens(benchmark: Any, tokens: int) -> None:
    """A modulation with 4-bit weights."""
    weight = UniformWeight(ROWS, COLS, 4, "asymmetric", 64)
    layer = PackedLinear(weight, bias=torch.ones(ROWS))
    y = time_calls(benchmark, layer, torch.ones(tokens, COLS, dtype=torch.bfloat16))
    assert (layer.road_taken, y.shape) == ("gemv", (tokens, ROWS))
