"""The search for a mix of widths over the output channels of a layer, shared by MPQ-DM and its successor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.methods.objective import row_errors
from harness.methods.rounding import MixedRows, PlaneRows, UniformRows, mix_rows
from harness.methods.salience import balanced_bits, best_count, descending

Rounder = Callable[[Tensor, int], list[UniformRows | PlaneRows]]
"""Rounds rows [rows, cols] at a width in one or several ways to choose from."""


@dataclass(frozen=True)
class Mix:
    """The best mix of one layer.

    Attributes:
        rows: the rounded weight.
        swapped: channels with one bit more, and as many with one less.
        error: summed squared output error on the samples.
        unswapped: the same with all channels at the mean width.
    """

    rows: MixedRows
    swapped: int
    error: float
    unswapped: float


def best_mix(
    weight: Tensor,
    bits: int,
    rounder: Rounder,
    wanted: Tensor,
    inputs: Tensor,
    *,
    order: Tensor | None,
    swap: bool,
) -> Mix:
    """Choose width and rounding of every row by output error, the mean width staying exactly `bits`.

    Args:
        weight: float32 [rows, cols].
        bits: mean width.
        rounder: how rows may be rounded at a width; the best way is taken row by row.
        wanted: output to reach on the samples, [n, rows].
        inputs: quantized inputs, [n, cols].
        order: int64 [rows], the rows to raise first in front, those to lower first at the end; None orders by
            the output error at the mean width.
        swap: whether widths other than `bits` are tried.
    """
    count_rows = len(weight)
    everything = torch.arange(count_rows)
    pool = _Pool(weight, rounder, wanted, inputs)
    error = {bits: pool.add(everything, bits)}
    unswapped = float(error[bits].double().sum())
    assigned, count = torch.full((count_rows,), bits), 0
    half = count_rows // 2
    if swap and half:
        order = descending(error[bits]) if order is None else order.cpu()
        # Only the upper half can be raised and the lower half lowered: the rest need not be tried.
        error[bits + 1] = pool.add(order[:half].sort().values, bits + 1)
        error[bits - 1] = pool.add(order[count_rows - half :].sort().values, bits - 1)
        count = best_count(order, error, bits)
        assigned = balanced_bits(order, count, bits)
    choice = torch.zeros(count_rows, dtype=torch.int64)
    for width in error:
        choice[assigned == width] = pool.best[width][assigned == width]
    total = sum(float(error[width].double()[assigned == width].sum()) for width in error)
    return Mix(mix_rows(pool.candidates, choice), count, total, unswapped)


def raised_mix(
    weight: Tensor, bits: int, rounder: Rounder, wanted: Tensor, inputs: Tensor, *, order: Tensor
) -> Mix:
    """Give the first tenth of the rows one bit more and lower none: the mean is `bits` + 0.1.

    Args:
        weight: float32 [rows, cols].
        bits: width of the others.
        rounder: as in `best_mix`.
        wanted: as in `best_mix`.
        inputs: as in `best_mix`.
        order: int64 [rows], the rows to raise in front.
    """
    pool = _Pool(weight, rounder, wanted, inputs)
    plain = pool.add(torch.arange(len(weight)), bits)
    choice, unswapped = pool.best[bits].clone(), float(plain.double().sum())
    raised = order[: len(weight) // 10].sort().values
    if len(raised):
        better = pool.add(raised, bits + 1)
        choice[raised] = pool.best[bits + 1][raised]
        plain[raised] = better[raised]
    return Mix(mix_rows(pool.candidates, choice), len(raised), float(plain.double().sum()), unswapped)


class _Pool:
    """Roundings tried so far, and which is best for each row at each width."""

    def __init__(self, weight: Tensor, rounder: Rounder, wanted: Tensor, inputs: Tensor) -> None:
        self._weight, self._rounder = weight, rounder
        self._wanted, self._inputs = wanted, inputs
        self.candidates: list[tuple[Tensor, UniformRows | PlaneRows]] = []
        self.best: dict[int, Tensor] = {}

    def add(self, rows: Tensor, bits: int) -> Tensor:
        """Round `rows` at a width; return the least output error of every row, infinite outside `rows`."""
        least = torch.full((len(self._weight),), float("inf"))
        best = torch.zeros(len(self._weight), dtype=torch.int64)
        for rounded in self._rounder(self._weight[rows], bits):
            # Choosing is bookkeeping, done on the host whatever device the layer lies on.
            error = row_errors(self._wanted[:, rows], self._inputs, rounded.values()).cpu()
            better = rows[error < least[rows]]
            least[rows] = torch.minimum(least[rows], error)
            best[better] = len(self.candidates)
            self.candidates.append((rows, rounded))
        self.best[bits] = best
        return least
