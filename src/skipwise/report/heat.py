"""Heat maps: a share over two axes, one panel a model. Contract: every cell holds its number.

The colours run from light to dark, so that a grey print keeps their order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skipwise.report.inputs import Model
from skipwise.report.scales import FloatArray
from skipwise.report.style import INK, MUTED, PAPER, SMALL, TEXT, new_figure
from skipwise.report.words import MISSING, cut, length_label
from skipwise.scores import Score

# White text in a dark cell, a shade off PAPER: it stays white when the page turns dark.
CELL_WHITE, CELL_BLACK = "#fefefe", "#101418"


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Shares of 0 .. 1 by (model, column, row); nan or absent: not measured."""

    values: dict[tuple[str, int, float | str], float]
    columns: tuple[int, ...]
    """Lengths in tokens."""
    rows: tuple[float | str, ...]
    row_labels: tuple[str, ...]
    y_label: str

    def models(self, models: Sequence[Model]) -> list[Model]:
        """Those with a value."""
        return [model for model in models if any(name == model.name for name, _, _ in self.values)]


def depth_heat(scores: Sequence[Score], task: str, subtask: str = "") -> Heat:
    """By length and by where the key is hidden."""
    own = [
        score
        for score in scores
        if (score.task, score.subtask) == (task, subtask) and score.depth is not None
    ]
    rows = tuple(sorted({score.depth for score in own if score.depth is not None}))
    found: dict[tuple[str, int, float | str], float] = {
        (score.model, score.length, score.depth): score.value for score in own if score.depth is not None
    }
    return Heat(
        values=found,
        columns=tuple(sorted({length for _, length, _ in found})),
        rows=rows,
        row_labels=tuple(f"{100 * depth:.3g}" for depth in rows),
        y_label="depth of the key (%)",
    )


def task_heat(scores: Sequence[Score], task: str) -> Heat:
    """By length and by part of a task, in their order."""
    found: dict[tuple[str, int, float | str], float] = {
        (score.model, score.length, score.subtask): score.value
        for score in scores
        if score.task == task and score.subtask and score.depth is None
    }
    rows = tuple(dict.fromkeys(str(name) for _, _, name in found))
    return Heat(
        values=found,
        columns=tuple(sorted({length for _, length, _ in found})),
        rows=rows,
        row_labels=tuple(cut(name, 24) for name in rows),
        y_label="",
    )


def heat_map(heat: Heat, models: Sequence[Model]) -> Figure | None:
    """One panel a model that has a value, two beside each other, on equal axes."""
    shown = heat.models(models)
    if not shown:
        return None
    across = min(2, len(shown))
    down = math.ceil(len(shown) / across)
    labels = 0.07 * max(0, max(map(len, heat.row_labels)) - 4)
    width = max(4.3, 1.0 + labels + 0.46 * len(heat.columns))
    height = 1.0 + 0.29 * max(3, len(heat.rows))
    figure = new_figure(width * across, height * down)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, model in zip(panels, shown, strict=False):
        values = [[heat.values.get((model.name, x, y), math.nan) for x in heat.columns] for y in heat.rows]
        axes.set_title(cut(model.title, 40), fontsize=TEXT, color=INK, loc="left", parse_math=False)
        _panel(axes, 100 * np.array(values), heat)
    for axes in panels[len(shown) :]:
        axes.remove()
    return figure


def _panel(axes: Axes, percent: FloatArray, heat: Heat) -> None:
    axes.pcolormesh(
        np.ma.masked_invalid(percent), cmap="YlGnBu", vmin=0, vmax=100, edgecolors=PAPER, linewidth=1.5
    )
    axes.invert_yaxis()
    x, y = heat.columns, heat.row_labels
    axes.set_xticks([i + 0.5 for i in range(len(x))], [length_label(length) for length in x])
    every = 1 if isinstance(heat.rows[0], str) else math.ceil(len(y) / 11)
    axes.set_yticks([i + 0.5 for i in range(len(y))][::every], list(y)[::every], parse_math=False)
    axes.tick_params(labelsize=SMALL, colors=INK, length=0)
    axes.set_xlabel("prompt length (tokens)", fontsize=SMALL, color=INK)
    axes.set_ylabel(heat.y_label, fontsize=SMALL, color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for (row, column), value in np.ndenumerate(percent):
        missing = math.isnan(value)
        text = MISSING if missing else f"{value:.0f}"
        color = MUTED if missing else CELL_WHITE if value > 65 else CELL_BLACK
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=SMALL - 0.5, color=color)
