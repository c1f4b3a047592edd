"""Which output channels deserve more bits: kurtosis salience and the balanced N-1 / N / N+1 mix of MPQ-DM."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_STEPS = 5


def pearson_kurtosis(weight: Tensor) -> Tensor:
    """Kurtosis of every row, E[(w - mean)^4] / var^2: about 3 for Gaussian rows (not excess).

    MPQ-DM divides by the unbiased variance; the biased one used here differs by a factor that is the same for
    all rows of a layer and so ranks them alike.

    Args:
        weight: float [rows, cols].

    Returns:
        float64 [rows]; a constant row, where the figure is undefined, gets 0 and so ranks lowest.
    """
    centred = weight.double() - weight.double().mean(dim=1, keepdim=True)
    # The fourth power of a small row underflows; kurtosis does not depend on scale.
    peak = centred.abs().amax(dim=1, keepdim=True)
    constant = peak[:, 0] <= 1e-7 * weight.double().abs().amax(dim=1)
    unit = centred / torch.where(peak > 0, peak, torch.ones_like(peak))
    variance = unit.square().mean(dim=1)
    fourth = unit.pow(4).mean(dim=1)
    kurtosis = fourth / torch.where(constant, torch.ones_like(variance), variance.square())
    return torch.where(constant, torch.zeros_like(kurtosis), kurtosis)


def descending(values: Tensor) -> Tensor:
    """Row numbers from the largest value to the smallest, ties in row order: int64 [rows]."""
    return torch.argsort(values, descending=True, stable=True)


def swap_counts(rows: int) -> list[int]:
    """How many channels may be raised (and as many lowered): 0, 10, ..., 50 % of `rows`, in whole tenths."""
    step = rows // 10
    return [i * step for i in range(MAX_STEPS + 1)] if step else [0]


def balanced_bits(order: Tensor, count: int, bits: int) -> Tensor:
    """Bits of every row when the first `count` rows of `order` get one more and the last `count` one less.

    Args:
        order: int64 [rows], most salient first.
        count: rows raised, and rows lowered; at most half of them.
        bits: the mean, kept exactly.

    Returns:
        int64 [rows].

    Raises:
        ValueError: `count` is more than half of the rows.
    """
    if 2 * count > len(order):
        raise ValueError(f"cannot raise and lower {count} of {len(order)} rows")
    result = torch.full((len(order),), bits, dtype=torch.int64)
    if count:
        result[order[:count]] = bits + 1
        result[order[-count:]] = bits - 1
    return result


def best_count(order: Tensor, error: dict[int, Tensor], bits: int) -> int:
    """The number of swapped rows with the least total error; of equals the smallest.

    The output error of a row depends on no other row, so every split is a sum of per-row errors.

    Args:
        order: int64 [rows], most salient first.
        error: for widths `bits - 1`, `bits`, `bits + 1`, the output error of every row at that width [rows].
        bits: the mean width.

    Returns:
        one of `swap_counts`.
    """
    best, least = 0, float("inf")
    for count in swap_counts(len(order)):
        assigned = balanced_bits(order, count, bits)
        total = float(sum(error[b].double()[assigned == b].sum() for b in (bits - 1, bits, bits + 1)))
        if total < least:
            best, least = count, total
    return best
