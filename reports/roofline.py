"""The roofline plot: operations per second against operations per byte, below the device's ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.reports.fonts import literal
from harness.reports.pareto import COLOURS, GRID, INK, MARKERS, SOFT

_TERA = 1e12


class Point(Protocol):
    """What the plot reads of a row of `harness bench kernels`."""

    @property
    def contestant(self) -> str:
        """Who."""
        ...

    @property
    def format(self) -> str:
        """Widths."""
        ...

    @property
    def launch(self) -> str:
        """How it was called."""
        ...

    @property
    def ms(self) -> float | None:
        """Median milliseconds."""
        ...

    @property
    def bytes(self) -> int | None:
        """Fewest bytes moved."""
        ...

    @property
    def operations(self) -> int | None:
        """Operations."""
        ...


class Roof(Protocol):
    """The ceilings of a device (`harness.measure.floor.Ceilings`)."""

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        ...

    @property
    def bf16(self) -> float:
        """Operations per second in bf16."""
        ...

    def operations(self, rate: str) -> float:
        """Operations per second in another unit."""
        ...


def roofline_figure(points: Sequence[Point], roof: Roof) -> Figure:
    """Draw each timed layer at its intensity and its rate, under the measured roofs of bf16 and 8 bits.

    Args:
        points: rows; those without a time are left out. Of the launches, `graph` is drawn, or the only one.
        roof: the ceilings.

    Returns:
        The figure, bound to an Agg canvas.
    """
    timed = [point for point in points if point.ms and point.bytes and point.operations]
    launches = {point.launch for point in timed}
    drawn = [point for point in timed if point.launch == "graph"] if "graph" in launches else timed
    figure = Figure(figsize=(9, 5.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.subplots()
    _style(axes)
    series: dict[str, list[Point]] = {}
    for point in drawn:
        # A leading space, because matplotlib hides names that begin with `_`.
        series.setdefault(literal(f" {point.contestant} {point.format}"), []).append(point)
    looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    for (label, some), (colour, marker) in zip(series.items(), looks, strict=False):
        x = [_intensity(point) for point in some]
        y = [(point.operations or 0) / ((point.ms or 1) * 1e-3) / _TERA for point in some]
        style: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(x, y, linestyle="", marker=marker, color=colour, markersize=7, label=label, **style)
    _roofs(axes, roof, [_intensity(point) for point in drawn])
    if series:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _intensity(point: Point) -> float:
    return (point.operations or 0) / (point.bytes or 1)


def _roofs(axes: Axes, roof: Roof, seen: Sequence[float]) -> None:
    """Draw the slope of the bandwidth and the levels of both units."""
    lowest, highest = min([*seen, 1.0]) / 2, max([*seen, 1000.0]) * 2
    x = np.geomspace(lowest, highest, 200)
    for rate, dash in (("bf16", "-"), ("8-bit", "--")):
        y = np.minimum(x * roof.bandwidth, roof.operations(rate)) / _TERA
        axes.plot(x, y, color=SOFT, linewidth=1.2, linestyle=dash, zorder=1)
        axes.annotate(
            f"{rate}, {roof.operations(rate) / _TERA:.3g} TOP/s", (highest, y[-1]), xytext=(-4, 4),
            textcoords="offset points", ha="right", fontsize=8, color=SOFT,
        )  # fmt: skip
    axes.annotate(
        f"{roof.bandwidth / _TERA:.3g} TB/s", (lowest, lowest * roof.bandwidth / _TERA), xytext=(8, -4),
        textcoords="offset points", fontsize=8, color=SOFT,
    )  # fmt: skip


def _style(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte of input, stored weight and output", color=INK)
    axes.set_ylabel("10¹² operations per second", color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(colors=SOFT, labelsize=9)
