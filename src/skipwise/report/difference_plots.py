"""A comparison -> figures of the differences. Contract: a full mark differs, a hollow one may not."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from skipwise.report.compare import Comparison, Difference, place
from skipwise.report.difference_grids import SECTION, change, difference_cell, group_title, groups
from skipwise.report.dots import Dots, dot_chart
from skipwise.report.inputs import Model
from skipwise.report.plots import Plot
from skipwise.report.scales import token_axis
from skipwise.report.style import INK, PAPER, Style, add_legend, new_axes, styles

HOLLOW = "bars: 95 % intervals; hollow: the two may be equal"


def difference_plots(comparison: Comparison) -> list[Plot]:
    """A figure of each group of differences."""
    found: list[Plot] = []
    for (task, subtask), rows in groups(comparison).items():
        label = change(comparison, task)
        title = group_title(comparison, task, subtask, rows)
        draw = _of_parts if subtask == "*" else _over_lengths
        axis = "ratio of perplexities" if rows[0].ratio else "change (percentage points)"
        figure = draw(comparison.models, rows, axis)
        if figure is not None:
            name = f"difference_{task}{'_by_task' if subtask == '*' else subtask and '_' + subtask}"
            found.append(
                Plot(
                    name=name if name.isidentifier() else f"difference_{len(found)}",
                    section=SECTION,
                    figure=figure,
                    caption=f"{title}, {label}; {HOLLOW}.",
                    alt=_described(title, label, comparison.models, rows),
                )
            )
    return found


def _over_lengths(models: Sequence[Model], rows: Sequence[Difference], label: str) -> Figure | None:
    """Differences by length, the models of one length beside each other."""
    known = [each for each in rows if math.isfinite(each.estimate)]
    if not known:
        return None
    figure, axes = new_axes("length (tokens)", label)
    shown = [model for model in models if any(each.model == model.name for each in known)]
    looks = styles([model.name for model in models])
    lengths = sorted({each.length for each in known})
    apart = [2 ** (0.12 * (number - (len(shown) - 1) / 2)) for number in range(len(shown))]
    token_axis(axes, [lengths[0] * min(*apart, 0.9), *lengths, lengths[-1] * max(*apart, 1.1)])
    handles = []
    for model, shift in zip(shown, apart, strict=True):
        own = [each for each in known if each.model == model.name]
        handles.append(_marks(axes, own, looks[model.name], shift))
    _value_axis(axes, known)
    add_legend(axes, handles, [model.title for model in shown])
    return figure


def _value_axis(axes: Axes, rows: Sequence[Difference]) -> None:
    """A line at no difference; ratios that are far from each other on a logarithmic axis."""
    ratio = rows[0].ratio
    axes.axhline(1.0 if ratio else 0.0, color=INK, linewidth=0.9, zorder=0.8)
    ends = [end for each in rows for end in (_drawn(each.estimate, ratio), *_ends(each))]
    if ratio and max(ends) > 4 * min(ends):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1.0,) if max(ends) > 100 * min(ends) else (1.0, 2.0, 5.0))
        )
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}".replace("e-0", "e-").replace("-", "−"))
    )


def _marks(axes: Axes, rows: Sequence[Difference], look: Style, shift: float) -> Line2D:
    for each in rows:
        x, y = each.length * shift, _drawn(each.estimate, each.ratio)
        low, high = _ends(each)
        axes.plot([x, x], [low, high], color=look.color, linewidth=1.4, solid_capstyle="butt")
        sure = each.interval is not None and each.interval.excludes_zero
        (mark,) = axes.plot([x], [y], linestyle="none", marker=look.marker, markersize=6, zorder=3)
        mark.set(markerfacecolor=look.color if sure else PAPER, gid="full" if sure else "hollow")
        mark.set(markeredgecolor=PAPER if sure else look.color, markeredgewidth=0.7 if sure else 1.2)
    return Line2D([], [], linestyle="none", marker=look.marker, markersize=6, color=look.color)


def _of_parts(models: Sequence[Model], rows: Sequence[Difference], label: str) -> Figure | None:
    """Differences by part of a task, from top to bottom."""
    names = {each.subtask: place(each) for each in rows}
    looks = styles([model.name for model in models])
    by_place = {(each.model, each.subtask): each for each in rows}
    series = []
    for model in models:
        own = [by_place.get((model.name, name)) for name in names]
        if any(own):
            ends = [(math.nan, math.nan) if each is None else _ends(each) for each in own]
            series.append(
                Dots(
                    title=model.title,
                    style=looks[model.name],
                    values=tuple(math.nan if each is None else 100 * each.estimate for each in own),
                    low=tuple(low for low, _ in ends),
                    high=tuple(high for _, high in ends),
                    hollow=tuple(
                        each is None or each.interval is None or not each.interval.excludes_zero
                        for each in own
                    ),
                )
            )
    return dot_chart(series, list(names.values()), label, line=0.0)


def _drawn(value: float, ratio: bool) -> float:
    return value if ratio else 100 * value


def _ends(each: Difference) -> tuple[float, float]:
    """The ends of the bar in the unit of the axis; the estimate itself where there is no interval."""
    low, high = each.bounds or (each.estimate, each.estimate)
    return _drawn(low, each.ratio), _drawn(high, each.ratio)


def _described(title: str, label: str, models: Sequence[Model], rows: Sequence[Difference]) -> str:
    parts = []
    for model in models:
        own = [each for each in rows if each.model == model.name]
        cells = [(place(each), difference_cell(each)) for each in own]
        words = [f"{where} {cell.text}{f' ({cell.note})' if cell.note else ''}" for where, cell in cells]
        if words:
            parts.append(f"{model.title}: {', '.join(words)}")
    return f"{title}, {label}. {'; '.join(parts)}."
