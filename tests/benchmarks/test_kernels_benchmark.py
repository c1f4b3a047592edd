"""Speed of unpacking and of packed layers: `pytest tests/benchmarks --benchmark-only`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from harness.kernels.activations import ActQuantizer
from harness.kernels.layers import PackedLinear
from harness.kernels.packing import pack_codes, unpack_codes
from harness.kernels.quantizers.normal_float import quantize_normal_float
from harness.kernels.quantizers.residual import fit_binary_planes
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import BinaryPlanesWeight, NormalFloatWeight, PackedWeight, UniformWeight

ROWS, COLS = 768, 192


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def matrix() -> torch.Tensor:
    return torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", range(1, 9))
def test_unpack(benchmark: Any, bits: int) -> None:
    codes = torch.arange(ROWS * COLS).remainder(2**bits).to(torch.uint8).view(ROWS, COLS)
    unpacked = benchmark(unpack_codes, pack_codes(codes, bits), bits, COLS)
    assert torch.equal(unpacked, codes)


def packed(kind: str) -> PackedWeight:
    w = matrix()
    if kind == "nf4":
        return NormalFloatWeight.pack(quantize_normal_float(w, 4), 4)
    if kind == "planes3":
        return BinaryPlanesWeight.pack(fit_binary_planes(w, 3))
    bits = int(kind[-1])
    group = 64 if kind.startswith("group") else None
    return UniformWeight.pack(quantize_uniform(w, bits, group=group), bits, "asymmetric", group)


KINDS = ["channel2", "channel3", "channel4", "group3", "group4", "nf4", "planes3"]


@pytest.mark.parametrize("kind", KINDS)
def test_dequantize(benchmark: Any, kind: str) -> None:
    assert benchmark(packed(kind).dequantize).shape == (ROWS, COLS)


@pytest.mark.parametrize("kind", ["float", *KINDS])
def test_linear(benchmark: Any, kind: str) -> None:
    linear = nn.Linear(COLS, ROWS)
    x = torch.randn(16, 256, COLS)
    layer = linear if kind == "float" else PackedLinear.like(linear, packed(kind), act=ActQuantizer(8))
    with torch.inference_mode():
        assert benchmark(layer, x).shape == (16, 256, ROWS)


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
def test_quantize_uniform(benchmark: Any, ranges: Any) -> None:
    codes = benchmark.pedantic(quantize_uniform, (matrix(), 4), {"ranges": ranges}, rounds=3)
    assert codes.codes.shape == (ROWS, COLS)
