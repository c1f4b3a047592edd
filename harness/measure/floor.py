"""The least time a linear layer can take on a device: bytes over bandwidth, operations over rate.

(The roofline model: Williams, Waterman, Patterson, CACM 52(4), 2009.)
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from harness.measure.latency import time_ms

Rate = str
"""The unit a multiplication runs in: `bf16`, or `8-bit` (int8 and fp8)."""
EIGHT_BIT_SPEED = 2.0
"""Tensor cores from Ampere to Blackwell multiply int8, and from Ada on fp8, at twice the rate of bf16."""
_COPIED_BYTES = {"cuda": 2**30, "cpu": 2**24}
_MATRIX_SIDE = {"cuda": 8192, "cpu": 256}
_RUNS = 15


@dataclass(frozen=True)
class Ceilings:
    """What a device was measured to reach.

    Attributes:
        bandwidth: bytes per second of a large copy, bytes read plus bytes written.
        bf16: operations per second of a large bf16 matrix product, a multiply-add being two.
    """

    bandwidth: float
    bf16: float

    def operations(self, rate: Rate) -> float:
        """Return operations per second; 8-bit units are taken to be twice as fast as measured in bf16."""
        return self.bf16 * (EIGHT_BIT_SPEED if rate == "8-bit" else 1.0)


@dataclass(frozen=True)
class Work:
    """The fewest bytes and operations of one call of a linear layer.

    Attributes:
        bytes: input read once, stored weights read once, output written once.
        operations: of the product and of both low-rank products, a multiply-add being two.
        rate: the fastest unit its numbers allow.
    """

    bytes: int
    operations: int
    rate: Rate

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes

    def floor_ms(self, ceilings: Ceilings) -> float:
        """Return milliseconds below which no implementation can fall at these ceilings."""
        moving = self.bytes / ceilings.bandwidth
        computing = self.operations / ceilings.operations(self.rate)
        return 1e3 * max(moving, computing)


def linear_work(m: int, k: int, n: int, *, weight_bytes: int, act_bits: int, rank: int = 0) -> Work:
    """Return the work of a linear layer with 16-bit input and output.

    Args:
        m: rows of the input (tokens).
        k: input features.
        n: output features.
        weight_bytes: all the layer stores, scales, branch and bias included.
        act_bits: bits the input is rounded to before the product, 16 for none; from 8 down the product can
            run in 8 bits.
        rank: of the low-rank branch, which runs in 16 bits but is small; counted at the layer's rate.
    """
    moved = 2 * m * k + weight_bytes + 2 * m * n
    return Work(moved, 2 * m * k * n + 2 * m * rank * (k + n), "8-bit" if act_bits <= 8 else "bf16")


def measure_ceilings(device: torch.device | str) -> Ceilings:
    """Measure the bandwidth of a copy and the rate of a bf16 product, medians of a few runs each."""
    where = torch.device(device)
    size, side = (table.get(where.type, table["cpu"]) for table in (_COPIED_BYTES, _MATRIX_SIDE))
    source = torch.ones(size, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    copy_ms = _median_ms(lambda: target.copy_(source), where)
    generator = torch.Generator(where).manual_seed(0)
    a, b = (
        torch.randn(side, side, device=where, dtype=torch.bfloat16, generator=generator) for _ in range(2)
    )
    product_ms = _median_ms(lambda: a @ b, where)
    return Ceilings(2e3 * size / copy_ms, 2e3 * side**3 / product_ms)


def _median_ms(function: Callable[[], object], device: torch.device) -> float:
    for _ in range(3):
        function()
    return statistics.median(time_ms(function, device) for _ in range(_RUNS))
