"""The verdict on a run: every cell of the baseline by quality, memory and latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.reports.gate.costs import Cost, compare_latency, compare_memory
from harness.reports.gate.quality import (
    Comparison,
    Verdict,
    compare_metric,
    noise_margin,
    paired_differences,
)
from harness.reports.gate.sequential import LOOKS
from harness.reports.gate.sides import Name
from harness.reports.record import Record, same_prompts

ALPHA = 0.05
METRICS = ("psnr", "prompt_accuracy")
PASSED, FAILED, UNDECIDED = 0, 1, 3

_WORST_FIRST: tuple[Verdict, ...] = ("fail", "undecided", "suspicious", "pass")


@dataclass(frozen=True)
class Terms:
    """What is compared, and how strictly.

    Attributes:
        better: by metric, which direction is better; the metrics compared, where a cell has them.
        margins: by metric, margins that replace the measured ones.
        alpha: chance that any comparison of the whole gate fails wrongly; shared among them evenly.
        costs: whether memory and latency count too.
        latency_bound: growth of the step's time that is let through.
    """

    better: Mapping[str, Literal["higher", "lower"]]
    margins: Mapping[str, float] = field(default_factory=dict)
    alpha: float = ALPHA
    costs: bool = True
    latency_bound: float = 0.10


@dataclass(frozen=True)
class CellVerdict:
    """What was found of one cell.

    Attributes:
        name: the cell.
        verdict: the worst of all that was compared.
        comparisons: by metric.
        costs: memory and latency.
        reason: why there is nothing to compare, or None.
        same_prompts: whether both sides are known to have seen the same prompts: their records may be of a
            version that did not keep them.
    """

    name: Name
    verdict: Verdict
    comparisons: tuple[Comparison, ...] = ()
    costs: tuple[Cost, ...] = ()
    reason: str | None = None
    same_prompts: bool = True

    @property
    def wanted(self) -> int | None:
        """Prompts that could decide more, or None: a cell that fails already needs none."""
        if self.verdict == "fail":
            return None
        if self.reason is not None:
            return LOOKS[0] if self.verdict == "undecided" else None
        open_ = [c.wanted for c in self.comparisons if c.verdict == "undecided" and c.wanted is not None]
        return max(open_, default=None)


def check_sides(
    new: Mapping[Name, Record], base: Mapping[Name, Record], noise: Mapping[Name, Record]
) -> None:
    """Check that figures of both sides, and of the noise floor, may be compared.

    The noise floor has another batch size and so another protocol; prompts must be the same everywhere.

    Raises:
        ValueError: cells of one name were made by different protocols, or from different prompts.
    """
    for name in new.keys() & base.keys():
        ours, theirs = new[name].identity, base[name].identity
        if ours.protocol_hash != theirs.protocol_hash:
            raise ValueError(
                f"{name}: made by protocol {ours.protocol} ({ours.protocol_hash}), the baseline by "
                f"{theirs.protocol} ({theirs.protocol_hash}); figures of different protocols are not compared"
            )
    for side, where in ((new, "the run"), (noise, "the noise floor")):
        for name in side.keys() & base.keys():
            if same_prompts(side[name].result, base[name].result) is False:
                raise ValueError(f"{name}: {where} was made from other prompts than the baseline")


def judge(
    new: Mapping[Name, Record],
    base: Mapping[Name, Record],
    noise: Mapping[Name, Record],
    terms: Terms,
) -> list[CellVerdict]:
    """Compare every cell of the baseline.

    Args:
        new: the run to be judged.
        base: what it is compared with.
        noise: the baseline's cells made once more with another batch size or backend, for the margins.
        terms: what is compared, and how strictly.

    Returns:
        One verdict per cell of `base`, in its order.
    """
    alpha = terms.alpha / max(1, sum(len(_metrics(record, terms)) for record in base.values()))
    return [_judge_cell(name, new.get(name), base[name], noise.get(name), terms, alpha) for name in base]


def exit_code(verdicts: Sequence[CellVerdict], benchmarks: Sequence[Cost] = ()) -> int:
    """Return 1 when something failed, else 3 when something is undecided or suspicious, else 0."""
    kinds = {found.verdict for found in verdicts}
    if "fail" in kinds or any(cost.fails for cost in benchmarks):
        return FAILED
    return PASSED if kinds <= {"pass"} else UNDECIDED


def _metrics(record: Record, terms: Terms) -> list[str]:
    """Return the metrics of a baseline cell that are compared."""
    values = record.result.per_prompt
    return [m for m in terms.better if any(value is not None for value in values.get(m, ()))]


def _judge_cell(
    name: Name, new: Record | None, base: Record, noise: Record | None, terms: Terms, alpha: float
) -> CellVerdict:
    if base.result.state != "ok":
        same = new is None or new.result.state != "ok"
        reason = f"the baseline is {base.result.state}" + ("" if same else "; the new cell is ok")
        return CellVerdict(name, "pass", reason=reason)
    if new is None:
        return CellVerdict(name, "undecided", reason="not in the run")
    if new.result.state != "ok":
        return CellVerdict(name, "fail", reason=f"{new.result.state}: {new.result.message or 'no message'}")
    comparisons = tuple(_compare(m, new, base, noise, terms, alpha) for m in _metrics(base, terms))
    costs = tuple(_costs(new, base, terms)) if terms.costs else ()
    if not comparisons:
        return CellVerdict(name, "undecided", (), costs, "the baseline has none of the metrics")
    kinds = {found.verdict for found in comparisons}
    worst = next(kind for kind in _WORST_FIRST if kind in kinds)
    return CellVerdict(
        name,
        "fail" if any(cost.fails for cost in costs) else worst,
        comparisons,
        costs,
        same_prompts=bool(same_prompts(new.result, base.result)),
    )


def _compare(
    metric: str, new: Record, base: Record, noise: Record | None, terms: Terms, alpha: float
) -> Comparison:
    better, theirs = terms.better[metric], base.result.per_prompt[metric]

    def differences(record: Record) -> NDArray[np.float64]:
        return paired_differences(metric, better, record.result.per_prompt.get(metric, ()), theirs)

    margin = terms.margins.get(metric)
    if margin is None:
        margin = noise_margin(metric, None if noise is None else differences(noise))
    return compare_metric(metric, differences(new), margin, alpha, len(theirs))


def _costs(new: Record, base: Record, terms: Terms) -> list[Cost]:
    latency = compare_latency(new, base, terms.latency_bound)
    return compare_memory(new, base) + ([] if latency is None else [latency])
