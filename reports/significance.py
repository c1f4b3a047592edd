"""Which of several cells is best, and which cannot be told from it. NumPy and SciPy only.

Cells run the same prompts from the same noise, so they are compared prompt by prompt: means by a paired
t-test, shares of right answers by McNemar's exact test (1947). All comparisons of a column with the leaders
of its groups are corrected together by Holm's step-down procedure (1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import bdtr, stdtr

ALPHA = 0.05

Better = Literal["higher", "lower"]
Test = Literal["paired t", "McNemar"]
Standing = Literal["best", "tied", "none"]
PerPrompt = Sequence[float | None]


RANKED: dict[str, tuple[Better, Test]] = {
    "psnr": ("higher", "paired t"),
    "ssim": ("higher", "paired t"),
    "lpips": ("lower", "paired t"),
    "lpips_scene": ("lower", "paired t"),
    "prompt_accuracy": ("higher", "McNemar"),
    "image_reward": ("higher", "paired t"),
    "clip_score": ("higher", "paired t"),
}
"""Metrics with a value for each prompt: which direction is better, which test tells two cells apart."""

TIED_MARK = "≈"


@dataclass(frozen=True)
class Entrant:
    """One cell's figure in a column.

    Attributes:
        value: the figure, a mean or a share over prompts.
        per_prompt: what it is formed from, one value for each prompt in the order of the prompts; None when
            the figure has no such values (FID).
    """

    value: float
    per_prompt: PerPrompt | None


def paired_t_p(a: PerPrompt, b: PerPrompt) -> float | None:
    """Return the two-sided p-value of the paired t-test of `mean(a - b) = 0`.

    Args:
        a: observations; element i belongs to the same prompt as element i of `b`.
        b: as many observations. A pair with None on either side is left out.

    Returns:
        The p-value: 1 when all pairs are equal, 0 when all differ by one amount other than 0, and None when
        fewer than two pairs are left or one of them is not finite.

    Raises:
        ValueError: the two differ in length.
    """
    pairs = _pairs(a, b)
    difference = pairs[:, 0] - pairs[:, 1]
    if len(difference) < 2 or not np.isfinite(difference).all():
        return None
    if difference.min() == difference.max():
        return 1.0 if difference[0] == 0.0 else 0.0
    t = float(difference.mean()) / (float(difference.std(ddof=1)) / math.sqrt(len(difference)))
    return 2.0 * float(stdtr(len(difference) - 1, -abs(t)))


def mcnemar_p(a: PerPrompt, b: PerPrompt) -> float | None:
    """Return the two-sided p-value of McNemar's exact test of equal shares.

    Args:
        a: 1 where the answer was right, 0 where it was wrong; element i belongs to the same prompt as element
            i of `b`.
        b: as many answers. A pair with None on either side is left out.

    Returns:
        The binomial probability, under 1/2, of discordant pairs at least as uneven as these; 1 without
        discordant pairs, None without pairs.

    Raises:
        ValueError: the two differ in length, or an answer is neither 0 nor 1.
    """
    pairs = _pairs(a, b)
    if not np.isin(pairs, (0.0, 1.0)).all():
        raise ValueError("McNemar's test takes answers that are 0 or 1")
    if len(pairs) == 0:
        return None
    only_a = int((pairs[:, 0] > pairs[:, 1]).sum())
    only_b = int((pairs[:, 0] < pairs[:, 1]).sum())
    return min(1.0, 2.0 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values in the order given.

    Rejecting where the adjusted value is at most α keeps the chance of any false rejection at α at most,
    whatever the dependence between the tests.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def standings(groups: Sequence[Sequence[Entrant]], better: Better, test: Test) -> list[list[Standing]]:
    """Say for each entrant of each group whether it is best, tied with the best, or neither.

    The leader of a group is compared with each of the others; the p-values of all groups are corrected
    together. The leader is `best` when every difference is significant at 5 %; otherwise it and those that
    cannot be told from it are `tied`. A leader that could not be compared with some entrant (no values for
    each prompt, other prompts) is never `best`, and that entrant never `tied`.

    Choosing the leader by the same data does not invalidate this: under equality of two entrants the
    two-sided test already counts either order, and with more of them the leader must beat the runner-up.

    Args:
        groups: entrants that are compared with each other; a group of one gets no mark.
        better: which direction is better.
        test: the test that fits the figure.
    """
    leaders = [_leader(group, better) for group in groups]
    p_values: dict[tuple[int, int], float] = {}
    for number, (group, leader) in enumerate(zip(groups, leaders, strict=True)):
        for index, entrant in enumerate(group):
            if index != leader and (p := _compare(group[leader], entrant, test)) is not None:
                p_values[number, index] = p
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [
        _group_standings(len(group), leader, {i: p for (g, i), p in adjusted.items() if g == number})
        for number, (group, leader) in enumerate(zip(groups, leaders, strict=True))
    ]


def _leader(group: Sequence[Entrant], better: Better) -> int:
    """Return the index of the best value, the first of equal ones; -1 for an empty group."""
    sign = 1.0 if better == "higher" else -1.0
    return max(range(len(group)), key=lambda index: sign * group[index].value, default=-1)


def _compare(leader: Entrant, other: Entrant, test: Test) -> float | None:
    """Return the p-value of the difference, or None when the two cannot be compared prompt by prompt."""
    a, b = leader.per_prompt, other.per_prompt
    if a is None or b is None or len(a) != len(b):
        return None
    return mcnemar_p(a, b) if test == "McNemar" else paired_t_p(a, b)


def _group_standings(size: int, leader: int, p_values: dict[int, float]) -> list[Standing]:
    """Return the standings of one group from the adjusted p-values of those compared with its leader."""
    tied = {index for index, p in p_values.items() if p > ALPHA}
    marks: list[Standing] = ["tied" if index in tied else "none" for index in range(size)]
    if tied:
        marks[leader] = "tied"
    elif p_values and len(p_values) == size - 1:
        marks[leader] = "best"
    return marks


def _pairs(a: PerPrompt, b: PerPrompt) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the complete pairs, float64 [n, 2]."""
    if len(a) != len(b):
        raise ValueError(f"paired observations differ in number: {len(a)} and {len(b)}")
    complete = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return np.asarray(complete, dtype=np.float64).reshape(-1, 2)
