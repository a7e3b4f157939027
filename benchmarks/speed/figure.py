"""Figures of what `run.py` found: the paper's Figure 3, and where the time of a step goes. PNG and SVG.

    cd benchmarks/speed
    python figure.py results/{first,second,third,fourth}.json --output ../../docs/results

Readable without colour: series differ in marker and dash, parts in hatching, and both are named in place.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator
from reading import Found, read

from skipwise.report.style import INK, SMALL, USUAL, Style, add_legend, label_axes, new_figure

_SERIES = {"PoSE": USUAL["pose"], "full": USUAL["contiguous"]}
_TITLES = {"PoSE": "PoSE, rows of 2,048 tokens", "full": "rows of the full length"}
_BARS = {
    "7b-ours": "LLaMA-7B shape, bf16",
    "7b-fp8-rowwise": "LLaMA-7B shape, float8",
    "135m-8k-plain": "SmolLM2 shape, plain Trainer",
    "135m-8k-ours": "SmolLM2 shape, not compiled",
    "135m-8k-best": "SmolLM2 shape, as its recipe",
    "135m-2k-plain": "SmolLM2 shape, 2k rows, plain",
    "135m-2k-best": "SmolLM2 shape, 2k rows, recipe",
}
_PARTS = {
    "matrix products": (("matrix products",), "#0072b2", ""),
    "attention": (("attention",), "#56b4e9", "///"),
    "small operations, casts, loss": (
        ("element by element", "copies and casts", "copies between host and device, and fills", "loss"),
        "#e69f00",
        "...",
    ),
    "clipping, update": (("optimizer", "clipping"), "#009e73", "xxx"),
    "no kernel": ((), "#ffffff", ""),
}


def main() -> None:
    """Draw both figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("files", nargs="+", type=Path, help="of run.py")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the figures")
    options = parser.parse_args()
    cases, _, _ = read(options.files)
    options.output.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "skipwise"  # the same file again
    for name, drawn in (("speed-figure3", figure3(cases["figure3"]["points"])), ("speed-step", steps(cases))):
        drawn.savefig(options.output / f"{name}.png", dpi=160)
        drawn.savefig(options.output / f"{name}.svg", metadata={"Date": None})


def figure3(points: list[dict[str, Any]]) -> Figure:
    """Memory and seconds of a step of 131,072 tokens over the length; hollow: activations computed again."""
    figure = new_figure(9.6, 3.9)
    left, right = figure.subplots(1, 2)
    for axes, key, label in ((left, "gib", "GPU memory (GiB)"), (right, "seconds", "seconds a step")):
        label_axes(axes, "target length (tokens)", label)
        for kind, size in (("full", 8.0), ("PoSE", 4.5)):  # the small marks over the large ones
            series(axes, [each for each in points if each["rows"] == kind], key, _SERIES[kind], size)
        lengths = sorted({each["length"] for each in points})
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(lengths))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(lengths, [short(each) for each in lengths])
    left.set_ylim(0, 140)
    right.set_ylim(0, 55)
    handles = [mark(style, filled=True) for style in _SERIES.values()]
    again = mark(_SERIES["full"], filled=False)
    add_legend(left, [*handles, again], [*_TITLES.values(), "the same, gradient checkpointing"], width=120)
    return figure


def series(axes: Axes, points: list[dict[str, Any]], key: str, style: Style, size: float) -> None:
    """One line; of a length that was measured twice, both marks."""
    points = sorted((each for each in points if key in each), key=lambda each: each["length"])
    dashes = {"color": style.color, "linestyle": style.dash, "linewidth": 1.6}
    axes.plot([each["length"] for each in points], [each[key] for each in points], **dashes)
    for each in points:
        face = "#ffffff" if each["checkpointing"] else style.color
        marker = {"marker": style.marker, "markersize": size, "markeredgecolor": style.color}
        axes.plot(each["length"], each[key], linestyle="", markerfacecolor=face, **marker)


def mark(style: Style, *, filled: bool) -> Any:
    """What the legend shows of a series."""
    (line,) = Axes(Figure(), (0, 0, 1, 1)).plot(
        [],
        [],
        color=style.color,
        linestyle=style.dash,
        marker=style.marker,
        markerfacecolor=style.color if filled else "#ffffff",
    )
    return line


def short(length: int) -> str:
    """4k, 1M."""
    return f"{length >> 20}M" if length >= 1 << 20 else f"{length >> 10}k"


def steps(cases: Found) -> Figure:
    """The share of a step that each part takes, one bar a case."""
    figure = new_figure(9.6, 4.2)
    axes = figure.add_subplot()
    label_axes(axes, "share of a step (%)", "")
    axes.grid(visible=False, axis="y")
    for place, name in enumerate(_BARS):
        at = 0.0
        for kinds, color, hatch in _PARTS.values():
            share = part(cases[name], kinds)
            edge = {"edgecolor": INK, "linewidth": 0.7}
            axes.barh(place, share, left=at, height=0.62, color=color, hatch=hatch, **edge)
            if share >= 4:
                box = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 1.2}
                text = {"ha": "center", "va": "center", "fontsize": SMALL, "color": INK}
                axes.text(at + share / 2, place, f"{share:.0f}", bbox=box, **text)
            at += share
    axes.set_yticks(range(len(_BARS)), [f"{text}\n{took(cases[name])}" for name, text in _BARS.items()])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.tick_params(axis="y", length=0)
    patches = [Patch(facecolor=c, hatch=h, edgecolor=INK, linewidth=0.7) for _, c, h in _PARTS.values()]
    figure.legend(
        patches,
        list(_PARTS),
        loc="outside upper center",
        ncols=len(_PARTS),
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
    )
    return figure


def part(case: dict[str, Any], kinds: tuple[str, ...]) -> float:
    """Percent of the step's time; without kinds: the time without a kernel."""
    if not kinds:
        return 100 * float(case["idle"])
    total = sum(case["parts_ms"].values())
    return 100 * (1 - float(case["idle"])) * sum(case["parts_ms"].get(kind, 0) for kind in kinds) / total


def took(case: dict[str, Any]) -> str:
    """Seconds and tokens/s, not under the profiler."""
    return f"{case['step_seconds']:.2f} s, {case['tokens_per_second']:,.0f} tokens/s"


if __name__ == "__main__":
    main()
