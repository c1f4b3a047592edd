"""How a figure of every cell went from row to row, as a picture: one panel for each protocol and model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.reports.fonts import literal
from harness.reports.formats.layout import clean, method_label
from harness.reports.leaderboard.chain import Board
from harness.reports.leaderboard.entry import Entry
from harness.reports.leaderboard.history import BYTES, TIME, Series, histories, steps, value
from harness.reports.leaderboard.tables import commit

ENDINGS = (".png", ".svg", ".pdf")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SOFT, _GRID = "#5b6470", "#e6e8ec"
_LONGEST_LABEL = 32
_MOST_NAMED, _MOST_TICKS = 24, 8
"""Methods a legend and days an axis name; the others are drawn, but not named."""


def figures(boards: Sequence[Board]) -> list[str]:
    """Return the figures that rows have: their metrics, bytes, and the time by the reference's."""
    metrics = {name for board in boards for entry in board.entries for name in entry.record.result.metrics}
    return [*sorted(metrics), *BYTES, TIME] if any(board.entries for board in boards) else []


def write_plot(boards: Sequence[Board], figure: str, path: Path) -> None:
    """Draw a figure's history into a PNG, SVG or PDF file, by the file's name.

    What was added together stands in one column; lines join rows of one cell, N and machine; the number in a
    marker is the weight bits, and a large hollow marker is the first row behind a step.

    Raises:
        OSError: the file cannot be written.
    """
    groups = _panels(boards)
    drawing = Figure(figsize=(11, 4.2 * max(1, len(groups))), dpi=150, layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, ((name, model), series) in zip(panels, groups.items(), strict=True):
        board = next(board for board in boards if board.name == name)
        _draw(axes, board, series, figure)
        axes.set_title(literal(f"{model} · {name}"), loc="left", fontsize=11, fontweight="bold")
        axes.set_ylabel(literal(figure))
    # A date or a random name of a clip path in the file would differ every time.
    stable = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    drawing.savefig(path, metadata=stable)


def _panels(boards: Sequence[Board]) -> dict[tuple[str, str], dict[Series, list[Entry]]]:
    """Return series by protocol and model."""
    groups: dict[tuple[str, str], dict[Series, list[Entry]]] = {}
    for board in boards:
        for name, entries in histories(board.entries).items():
            groups.setdefault((board.name, clean(name.model)), {})[name] = entries
    return groups


def _draw(axes: Axes, board: Board, series: dict[Series, list[Entry]], figure: str) -> None:
    """Draw the lines of one panel and mark their steps."""
    moments = sorted({entry.date for entries in series.values() for entry in entries})
    stepped = {id(step.after) for step in steps(board) if step.figure == figure}
    colours: dict[str, str] = {}
    for name, entries in series.items():
        points = [
            (moments.index(e.date), level, e) for e in entries if (level := value(e, figure)) is not None
        ]
        if not points:
            continue
        colour = colours.setdefault(_label(name), _COLOURS[len(colours) % len(_COLOURS)])
        for x, y, entry in points:
            hollow = id(entry) in stepped
            axes.plot(
                x, y, "o", color=colour, markersize=15 if hollow else 10, markeredgewidth=2.5,
                markerfacecolor="white" if hollow else colour,
            )  # fmt: skip
            axes.annotate(
                str(name.wbits), (x, y), ha="center", va="center_baseline", fontsize=6.5, fontweight="bold",
                color=colour if hollow else "white",
            )  # fmt: skip
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=colour, linewidth=1.4, zorder=1)
    handles = [Line2D([], [], color=colour, marker="o", label=label) for label, colour in colours.items()]
    axes.legend(
        handles=handles[:_MOST_NAMED], fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    _style(axes, moments, board)


def _style(axes: Axes, moments: Sequence[str], board: Board) -> None:
    """Name the days and commits under a panel, as many as there is room for, and give it a light grid."""
    made = {entry.date: commit(entry) for entry in board.entries}
    shown = range(0, len(moments), -(-len(moments) // _MOST_TICKS) or 1)
    axes.set_xticks(list(shown), [f"{moments[x][:10]}\n{made[moments[x]]}" for x in shown])
    axes.tick_params(colors=_SOFT, labelsize=8)
    axes.set_xlim(-0.5, max(0.5, len(moments) - 0.5))
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label(name: Series) -> str:
    """Return what the lines of a method are called."""
    label = method_label({"method": name.method, "variant": name.variant})
    short = label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
    text = literal(f"{short}, A{name.abits}")
    return f" {text}" if text.startswith("_") else text  # matplotlib hides names that begin with `_`
