"""Line charts: scores by length or position, coverage, training. Contract: no data, no figure.

Lines keep one style a model over all figures. Values that no axis can show (infinite perplexities) sit as
arrow heads on the upper edge of the axes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from skipwise.report.inputs import Model, Run
from skipwise.report.scales import perplexity_axis, token_axis
from skipwise.report.style import (
    MUTED,
    PAPER,
    Style,
    add_legend,
    curve_styles,
    mark_lengths,
    new_axes,
    styles,
)
from skipwise.scores import Score


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series: `x` and `y` of equal length, `error` as long or empty."""

    title: str
    style: Style
    x: tuple[float, ...]
    y: tuple[float, ...]
    error: tuple[float, ...] = ()


def score_lines(scores: Sequence[Score], task: str, models: Sequence[Model], subtask: str = "") -> list[Line]:
    """One line a model that has scores of this task over all depths, by length; buckets at their middle."""
    looks = styles([model.name for model in models])
    lines = []
    for model in models:
        points = {
            (score.start + score.length) / 2 if score.start is not None else float(score.length): score
            for score in scores
            if (score.model, score.task, score.subtask, score.depth) == (model.name, task, subtask, None)
            and not math.isnan(score.value)
        }
        if points:
            x, rows = zip(*sorted(points.items(), key=lambda point: point[0]), strict=True)
            y, error = tuple(row.value for row in rows), tuple(row.stderr for row in rows)
            lines.append(Line(title=model.title, style=looks[model.name], x=x, y=y, error=error))
    return lines


def perplexity(lines: Sequence[Line], run: Run, x_label: str, y_label: str = "perplexity") -> Figure | None:
    """Perplexity against window length or position in tokens, one line a model."""
    finite = [value for line in lines for value in line.y if math.isfinite(value)]
    if not finite:
        return None
    figure, axes = new_axes(x_label, y_label)
    token_axis(axes, [x for line in lines for x in line.x])
    perplexity_axis(axes, finite)
    mark_lengths(axes, run.named_lengths)
    add_legend(axes, draw(axes, lines), [line.title for line in lines])
    return figure


def shares(lines: Sequence[Line], run: Run, y_label: str, threshold: float) -> Figure | None:
    """A share of 0 .. 1, in %, against length, with error bars of one standard error and a line to reach."""
    if not lines:
        return None
    figure, axes = new_axes("prompt length (tokens)", y_label)
    token_axis(axes, [x for line in lines for x in line.x])
    axes.set_ylim(-4, 104)
    axes.set_yticks(range(0, 101, 20))
    axes.axhline(100 * threshold, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.5)
    mark_lengths(axes, run.named_lengths)
    in_percent = [
        Line(
            title=line.title,
            style=line.style,
            x=line.x,
            y=tuple(100 * value for value in line.y),
            error=tuple(100 * value for value in line.error),
        )
        for line in lines
    ]
    add_legend(axes, draw(axes, in_percent), [line.title for line in lines])
    return figure


def coverage(run: Run, models: Sequence[Model]) -> Figure | None:
    """Probability that one training example holds a pair of tokens at a relative distance, by distance."""
    lines = coverage_lines(run, models)
    if not lines:
        return None
    figure, axes = new_axes("relative distance (tokens)", "probability of being covered")
    token_axis(axes, [x for line in lines for x in line.x])
    axes.set_ylim(-0.04, 1.04)
    mark_lengths(axes, {"training row": run.train_length, "target": run.target_length})
    add_legend(axes, draw(axes, lines, marks=8), [line.title for line in lines])
    return figure


def coverage_lines(run: Run, models: Sequence[Model]) -> list[Line]:
    """One line a sampler; distance 0 has no place on a log axis and is left out."""
    kept = [index for index, distance in enumerate(run.distance) if distance > 0]
    if not kept:
        return []
    looks, x = curve_styles(list(run.coverage), models), tuple(run.distance[index] for index in kept)
    return [
        Line(title=label, style=looks[label], x=x, y=tuple(values[index] for index in kept))
        for label, values in run.coverage.items()
    ]


def training_lines(run: Run, models: Sequence[Model]) -> list[Line]:
    """The loss of every optimizer step that was logged, one line a trained model."""
    looks = styles([model.name for model in models])
    return [
        Line(
            title=model.title,
            style=looks[model.name],
            x=tuple(row["step"] for row in run.training[model.name]),
            y=tuple(row["loss"] for row in run.training[model.name]),
        )
        for model in models
        if model.name in run.training
    ]


def training_loss(lines: Sequence[Line]) -> Figure | None:
    """The training loss by optimizer step; a long log as a moving mean, its steps faint."""
    if not lines:
        return None
    figure, axes = new_axes("optimizer step", "training loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    smooth = []
    for line in lines:
        width = max(1, len(line.y) // 40)
        if width > 1:
            axes.plot(line.x, line.y, color=line.style.color, alpha=0.3, linewidth=0.7)
        y = tuple(moving_mean(line.y, width))
        smooth.append(Line(title=line.title, style=line.style, x=line.x, y=y))
    add_legend(axes, draw(axes, smooth, marks=8), [line.title for line in lines])
    return figure


def moving_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean over `width` values, this one included, to either side; fewer near the ends."""
    return [float(np.mean(values[max(0, i - width + 1) : i + width])) for i in range(len(values))]


def draw(axes: Axes, lines: Sequence[Line], marks: int = 24) -> list[Line2D]:
    """Draws the lines with at most about `marks` markers each; returns the handles for a legend."""
    handles = []
    for number, line in enumerate(lines):
        # The first lines are drawn thicker and larger, so that they show beneath a line that hides them.
        extra = 1.1 * (len(lines) - 1 - number)
        y = [value if math.isfinite(value) else math.nan for value in line.y]
        every = max(1, math.ceil(len(y) / marks))
        (handle,) = axes.plot(
            line.x,
            y,
            color=line.style.color,
            linestyle=line.style.dash,
            linewidth=1.7 + 0.3 * extra,
            marker=line.style.marker,
            markersize=5.0 + extra,
            markevery=(every * number // max(1, len(lines)), every),
            markeredgecolor=PAPER,
            markeredgewidth=0.7,
            zorder=2 + 0.1 * number,
            clip_on=False,
        )
        handles.append(handle)
        _error_bars(axes, line, y)
        _off_the_scale(axes, line)
    return handles


def _error_bars(axes: Axes, line: Line, y: Sequence[float]) -> None:
    if any(line.error):
        axes.errorbar(
            line.x,
            y,
            yerr=line.error,
            fmt="none",
            ecolor=line.style.color,
            elinewidth=1.2,
            capsize=2.5,
            capthick=1.2,
        )


def _off_the_scale(axes: Axes, line: Line) -> None:
    above = [x for x, value in zip(line.x, line.y, strict=True) if value == math.inf]
    if above:
        edge = axes.get_xaxis_transform()
        (heads,) = axes.plot(
            above, [1.0] * len(above), transform=edge, linestyle="none", marker="^", clip_on=False
        )
        heads.set(color=line.style.color, markersize=8, gid="off-the-scale")
