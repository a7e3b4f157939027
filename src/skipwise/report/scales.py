"""The axes a figure is read by. Contract: chosen from the values to show, labelled in their unit."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from skipwise.report.style import MUTED, SMALL
from skipwise.report.words import length_label

FloatArray = npt.NDArray[np.float64]

LINEAR_SHARE = 2 / 3  # of the height of a split axis


def token_axis(axes: Axes, tokens: Sequence[float]) -> None:
    """A base-2 x axis over the given lengths, labelled 256, 1k, 4k at no more than nine powers of two."""
    low, high = min(tokens), max(tokens)
    powers = range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1)
    step = math.ceil(len(powers) / 9) or 1
    ticks = [2.0**power for power in powers][::-1][::step] or [low, high]
    axes.set_xscale("log", base=2)
    _ticks(axes, "x", ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: length_label(value)))
    margin = 1.25 if low == high else (high / low) ** 0.04
    axes.set_xlim(low / margin, high * margin)


def perplexity_axis(axes: Axes, values: Sequence[float]) -> float | None:
    """A y axis for finite perplexities: linear, log from a factor of eight on, both if a few explode.

    A model far past its window reaches 1e5 while the others differ by tenths. Then the lower part is
    linear, and the shaded part above the returned value is logarithmic and compressed; None: one scale
    serves all.
    """
    low, high = min(values), max(values)
    # Within four times the lower quartile a value is that of a working model.
    usual = max(value for value in values if value <= 4 * sorted(values)[len(values) // 4])
    if low > 0 and high > 8 * usual:
        return _split_axis(axes, low, usual, high)
    if low <= 0 or high < 8 * low:
        margin = 0.08 * (high - low) + 0.02 * high
        axes.set_ylim(max(0.0, low - margin), high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        return None
    span = high / low
    axes.set_yscale("log")
    axes.set_ylim(low / span**0.05, high * span**0.05)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 200 else (1.0,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    return None


def _split_axis(axes: Axes, low: float, usual: float, high: float) -> float:
    """Linear from `low` to just above `usual`, logarithmic from there to `high`; returns where they meet."""
    spread = max(usual - low, 0.1 * usual)
    bottom, split = max(0.0, low - 0.1 * spread), usual + 0.1 * spread
    slope = (split - bottom) / LINEAR_SHARE  # perplexity in one height of the axes
    rise = 1.1 * math.log(high / split) / (1 - LINEAR_SHARE)  # nats of perplexity in one height

    def forward(y: FloatArray) -> FloatArray:
        above = LINEAR_SHARE + np.log(np.maximum(y, split) / split) / rise
        return np.where(y <= split, (y - bottom) / slope, above)

    def inverse(share: FloatArray) -> FloatArray:
        above = split * np.exp(np.clip(share - LINEAR_SHARE, 0, 1) * rise)
        return np.where(share <= LINEAR_SHARE, bottom + share * slope, above)

    top = float(inverse(np.array(1.0)))
    axes.set_yscale("function", functions=(forward, inverse))
    axes.set_ylim(bottom, top)
    # Labels keep off the border of the two parts, where they would touch.
    lower = [
        tick for tick in MaxNLocator(5).tick_values(bottom, split) if bottom <= tick < split - 0.05 * slope
    ]
    first = math.floor(math.log10(split * math.exp(0.05 * rise))) + 1
    powers = [10.0**power for power in range(first, math.floor(math.log10(top)) + 1)]
    _ticks(axes, "y", [*lower, *powers[:: -max(1, math.ceil(len(powers) / 3))]])
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.axhspan(split, top, color=MUTED, alpha=0.1, linewidth=0, zorder=0)
    note = axes.text(0.01, 0.985, "log scale", transform=axes.transAxes, ha="left", va="top")
    note.set(fontsize=SMALL - 0.5, color=MUTED)
    return split


def _ticks(axes: Axes, which: str, values: Sequence[float]) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(sorted(values)))
    axis.set_minor_locator(NullLocator())


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:,.10g}"
