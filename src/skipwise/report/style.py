"""How a figure looks: palette, markers, axes. Contract: no pyplot, so nothing global is changed.

The colours come from Okabe and Ito's palette, which colour-blind readers can tell apart; each has its own
marker and dash, so that a figure also survives a black-and-white printer. The greys are named because the
page swaps them for those of its light or dark scheme (`svg.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from skipwise.report.inputs import Model
from skipwise.report.words import cut

INK, MUTED, GRID, PAPER = "#1b1f24", "#59636e", "#dde2e7", "#ffffff"
BLUE, VERMILION, GREEN, PURPLE, GREY, SKY, BROWN = (
    *("#0072b2", "#d55e00", "#009e73", "#b5569a", "#7a828b", "#3f9fd8", "#8c6d31"),
)

WIDTH, HEIGHT = 4.8, 3.1  # inches: two figures beside each other on a desktop page, one on a phone
TEXT, SMALL = 9.5, 8.5  # points
LEGEND_WIDTH = 54  # characters that fit in one row of a legend


@dataclass(frozen=True)
class Style:
    """One series, told apart by colour, marker and dash alike."""

    color: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]


SOLID, DASHED, DOTTED = "-", (0, (5, 1.6)), (0, (1.2, 1.4))
DASH_DOT, LONG, DASH_DOT_DOT = (0, (5, 1.4, 1.2, 1.4)), (0, (9, 2)), (0, (5, 1.3, 1.2, 1.3, 1.2, 1.3))

# The four models of every run always look the same; other names take the rest in turn.
USUAL = {
    "untouched": Style(GREY, "s", DOTTED),
    "interpolated": Style(VERMILION, "^", DASH_DOT),
    "contiguous": Style(GREEN, "D", DASHED),
    "pose": Style(BLUE, "o", SOLID),
}
OTHERS = (
    Style(PURPLE, "v", LONG),
    Style(SKY, "P", DASH_DOT_DOT),
    Style(BROWN, "X", DASHED),
    *USUAL.values(),
)


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for every name. More names than styles: the styles repeat."""
    free = [style for style in OTHERS if style not in {USUAL[name] for name in names if name in USUAL}]
    others = [name for name in names if name not in USUAL]
    taken = {name: free[number % len(free)] for number, name in enumerate(others)}
    return {name: USUAL.get(name) or taken[name] for name in names}


def curve_styles(labels: Sequence[str], models: Sequence[Model]) -> dict[str, Style]:
    """Styles for free labels: `PoSE, N = 2` looks like the model titled PoSE unless another label does."""
    by_model = styles([model.name for model in models])
    given: dict[str, Style] = {}
    for label in labels:
        for model in models:
            names = (model.name.casefold(), model.title.casefold())
            if label.casefold().startswith(names) and by_model[model.name] not in given.values():
                given[label] = by_model[model.name]
                break
    rest = [style for style in OTHERS if style not in given.values()] or list(OTHERS)
    left = [label for label in labels if label not in given]
    return given | {label: rest[number % len(rest)] for number, label in enumerate(left)}


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> Figure:
    """An empty figure on an Agg canvas; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def new_axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, horizontal grid lines and no box."""
    figure = new_figure()
    axes = figure.add_subplot()
    label_axes(axes, x_label, y_label)
    return figure, axes


def label_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Label a pair of axes, and give it horizontal grid lines and no box."""
    axes.set_xlabel(x_label, fontsize=TEXT, color=INK)
    axes.set_ylabel(y_label, fontsize=TEXT, color=INK)
    axes.tick_params(labelsize=SMALL, colors=INK, which="both", length=3, width=0.8)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)


def mark_lengths(axes: Axes, lengths: dict[str, int]) -> None:
    """Thin vertical lines at named lengths inside the axes, named above them; equal lengths share a line."""
    low, high = axes.get_xlim()
    inside: dict[int, list[str]] = {}
    for word, length in lengths.items():
        if low <= length <= high:
            inside.setdefault(length, []).append(word)
    shares = {length: math.log(length / low) / math.log(high / low) for length in sorted(inside)}
    near = len(shares) == 2 and max(shares.values()) - min(shares.values()) < 0.4
    for length, share in shares.items():
        axes.axvline(length, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.5)
        align = "right" if share > 0.7 else "left" if share < 0.2 else "center"
        if near:  # the two names grow away from each other
            align = "right" if share == min(shares.values()) else "left"
        axes.annotate(
            " = ".join(inside[length]),
            (length, 1.0),
            xytext=(0, 3),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha=align,
            va="bottom",
            fontsize=SMALL - 0.5,
            color=MUTED,
        )


def add_legend(
    axes: Axes, handles: Sequence[Line2D], titles: Sequence[str], width: int = LEGEND_WIDTH
) -> None:
    """A legend above the axes, where it hides nothing, in as few rows of `width` characters as it needs."""
    figure = axes.get_figure(root=True)
    if len(titles) < 1 or figure is None:
        return
    titles = [cut(title, width - 14) for title in titles]
    per_row = max(1, width // (max(map(len, titles)) + 7))
    rows = math.ceil(len(titles) / per_row)
    legend = figure.legend(
        handles=list(handles),
        labels=[f"series {number}" for number in range(len(titles))],
        loc="outside upper center",
        ncols=math.ceil(len(titles) / rows),
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        handlelength=3.4,
        columnspacing=1.6,
    )
    # Set afterwards: a title is no mathtext, and may begin with the underscore that would hide it.
    for text, title in zip(legend.get_texts(), titles, strict=True):
        text.set_parse_math(False)
        text.set_text(title)
