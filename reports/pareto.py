"""The Pareto plot: quality against bytes of packed weights, one line per method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.reports.fonts import literal
from harness.reports.formats.layout import MIB, method_label
from harness.reports.record import Record
from harness.reports.rows import REFERENCE, mark_twins, row, sort_records

# Okabe and Ito's palette without its yellow, which is too light for thin lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "p", "D", "h", "8", "P", "H", "d")  # with room for a digit
INK, SOFT, GRID = "#1a1c1f", "#5b6470", "#e6e8ec"
_PANELS = (("psnr", "PSNR against the reference (dB)"), ("prompt_accuracy", "Prompt accuracy"))


def pareto_figure(records: Sequence[Record], title: str) -> Figure | None:
    """Draw PSNR and prompt accuracy of one model's cells against MiB of packed weights.

    Bars are 95 % intervals; a line joins the widths of one method, and the number in a marker is the weight
    bits. The reference is a level with its interval as a band. Cells without a size or a figure are left out.

    Args:
        records: the cells of one model, in any order.
        title: what stands above the panels.

    Returns:
        The figure, bound to an Agg canvas; or None when no quantized cell has anything to plot.
    """
    flats = [row(record) for record in sort_records(records)]
    mark_twins(flats)
    series: dict[str, list[dict[str, Any]]] = {}
    for flat in flats:
        if flat["method"] != REFERENCE and flat["weight_bytes"] is not None:
            series.setdefault(_series_name(flat), []).append(flat)
    if not any(
        flat[figure] is not None for points in series.values() for flat in points for figure, _ in _PANELS
    ):
        return None
    figure = Figure(figsize=(11, 5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(literal(title), fontsize=12, fontweight="bold", x=0.01, ha="left", color=INK)
    panels = figure.subplots(1, 2)
    reference = next((flat for flat in flats if flat["method"] == REFERENCE), None)
    for axes, (name, label) in zip(panels, _PANELS, strict=True):
        _style(axes, label)
        _draw_series(axes, series, name)
        if reference is not None and reference[name] is not None:
            _draw_reference(axes, reference, name)
    handles, labels = _legend_entries(panels)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9.5
    )
    return figure


def _series_name(flat: dict[str, Any]) -> str:
    """Return what a line is called; a leading space, because matplotlib hides names that begin with `_`."""
    name = literal(f"{method_label(flat)}, A{flat['abits']}")
    return f" {name}" if name.startswith("_") else name


def _style(axes: Axes, label: str) -> None:
    """Give a panel its labels and a light grid."""
    axes.set_xlabel("packed weights of the denoiser (MiB)", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(colors=SOFT, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(7))


def _draw_series(axes: Axes, series: dict[str, list[dict[str, Any]]], name: str) -> None:
    """Draw one line with error bars per method and write the weight bits into its markers."""
    looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    for (label, flats), (colour, marker) in zip(series.items(), looks, strict=False):
        points = sorted(
            (flat for flat in flats if flat[name] is not None), key=lambda flat: flat["weight_bytes"]
        )
        if not points:
            continue
        x = [flat["weight_bytes"] / MIB for flat in points]
        y = [flat[name] for flat in points]
        axes.errorbar(
            x, y, yerr=_bars(points, name), label=label, color=colour, marker=marker, markersize=10,
            linewidth=1.6, elinewidth=1.1, capsize=2.5, markeredgecolor="white", markeredgewidth=0.6,
        )  # fmt: skip
        for flat, place in zip(points, zip(x, y, strict=True), strict=True):
            axes.annotate(
                str(flat["wbits"]), place, ha="center", va="center_baseline", fontsize=6.5, fontweight="bold",
                color="white", zorder=5,
            )  # fmt: skip


def _bars(points: Sequence[dict[str, Any]], name: str) -> list[list[float]]:
    """Return the lengths of the error bars below and above, 0 where there is no interval."""
    bars = []
    for end, sign in (("_lo", -1.0), ("_hi", 1.0)):
        ends = [(flat[name], flat[name + end]) for flat in points]
        bars.append([0.0 if value is None else max(0.0, sign * (value - level)) for level, value in ends])
    return bars


def _draw_reference(axes: Axes, flat: dict[str, Any], name: str) -> None:
    """Draw the reference's level; its size is written, since its place would squeeze the others together."""
    level = flat[name]
    axes.axhline(level, color=SOFT, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
    if flat[f"{name}_lo"] is not None and flat[f"{name}_hi"] is not None:
        axes.axhspan(flat[f"{name}_lo"], flat[f"{name}_hi"], color=SOFT, alpha=0.10, linewidth=0, zorder=0)
    size = "" if flat["weight_bytes"] is None else f", {flat['weight_bytes'] / MIB:.1f} MiB"
    axes.annotate(
        f"16-bit reference{size}", (0.01, level), xycoords=("axes fraction", "data"), xytext=(0, 4),
        textcoords="offset points", fontsize=8.5, color=SOFT,
    )  # fmt: skip


def _legend_entries(panels: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Return every line of the panels once."""
    entries: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            entries.setdefault(label, handle)
    return list(entries.values()), list(entries)
