"""Scores -> plain table rows, then a terminal table or Markdown. Contract: models are rows, lengths columns.

A `Grid` is the table before it has a form: HTML, terminal and Markdown all read the same cells, so a number
cannot differ between them. If a model was measured twice at one length, the later row wins (an evaluation
done again).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from skipwise.report.inputs import Model, Score

MISSING = "–"
TERMINAL_WIDTH = 80  # columns
NAME_WIDTH = 22  # columns; longer model names are cut with an ellipsis

TITLES = {
    "retrieval": "Retrieval (% of keys found)",
    "perplexity": "Perplexity, whole window",
    "perplexity_last_quarter": "Perplexity, last quarter of the window",
}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One task: `cells[row][column]` is the score of `models[row]` at `lengths[column]`, or None."""

    task: str
    models: tuple[Model, ...]
    lengths: tuple[int, ...]  # tokens, ascending
    cells: tuple[tuple[Score | None, ...], ...]

    @property
    def title(self) -> str:
        """What the numbers are, with their unit."""
        return TITLES.get(self.task, self.task)

    def text(self, row: int, column: int) -> str:
        """The cell as it is printed, without its unit."""
        score = self.cells[row][column]
        return MISSING if score is None else value_text(self.task, score.value)

    def best(self, column: int) -> float:
        """The best value of a column: the highest for retrieval, the lowest for perplexity; nan if none."""
        scores = [row[column] for row in self.cells]
        values = [score.value for score in scores if score is not None and math.isfinite(score.value)]
        if not values:
            return math.nan
        return max(values) if self.task.startswith("retrieval") else min(values)


def grid(scores: Sequence[Score], task: str, models: Sequence[Model]) -> Grid | None:
    """The table of one task, without models and lengths that have no score; None if nothing is left."""
    found = {(score.model, score.length): score for score in scores if score.task == task}
    if not found:
        return None
    lengths = tuple(sorted({length for _, length in found}))
    measured = tuple(model for model in models if any(name == model.name for name, _ in found))
    cells = tuple(tuple(found.get((model.name, length)) for length in lengths) for model in measured)
    return Grid(task=task, models=measured, lengths=lengths, cells=cells)


def length_label(tokens: float) -> str:
    """256, 512, 1k, 1.5k, 128k, 1M: k is 1,024 tokens; other lengths keep their digits."""
    for unit, size in (("M", 1024**2), ("k", 1024)):
        if tokens >= size and tokens * 2 % size == 0:
            return f"{tokens / size:g}{unit}"
    return f"{tokens:g}" if tokens < 1e5 else f"{tokens:.0f}"


def value_text(task: str, value: float) -> str:
    """A value at most six characters wide: retrieval in %, perplexity to about four digits."""
    if math.isnan(value):
        return "nan"
    if task.startswith("retrieval"):
        return f"{100 * value:.1f}".removesuffix(".0")
    if math.isinf(value):
        return "∞"
    if value >= 99_999.5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    digits = 2 if value < 99.995 else 1 if value < 999.95 else 0
    return f"{value:,.{digits}f}"


def terminal_tables(grid: Grid) -> list[Table]:
    """The grid for a terminal of 80 columns: one table, or several if there are too many lengths for one."""
    names = [cut(model.title, NAME_WIDTH) for model in grid.models]
    column_width = 2 + max(cell_len(text) for text in _texts(grid))
    room = TERMINAL_WIDTH - 4 - max(cell_len(name) for name in ["model", *names])
    count = max(1, room // column_width)
    starts = range(0, len(grid.lengths), count)
    return [
        _terminal_table(grid, names, range(start, min(start + count, len(grid.lengths)))) for start in starts
    ]


def markdown_table(grid: Grid) -> str:
    """The grid as a Markdown table under its title; ends without a newline."""
    lines = [f"**{grid.title}**", ""]
    lines.append(_markdown_row(["model", *map(length_label, grid.lengths)]))
    lines.append("|" + "|".join(["---", *["---:"] * len(grid.lengths)]) + "|")
    for row, model in enumerate(grid.models):
        values = [grid.text(row, column) for column in range(len(grid.lengths))]
        lines.append(_markdown_row([model.title, *values]))
    return "\n".join(lines)


def cut(text: str, width: int) -> str:
    """`text` on one line, ended by an ellipsis if it is longer than `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def titled(names: Sequence[str], titles: Mapping[str, str] | None) -> list[Model]:
    """Models for the names found in scores; `titles` (name -> title) gives the order and the words."""
    known = dict(titles or {})
    ordered = [*known, *(name for name in dict.fromkeys(names) if name not in known)]
    return [Model(name=name, title=known.get(name, name)) for name in ordered]


def _texts(grid: Grid) -> list[str]:
    rows, columns = range(len(grid.models)), range(len(grid.lengths))
    return [*map(length_label, grid.lengths), *(grid.text(row, column) for row in rows for column in columns)]


def _terminal_table(grid: Grid, names: list[str], columns: range) -> Table:
    table = Table(title=Text(grid.title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.min_width = min(TERMINAL_WIDTH, cell_len(grid.title))  # or the title would wrap
    table.add_column("model", no_wrap=True)
    for column in columns:
        table.add_column(length_label(grid.lengths[column]), justify="right", no_wrap=True)
    for row, name in enumerate(names):
        # Text, not str: a model's name is no markup.
        table.add_row(Text(name), *(Text(grid.text(row, column)) for column in columns))
    return table


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (" ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(escaped) + " |"
