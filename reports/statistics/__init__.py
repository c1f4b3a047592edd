"""Intervals and paired comparisons. Pure functions of NumPy and SciPy."""

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
    "Interval",
    "bca_interval",
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
