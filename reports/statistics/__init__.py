"""Intervals, paired comparisons and steps in a series. Pure functions of NumPy and SciPy."""

from harness.reports.statistics.changes import Change, change_point, change_points
from harness.reports.statistics.comparisons import (
    ALPHA,
    holm,
    mcnemar_p,
    minimum_detectable_effect,
    paired_bca,
    paired_p_value,
    paired_t,
    prompts_needed,
)
from harness.reports.statistics.intervals import (
    CONFIDENCE,
    Interval,
    bca_interval,
    t_interval,
    wilson_interval,
)

__all__ = [
    "ALPHA",
    "CONFIDENCE",
    "Change",
    "Interval",
    "bca_interval",
    "change_point",
    "change_points",
    "holm",
    "mcnemar_p",
    "minimum_detectable_effect",
    "paired_bca",
    "paired_p_value",
    "paired_t",
    "prompts_needed",
    "t_interval",
    "wilson_interval",
]
