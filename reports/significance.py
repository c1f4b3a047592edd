"""Which of several cells is best, and which cannot be told from it. NumPy and SciPy only.

Cells run the same prompts from the same noise, so they are compared prompt by prompt: means by a paired
t-test, shares of right answers by McNemar's exact test (1947), FID and KID by a paired t-test of what each
prompt's image adds to them (the figure plus its influence; docs/statistics.md). All comparisons of a column
with the leaders of its groups are corrected together by Holm's step-down procedure (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.reports.record import Result
from harness.reports.statistics import ALPHA, holm, mcnemar_p, paired_p_value

Better = Literal["higher", "lower"]
Test = Literal["paired t", "McNemar", "influence"]
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
    "fid": ("lower", "influence"),
    "kid": ("lower", "influence"),
}
"""Metrics with a value for each prompt: which direction is better, which test tells two cells apart."""

TIED_MARK = "≈"


@dataclass(frozen=True)
class Entrant:
    """One cell's figure in a column.

    Attributes:
        value: the figure, a mean or a share over prompts.
        per_prompt: what it is formed from, one value for each prompt in the order of the prompts; None when
            the figure has no such values (recall).
        prompts: digests of those prompts; empty when the record does not hold them.
    """

    value: float
    per_prompt: PerPrompt | None
    prompts: Sequence[str] = ()


def entrant(name: str, result: Result) -> Entrant:
    """Return a cell's figure in the column of the metric `name`, which it has.

    Raises:
        ValueError: it does not have it.
    """
    value = result.metrics[name].value if name in result.metrics else None
    if value is None:
        raise ValueError(f"the cell has no {name}")
    return Entrant(value, result.per_prompt.get(name), result.prompts)


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
        _group_standings(
            len(group), leader, {i: p for (g, i), p in adjusted.items() if g == number and p is not None}
        )
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
    if leader.prompts and other.prompts and list(leader.prompts) != list(other.prompts):
        return None
    return mcnemar_p(a, b) if test == "McNemar" else paired_p_value(a, b)


def _group_standings(size: int, leader: int, p_values: dict[int, float]) -> list[Standing]:
    """Return the standings of one group from the adjusted p-values of those compared with its leader."""
    tied = {index for index, p in p_values.items() if p > ALPHA}
    marks: list[Standing] = ["tied" if index in tied else "none" for index in range(size)]
    if tied:
        marks[leader] = "tied"
    elif p_values and len(p_values) == size - 1:
        marks[leader] = "best"
    return marks
