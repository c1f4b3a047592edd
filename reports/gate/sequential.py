"""Group-sequential levels: how much error each look at growing data may spend.

Lan and DeMets, "Discrete sequential boundaries for clinical trials" (Biometrika 1983), with their
Pocock-type spending function alpha ln(1 + (e - 1) t), t being the share of the planned prompts seen. A
baseline with fewer prompts only changes the plan, not the method. Unlike an O'Brien-Fleming boundary, which
at t = 1/16 would let nothing be decided, it lets the first look find large changes.

With an unknown variance each normal boundary becomes the quantile of Student's t at the same tail probability
(Jennison and Turnbull, "Group Sequential Methods", 2000, section 3.8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

LOOKS = (16, 64, 256)
"""Prompts at each look."""
_NODES = 201
_FAR = 9.0
"""Standard deviations beyond which nothing is integrated."""

Array = NDArray[np.float64]


def spent(fraction: float, alpha: float) -> float:
    """Return the error spent by the time a `fraction` (0 to 1) of the planned prompts was seen."""
    return alpha * math.log1p((math.e - 1.0) * min(max(fraction, 0.0), 1.0))


def planned_looks(available: int, looks: Sequence[int] = LOOKS) -> tuple[int, ...]:
    """Return the looks that `available` prompts allow; the last is all of them, or the last of `looks`."""
    last = min(available, looks[-1])
    return (*(look for look in looks if look < last), last)


@cache
def nominal_levels(looks: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """Return the one-sided tail probability to test at on each look.

    Args:
        looks: growing numbers of prompts.
        alpha: chance of any crossing over all looks when the mean lies on the boundary of the hypothesis.

    Raises:
        ValueError: the looks do not grow, or alpha lies outside (0, 0.5].
    """
    if not looks or any(b <= a for a, b in zip((0, *looks), looks, strict=False)):
        raise ValueError(f"looks must be growing numbers of prompts, got {tuple(looks)}")
    if not 0.0 < alpha <= 0.5:
        raise ValueError(f"alpha lies in (0, 0.5], got {alpha}")
    fractions = [look / looks[-1] for look in looks]
    levels: list[float] = []
    density = _Path()
    before = 0.0
    for fraction in fractions:
        total = spent(fraction, alpha)
        wanted, before = total - before, total
        lo, hi = 0.0, _FAR * 2
        for _ in range(80):
            middle = (lo + hi) / 2
            lo, hi = (middle, hi) if density.beyond(fraction, middle) > wanted else (lo, middle)
        levels.append(float(ndtr(-hi)))
        density = density.after(fraction, -_FAR, hi)
    return tuple(levels)


def overall_error(looks: Sequence[int], levels: Sequence[float], *, two_sided: bool = False) -> float:
    """Return the chance that a mean on the boundary is called beyond it at any look (normal differences).

    Args:
        looks: growing numbers of prompts.
        levels: one-sided tail probability tested at on each.
        two_sided: count crossings on either side.
    """
    density, error = _Path(), 0.0
    for look, level in zip(looks, levels, strict=True):
        fraction, z = look / looks[-1], -float(ndtri(level))
        error += density.beyond(fraction, z)
        if two_sided:
            error += density.beyond(fraction, z, below=True)
        density = density.after(fraction, -z if two_sided else -_FAR, z)
    return error


def critical_value(level: float, n: int) -> float:
    """Return the quantile of Student's t, n - 1 degrees of freedom, with the tail probability `level`."""
    return -float(stdtrit(n - 1, level))


class _Path:
    """The distribution of a Brownian motion that has not crossed a boundary yet.

    Armitage, McPherson and Rowe (1969): its density is carried from look to look by numerical integration.
    """

    def __init__(self, time: float = 0.0, nodes: Array | None = None, mass: Array | None = None) -> None:
        self._time = time
        self._nodes = np.zeros(1) if nodes is None else nodes
        self._mass = np.ones(1) if mass is None else mass

    def beyond(self, time: float, z: float, *, below: bool = False) -> float:
        """Return the chance to lie beyond `z` standard deviations at `time`, not having crossed before."""
        scale = math.sqrt(time - self._time)
        gap = z * math.sqrt(time) + self._nodes if below else z * math.sqrt(time) - self._nodes
        return float(self._mass @ ndtr(-gap / scale))

    def after(self, time: float, lower: float, upper: float) -> _Path:
        """Return the motion at `time` that lies between two limits in standard deviations."""
        scale, root = math.sqrt(time - self._time), math.sqrt(time)
        points, weights = np.polynomial.legendre.leggauss(_NODES)
        half = (upper - lower) * root / 2
        nodes = lower * root + half * (points + 1.0)
        steps = (nodes[:, None] - self._nodes[None, :]) / scale
        density = np.exp(-0.5 * steps**2) @ self._mass / (scale * math.sqrt(2.0 * math.pi))
        return _Path(time, nodes, density * weights * half)
