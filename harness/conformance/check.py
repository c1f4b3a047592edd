"""What a check is, and how it is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "differs", "not run"]


@dataclass(frozen=True)
class Check:
    """One golden value.

    Attributes:
        metric: a name of `METRICS`.
        source: what the expected value comes from.
        values: returns the figure found and the figure expected; raises ModuleNotFoundError where an optional
            package is not installed.
        tolerance: largest difference allowed, relative to the expected value.
    """

    metric: str
    source: str
    values: Callable[[], tuple[float, float]]
    tolerance: float = 1e-4


@dataclass(frozen=True)
class Verdict:
    """How a check went.

    Attributes:
        metric: as in the check.
        source: as in the check.
        outcome: `not run` where a package is missing or the check could not be carried out.
        found: the figure, or None.
        expected: what it should be, or None.
        message: why it was not run, else empty.
    """

    metric: str
    source: str
    outcome: Outcome
    found: float | None = None
    expected: float | None = None
    message: str = ""

    @property
    def failed(self) -> bool:
        """Whether the metric cannot be trusted; a missing optional package is no failure."""
        return self.outcome == "differs"


def run(checks: Iterable[Check]) -> list[Verdict]:
    """Carry out checks one after the other."""
    return [_run(check) for check in checks]


def _run(check: Check) -> Verdict:
    try:
        found, expected = check.values()
    except ModuleNotFoundError as error:
        return Verdict(check.metric, check.source, "not run", message=f"{error.name} is not installed")
    except Exception as error:  # a library that changed fails in ways of its own; the other checks go on
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        return Verdict(check.metric, check.source, "differs", message=reason)
    near = math.isclose(found, expected, rel_tol=check.tolerance, abs_tol=1e-12)
    return Verdict(check.metric, check.source, "ok" if near else "differs", found, expected)
