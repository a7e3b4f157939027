"""Coverage of relative distances by samplers -> JSON, a table for the terminal, one figure of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from skipwise.data.coverage import Coverage
from skipwise.data.until_seen import UntilSeen
from skipwise.errors import InputError
from skipwise.report.inputs import Model
from skipwise.report.words import MISSING, length_label

if TYPE_CHECKING:  # matplotlib takes a second to import, and a table needs none of it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
"""Samplers beside each other in a terminal of 80 columns."""

CURVES = 7
"""Lines that one figure can tell apart: `skipwise.report.style` has as many looks."""

_USUAL = [Model(name="pose", title="PoSE"), Model(name="contiguous", title="Contiguous")]
"""They look in this figure as they do in a run's report."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One sampler's coverage; lengths in tokens."""

    title: str
    train_length: int
    target_length: int
    coverage: Coverage
    until_seen: UntilSeen
    times: int  # how often `until_seen` wants every distance to be seen


def coverage_json(result: Result, stride: int = 1) -> dict[str, Any]:
    """Plain values, for distances 1, 1 + stride, ..; ``error`` is 0 where exact, None is what is not known.

    ``examples_until_seen`` has None throughout, but ``never: true``, if some distance is never covered.
    """
    numbers = {name: None if number is None else round(number, 6) for name, number in _wait(result).items()}
    never = result.until_seen.lower == math.inf
    return {
        "sampler": result.title,
        "train_length": result.train_length,
        "target_length": result.target_length,
        "exact": result.coverage.exact,
        "examples_until_seen": {"times": result.times, "never": never, **numbers},
        "distance": list(range(1, result.target_length, stride)),
        "probability": result.coverage.probability[::stride].tolist(),
        "error": result.coverage.error[::stride].tolist(),
    }


def coverage_tables(results: Sequence[Result]) -> list[Table]:
    """The samplers as columns, four in a table; all of one train and target length."""
    return [_table(results[start : start + COLUMNS]) for start in range(0, len(results), COLUMNS)]


def _table(results: Sequence[Result]) -> Table:
    first = results[0]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, title_justify="left")
    table.title = Text("Probability that one example covers a relative distance")
    table.min_width = len(table.title)
    table.add_column("distance (tokens)", no_wrap=True)
    for result in results:
        table.add_column(Text(result.title), justify="right")
    for distance in _telling(first.train_length, first.target_length):
        values = [_probability(result.coverage.probability[distance - 1]) for result in results]
        note = " (train length)" if distance == first.train_length else ""
        table.add_row(length_label(distance) + note, *values)
    table.add_section()
    summaries = [_summary(result) for result in results]
    for name in summaries[0]:
        table.add_row(name, *(summary[name] for summary in summaries))
    return table


def _telling(train_length: int, target_length: int) -> list[int]:
    """Quarters of the train length, its doublings, and the largest distance."""
    quarters = [train_length * part // 4 for part in (1, 2, 3)]
    doublings = [train_length * 2**i for i in range((target_length // train_length).bit_length())]
    shown = {each for each in (*quarters, *doublings) if 1 <= each < target_length}
    return sorted(shown | {target_length - 1})


def _summary(result: Result) -> dict[str, str]:
    """Row names and cells of the lower half of the table."""
    far = result.coverage.probability[result.train_length - 1 :]
    low, high = far.min(initial=1.0), far.max(initial=0.0)
    # Where it is flat but for rounding, the nearest distance.
    where = result.train_length + int(np.argmax(far <= low * (1 + 1e-9))) if len(far) else None
    error, wait = result.coverage.error.max(initial=0.0), _wait(result)
    mean = "never" if result.until_seen.lower == math.inf else _count(wait["mean"])
    times = {1: "once", 2: "twice"}.get(result.times, f"{result.times:,} times")
    return {
        "standard error at most": "exact" if result.coverage.exact else _probability(error),
        "lowest from there on": MISSING if where is None else _probability(low),
        "  at distance": MISSING if where is None else f"{where:,}",
        "  highest / lowest": _count(high / low) if where is not None and low > 0 else MISSING,
        f"examples until all\n  were seen {times}": mean,
        "  standard error": _count(wait["error"]),
        "  at least": _count(wait["at_least"]),
        "  at most": _count(wait["at_most"]),
    }


def _wait(result: Result) -> dict[str, float | None]:
    """What is known of the examples until all is seen; nothing if some distance never is."""
    wait = result.until_seen
    known = {"mean": wait.mean, "error": wait.error, "at_least": wait.lower, "at_most": wait.upper}
    return dict.fromkeys(known) if wait.lower == math.inf else known


def _probability(value: float) -> str:
    """0.9995, 7e-05, and 1 only for 1."""
    if 0.99995 < value < 1:
        return ">0.9999"
    return f"{value:.4f}".rstrip("0").rstrip(".") if value >= 0.01 or value == 0 else f"{value:.2g}"


def _count(value: float | None) -> str:
    """14,337 or 21.1; a dash for what is not known."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def coverage_figure(results: Sequence[Result]) -> Figure:
    """Probability by distance, one line a sampler; all of one train and target length.

    Distances on a linear axis, as most of them lie beyond the train length; probabilities on a logarithmic
    one that ends in 0. Raises InputError for more samplers than a figure can tell apart.
    """
    from skipwise.report import style  # brings matplotlib

    if len(results) > CURVES:
        raise InputError(f"{len(results)} samplers in one figure: at most {CURVES} can be told apart")
    figure, axes = style.new_axes("relative distance (tokens)", "probability that one example covers it")
    figure.set_size_inches(7.2, 4.4)
    at = _drawn_distances(results[0].train_length, results[0].target_length)
    looks = style.curve_styles([result.title for result in results], _USUAL)
    handles = []
    for number, result in enumerate(results):
        look = looks[result.title]
        (line,) = axes.plot(at, result.coverage.probability[at - 1], color=look.color, linestyle=look.dash)
        line.set(linewidth=1.8, marker=look.marker, markersize=6, markeredgecolor=style.PAPER)
        line.set_markevery((0.12 * (number + 0.5) / len(results), 0.12))  # of the diagonal, so not on top
        line.set(markeredgewidth=0.7, zorder=2 + 0.1 * number)
        handles.append(line)
    _scale(axes, results)
    style.add_legend(axes, handles, [_with_error(result) for result in results], width=84)
    return figure


def _drawn_distances(train_length: int, target_length: int) -> NDArray[np.int64]:
    """Enough distances for a smooth line: closer together at the ends, where it is steep."""
    steep = np.geomspace(1, target_length, 300)
    wanted = [steep, np.linspace(1, target_length, 1500), target_length - steep]
    distances = np.unique(np.concatenate([*wanted, [train_length - 1, train_length]]).astype(np.int64))
    return distances[(distances >= 1) & (distances < target_length)]


def _scale(axes: Axes, results: Sequence[Result]) -> None:
    from matplotlib.ticker import NullLocator

    from skipwise.report.style import MUTED, SMALL

    train_length, target_length = results[0].train_length, results[0].target_length
    axes.set_xlim(0, 1.005 * target_length)
    step = 2 ** max(0, round(math.log2(target_length / 8)))
    axes.set_xticks(range(0, target_length + 1, step))
    axes.xaxis.set_major_formatter(lambda value, _: length_label(value))
    positive = np.concatenate([result.coverage.probability for result in results])
    lowest = positive[positive > 0].min(initial=0.1)
    decades = max(1, math.floor(-math.log10(lowest)))
    axes.set_yscale("symlog", linthresh=10.0**-decades, linscale=0.6)
    axes.set_ylim(0, 1.25)
    axes.set_yticks([0, *(10.0**-power for power in range(decades, -1, -1))])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axvline(train_length, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.5)
    near = train_length < target_length / 2
    axes.annotate(
        f"train length {length_label(train_length)}",
        (train_length, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="left" if near else "right",
        va="bottom",
        fontsize=SMALL,
        color=MUTED,
    )


def _with_error(result: Result) -> str:
    if result.coverage.exact:
        return result.title
    return f"{result.title} ± {_probability(result.coverage.error.max())}"
