"""Intervals, paired comparisons and distances of distributions. Pure functions of NumPy and SciPy."""

from harness.reports.statistics.comparisons import (
    Standing,
    holm,
    minimum_detectable_effect,
    paired_bca,
    paired_p_value,
    paired_t,
    prompts_needed,
    standing,
)
from harness.reports.statistics.distributions import fid_difference, kid_difference
from harness.reports.statistics.intervals import (
    CONFIDENCE,
    Interval,
    bca_interval,
    t_interval,
    wilson_interval,
)

__all__ = [
    "CONFIDENCE",
    "Interval",
    "Standing",
    "bca_interval",
    "fid_difference",
    "holm",
    "kid_difference",
    "minimum_detectable_effect",
    "paired_bca",
    "paired_p_value",
    "paired_t",
    "prompts_needed",
    "standing",
    "t_interval",
    "wilson_interval",
]
