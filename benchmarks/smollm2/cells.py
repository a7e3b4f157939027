"""What stands in a cell of the tables, and the tables' Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from runs import Run

from skipwise.report.words import perplexity_text

Rows = Mapping[str, Run]
"""Name of a row -> what it shows."""


def ppl(value: float) -> str:
    """A perplexity, or nothing."""
    return perplexity_text(value) if not math.isnan(value) else ""


def percent(value: float) -> str:
    """A change in %, with its sign; from eleven times on, how many times; or nothing."""
    if not math.isfinite(value):
        return ""
    return f"{100 * value:+.1f}" if value < 10 else f"× {value + 1:,.0f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(each.replace('|', '/').replace(chr(10), ' ') for each in cells)} |" for cells in lines
    )
