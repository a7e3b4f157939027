"""Dot charts: parts of a task as rows, in each one mark a model. Contract: no data, no figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from skipwise.report.style import GRID, INK, PAPER, SMALL, WIDTH, Style, add_legend, new_axes
from skipwise.report.words import cut

ROW_HEIGHT, MARK_HEIGHT = 0.16, 0.13  # inches: a row's own, and for each of its marks


@dataclass(frozen=True, kw_only=True)
class Dots:
    """One model: in each row a value with the ends of its bar, nan for none; as many as there are rows."""

    title: str
    style: Style
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    hollow: tuple[bool, ...] = ()
    """Drawn as an outline."""


def dot_chart(
    series: Sequence[Dots], rows: Sequence[str], x_label: str, line: float | None = None, log: bool = False
) -> Figure | None:
    """Rows from top to bottom, and so the models in each; ``line``: a vertical one, at no change."""
    shown = [each for each in series if any(map(math.isfinite, each.values))]
    if not shown or not rows:
        return None
    figure, axes = new_axes(x_label, "")
    figure.set_size_inches(
        WIDTH, 0.9 + 0.2 * len(shown) + len(rows) * (ROW_HEIGHT + MARK_HEIGHT * len(shown))
    )
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    if log:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    step = 0.8 / len(shown)
    handles = []
    for number, each in enumerate(shown):
        places = [row - 0.4 + step * (number + 0.5) for row in range(len(rows))]
        handles.append(_marks(axes, each, places))
    if line is not None:
        axes.axvline(line, color=INK, linewidth=0.9, zorder=0.8)
    for row in range(1, len(rows)):
        axes.axhline(row - 0.5, color=GRID, linewidth=0.8, zorder=0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [cut(row, 24) for row in rows], parse_math=False, fontsize=SMALL)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    add_legend(axes, handles, [each.title for each in shown])
    return figure


def _marks(axes: Axes, each: Dots, places: Sequence[float]) -> Line2D:
    """The bars and marks of one model; returns the handle for a legend, which is not hollow."""
    look = each.style
    for place, low, high in zip(places, each.low, each.high, strict=True):
        if math.isfinite(low) and math.isfinite(high) and low < high:
            axes.plot([low, high], [place, place], color=look.color, linewidth=1.4, solid_capstyle="butt")
    hollow = each.hollow or (False,) * len(each.values)
    for outline in (False, True):
        kept = [
            (value, place)
            for value, place, is_hollow in zip(each.values, places, hollow, strict=True)
            if is_hollow == outline and math.isfinite(value)
        ]
        if kept:
            x, y = zip(*kept, strict=True)
            axes.plot(
                x,
                y,
                linestyle="none",
                marker=look.marker,
                markersize=5.5,
                markerfacecolor=PAPER if outline else look.color,
                markeredgecolor=look.color if outline else PAPER,
                markeredgewidth=1.2 if outline else 0.7,
                zorder=3,
                gid="hollow" if outline else "full",
            )
    return Line2D([], [], linestyle="none", marker=look.marker, markersize=6, color=look.color)
