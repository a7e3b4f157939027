"""Figures of what `search.py` found, PNG and SVG; those for which there are too few lines are named.

    cd benchmarks/smollm2
    python figure.py results/{first,second}.jsonl --output ../../docs/results

Readable without colour: series differ in marker and dash. One look for each variant in all figures.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter
from runs import APART, Run, grid, load, of_grid

from skipwise.report.figures import Line, draw
from skipwise.report.scales import perplexity_axis, token_axis
from skipwise.report.style import (
    BROWN,
    DASH_DOT_DOT,
    GRID,
    INK,
    LONG,
    MUTED,
    PAPER,
    PURPLE,
    SKY,
    SMALL,
    SOLID,
    USUAL,
    Style,
    add_legend,
    label_axes,
    mark_lengths,
    new_figure,
)
from skipwise.report.words import length_label

Found = dict[str, Run]
FULL = {"32,768": Style(BROWN, "X", LONG), "131,072": Style(PURPLE, "v", DASH_DOT_DOT)}
VARIANTS = {
    "untouched": ("untouched", USUAL["untouched"]),
    "interpolated, untrained": ("interpolated only", USUAL["interpolated"]),
    "contiguous control": ("contiguous rows", USUAL["contiguous"]),
    "full-length, rows of 32,768": ("full-length 32k", FULL["32,768"]),
    "full-length, rows of 131,072": ("full-length 128k", FULL["131,072"]),
    "PoSE, N = 2": ("PoSE", USUAL["pose"]),
    "flagship": ("the recipe", Style(SKY, "P", SOLID)),
}
"""Name in the grids -> what the figure calls it, and its look."""
UNTRAINED = ("untouched", "interpolated, untrained")


def main() -> None:
    """Draw what can be drawn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("files", nargs="+", type=Path, help="of search.py")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the figures")
    options = parser.parse_args()
    runs = load(options.files)
    options.output.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "skipwise"  # the same file again
    for drawing in (perplexity, passkey, other, cost, steps):
        figure = drawing(runs)
        if figure is None:
            print(f"smollm2-{drawing.__name__}: too few lines")
            continue
        figure.savefig(options.output / f"smollm2-{drawing.__name__}.png", dpi=160)
        figure.savefig(options.output / f"smollm2-{drawing.__name__}.svg", metadata={"Date": None})


def variants(runs: Sequence[Run], has: Callable[[Run], object]) -> Found:
    """The variants that were measured, in the order in which they are drawn."""
    found = of_grid(runs, grid("table1")) | of_grid(runs, grid("flagship"))
    return {name: found[name] for name in VARIANTS if name in found and has(found[name])}


def line(name: str, points: dict[float, float]) -> Line:
    """One series of a variant."""
    title, style = VARIANTS[name]
    return Line(title=title, style=style, x=tuple(points), y=tuple(points.values()))


def perplexity(runs: Sequence[Run]) -> Figure | None:
    """Perplexity by position, each bucket at its middle; only of runs that read the same number of books."""
    found = variants(runs, lambda run: run.buckets)
    books = statistics.mode(run.books for run in found.values()) if found else 0
    found = {name: run for name, run in found.items() if run.books == books}
    lines = [
        line(name, {end * (0.75 if end > 512 else 0.5): value for end, value in run.buckets.items()})
        for name, run in found.items()
    ]
    if len(lines) < 2:
        return None
    figure = new_figure(6.6, 4.2)
    axes = figure.add_subplot()
    label_axes(axes, "position in the novel (tokens)", "perplexity")
    token_axis(axes, [x for each in lines for x in each.x])
    every = [y for each in lines for y in each.y]
    trained = [y for name, run in found.items() if name not in UNTRAINED for y in run.buckets.values()]
    perplexity_axis(axes, [*trained, min(every), max(every)])  # linear where the trained ones are
    mark_lengths(axes, {"window, 8k": 8192})
    add_legend(axes, draw(axes, lines), [each.title for each in lines], width=70)
    return figure


def passkey(runs: Sequence[Run]) -> Figure | None:
    """Keys found by length."""
    found = variants(runs, lambda run: run.passkey)
    lines = [
        line(name, {length: 100 * right / asked for length, (right, asked) in run.passkey.items()})
        for name, run in found.items()
    ]
    if len(lines) < 2:
        return None
    figure = new_figure(6.6, 3.8)
    axes = figure.add_subplot()
    prompts = sorted({asked for run in found.values() for _, asked in run.passkey.values()})
    of = " or ".join(map(str, prompts))
    label_axes(axes, "prompt (tokens)", f"keys found, of {of} prompts (%)")
    shares(axes)
    token_axis(axes, [x for each in lines for x in each.x])
    mark_lengths(axes, {"window": 8192})
    add_legend(axes, draw(axes, lines), [each.title for each in lines], width=70)
    return figure


def shares(axes: Axes) -> None:
    """A y axis in %."""
    axes.set_ylim(-4, 104)
    axes.set_yticks(range(0, 101, 20))


def other(runs: Sequence[Run]) -> Figure | None:
    """Change of perplexity on other text by kind, at 2,048 and 8,192 tokens; untouched is the line at 0."""
    found = variants(runs, lambda run: run.changes)
    found = {name: run for name, run in found.items() if name not in UNTRAINED}
    kinds = sorted({kind for run in found.values() for kind in run.changes})
    kinds.sort(key=lambda kind: kind == APART)
    if not found:
        return None
    figure = new_figure(7.6, 1.6 + 0.42 * len(kinds))
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    for axes, length in zip(panels, (2048, 8192), strict=True):
        label_axes(axes, f"perplexity at {length:,} tokens, change (%)", "")
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", color=GRID, linewidth=0.8)
        axes.axvline(0, color=INK, linewidth=1.0, zorder=0.6)
    handles = [dots(panels, number, found, kinds) for number in range(len(found))]
    panels[0].set_yticks(range(len(kinds)), kinds)
    panels[0].invert_yaxis()
    panels[0].annotate(
        "untouched",
        (0, 1.0),
        xytext=(0, 3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=SMALL - 0.5,
        color=MUTED,
    )
    add_legend(panels[0], handles, [VARIANTS[name][0] for name in found], width=90)
    return figure


def dots(panels: Sequence[Axes], number: int, found: Found, kinds: Sequence[str]) -> Line2D:
    """The marks of one variant, a little apart from the others'; what the legend shows of it."""
    name, run = list(found.items())[number]
    style, apart = VARIANTS[name][1], 0.6 * ((number + 0.5) / len(found) - 0.5)
    for place, axes in enumerate(panels):
        at = {
            row + apart: 100 * run.changes[kind][place]
            for row, kind in enumerate(kinds)
            if len(run.changes.get(kind, [])) > place
        }
        (handle,) = axes.plot(list(at.values()), list(at), linestyle="none", marker=style.marker)
        handle.set(color=style.color, markersize=6.5, markeredgecolor=PAPER, markeredgewidth=0.5)
    return handle


def cost(runs: Sequence[Run]) -> Figure | None:
    """Perplexity of the last bucket against seconds of training; each point is a run, its steps beside it."""
    table1 = of_grid(runs, grid("table1"))
    found = {**of_grid(runs, grid("steps")), **of_grid(runs, grid("cost")), **table1}
    pose = [run for name, run in found.items() if name.endswith("steps") or name == "PoSE, N = 2"]
    series = {"PoSE": [run for run in pose if run.line["sampler"] == "pose"]}
    for rows in FULL:
        series[f"full-length {rows}"] = [
            run for name, run in found.items() if name.startswith("full-length") and rows in name
        ]
    series = {name: list({id(run): run for run in mine}.values()) for name, mine in series.items() if mine}
    if len(series) < 2:
        return None
    figure = new_figure(6.6, 4.2)
    axes = figure.add_subplot()
    label_axes(axes, "seconds of training on one GPU (beside the points: steps)", "perplexity, last bucket")
    axes.set_xscale("log")
    lines = [curve(axes, name, mine) for name, mine in series.items()]
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(0.07, 0.1)
    add_legend(axes, draw(axes, lines), [each.title for each in lines], width=90)
    return figure


def curve(axes: Axes, name: str, mine: Sequence[Run]) -> Line:
    """One series of `cost`, its steps written beside it: PoSE's below, the others' above."""
    style = FULL.get(name.removeprefix("full-length "), USUAL["pose"])
    below = name == "PoSE"
    memory = max(run.line.get("training_memory_gib", math.nan) for run in mine)
    points = sorted((run.line["train_seconds"], run.last, run.line["steps"]) for run in mine)
    for seconds, value, count in points:
        shift, align = ((-5, -4), ("right", "top")) if below else ((5, 4), ("left", "bottom"))
        where = {"xytext": shift, "textcoords": "offset points", "ha": align[0], "va": align[1]}
        axes.annotate(str(count), (seconds, value), fontsize=SMALL, color=style.color, **where)
    x, y, _ = zip(*points, strict=True)
    return Line(title=f"{name}, {memory:.0f} GiB", style=style, x=x, y=y)


def steps(runs: Sequence[Run]) -> Figure | None:
    """Perplexity and keys found after so many steps, each point a run of its own."""
    found = {run.line["steps"]: run for run in of_grid(runs, grid("steps")).values()}
    if len(found) < 2:
        return None
    figure = new_figure(7.6, 3.6)
    left, right = figure.subplots(1, 2)
    bought = {
        "last bucket": ({count: run.last for count, run in found.items()}, USUAL["pose"]),
        "the same tokens, 8k window": (
            {count: run.near for count, run in found.items()},
            USUAL["contiguous"],
        ),
    }
    keys = {
        f"passkey at {length_label(length)}": (by_steps(found, length), style)
        for length, style in ((16_384, FULL["131,072"]), (131_072, FULL["32,768"]))
    }
    handles, titles = [], []
    for axes, series, label in ((left, bought, "perplexity"), (right, keys, "keys found (%)")):
        label_axes(axes, "optimizer steps", label)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(list(found)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(list(found), [str(count) for count in found])
        lines = [
            Line(title=title, style=style, x=tuple(points), y=tuple(points.values()))
            for title, (points, style) in series.items()
            if points
        ]
        handles += draw(axes, lines)
        titles += [each.title for each in lines]
    shares(right)
    add_legend(left, handles, titles, width=90)
    return figure


def by_steps(found: dict[int, Run], length: int) -> dict[int, float]:
    """Keys found at a length, in %."""
    cells = {count: run.passkey[length] for count, run in found.items() if length in run.passkey}
    return {count: 100 * right / asked for count, (right, asked) in cells.items()}


if __name__ == "__main__":
    main()
