"""The share of images that show everything their prompt says."""

from __future__ import annotations

from collections.abc import Sequence

from harness.reports.record import Metric
from harness.reports.statistics import wilson_interval


def prompt_accuracy(judged: Sequence[bool]) -> Metric:
    """Return the share of right images with Wilson's 95 % interval.

    Args:
        judged: for each image, whether all attributes and relations of its prompt are right.
    """
    value, lo, hi = wilson_interval(sum(judged), len(judged))
    return Metric(value, lo, hi)
