"""Speed of packed linear layers on a GPU: `pytest tests/benchmarks --benchmark-only` on a machine with CUDA.

Each round runs over copies that together exceed the L2 cache and waits for the device. For comparisons
in turns, with floors and errors, see `harness bench kernels`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.bench.layers import packed_linear, random_input, random_linear
from harness.bench.peers import bf16
from harness.bench.shapes import FLUX, FLUX_ROWS, MODULATION, NumberFormat, Shape, parse_formats
from harness.measure.timing import Contestant, copies_needed, prepare

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROUNDS, WARM_UP = 20, 3
MANY = [None, *parse_formats("w4a4,w4a8,w3a8,w2a8")]
FEW = [None, *parse_formats("w4a16,w3a16,w2a16")]


def time_layer(benchmark: Any, shape: Shape, rows: int, numbers: NumberFormat | None) -> None:
    """Time one layer, bf16 for None, as a CUDA graph over its copies."""
    weight, bias = random_linear(shape, "cuda")
    with torch.no_grad():
        first: Callable[[Tensor], Tensor]
        if numbers is None:
            first, held = bf16(weight, bias), 2 * weight.numel()
        else:
            first = packed_linear(weight, bias, numbers, "float" if numbers.weight_only else "integer")
            held = sum(first.bytes_by_part().values())
        copies = copies_needed(held + 2 * rows * shape.k)
        layers = [first, *(copy.deepcopy(first) for _ in range(copies - 1))]
        inputs = [random_input(rows, shape.k, "cuda", i) for i in range(copies)]
        calls = tuple(lambda f=f, x=x: f(x) for f, x in zip(layers, inputs, strict=True))
        replay = prepare(Contestant("layer", calls, graph=True), "cuda", WARM_UP)

        def run() -> None:
            replay()
            torch.cuda.synchronize()

        benchmark.extra_info["calls"] = copies
        benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=WARM_UP)


def label(value: Any) -> str:
    if value is None:
        return "bf16"
    return value.name.replace(" ", "-") if isinstance(value, NumberFormat | Shape) else str(value)


@pytest.mark.parametrize("numbers", MANY, ids=label)
@pytest.mark.parametrize("shape", FLUX, ids=label)
def test_many_rows(benchmark: Any, shape: Shape, numbers: NumberFormat | None) -> None:
    time_layer(benchmark, shape, FLUX_ROWS, numbers)


@pytest.mark.parametrize("numbers", FEW, ids=label)
@pytest.mark.parametrize("rows", [1, 16])
def test_few_rows(benchmark: Any, rows: int, numbers: NumberFormat | None) -> None:
    time_layer(benchmark, MODULATION[0], rows, numbers)
