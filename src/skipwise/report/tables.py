"""Tables for a terminal of 80 columns, and in Markdown. Contract: nothing is lost but the ends of names."""

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from skipwise.report.grids import Cell, Grid
from skipwise.report.words import cut

TERMINAL_WIDTH = 80  # columns
NAME_WIDTH = 22  # columns; longer names of rows are cut with an ellipsis
HEADER_WIDTH = 16  # columns; the same of columns


def terminal_tables(grid: Grid) -> list[Table]:
    """The grid for a terminal: one table, or several if there are too many columns for one."""
    names = [cut(name, NAME_WIDTH) for name in grid.rows]
    headers = [cut(name, HEADER_WIDTH) for name in grid.columns]
    texts = [[_terminal_text(cell, grid.stacked) for cell in row] for row in grid.cells]
    room = TERMINAL_WIDTH - 2 - max(cell_len(name) for name in [grid.corner, *names])
    widths = [
        3 + max(cell_len(line) for text in (header, *column) for line in text.split("\n"))
        for header, column in zip(headers, zip(*texts, strict=True), strict=True)
    ]
    return [
        _terminal_table(grid, names, [headers[i] for i in part], [[row[i] for i in part] for row in texts])
        for part in _parts(widths, room)
    ]


def markdown_table(grid: Grid) -> str:
    """The grid as a Markdown table under its title; ends without a newline."""
    lines = [f"**{grid.title}**", "", _markdown_row([grid.corner, *grid.columns])]
    lines.append("|" + "|".join(["---", *["---:"] * len(grid.columns)]) + "|")
    for name, row in zip(grid.rows, grid.cells, strict=True):
        lines.append(_markdown_row([name, *map(_on_one_line, row)]))
    return "\n".join(lines)


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """Neighbouring columns that fit side by side; one too wide for the room stands alone."""
    parts: list[list[int]] = [[]]
    left = room
    for number, width in enumerate(widths):
        if width > left and parts[-1]:
            parts.append([])
            left = room
        parts[-1].append(number)
        left -= width
    return parts


def _on_one_line(cell: Cell) -> str:
    return f"{cell.text} ({cell.note})" if cell.note else cell.text


def _terminal_text(cell: Cell, stacked: bool) -> str:
    return f"{cell.text}\n{cell.note}" if stacked and cell.note else _on_one_line(cell)


def _terminal_table(grid: Grid, names: list[str], headers: list[str], texts: list[list[str]]) -> Table:
    table = Table(title=Text(grid.title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.min_width = min(TERMINAL_WIDTH, cell_len(grid.title))  # or the title would wrap
    table.add_column(grid.corner, no_wrap=True)
    for header in headers:
        table.add_column(Text(header), justify="right", no_wrap=True)
    for name, row in zip(names, texts, strict=True):
        # Text, not str: a model's name is no markup.
        table.add_row(Text(name), *map(Text, row))
    return table


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (" ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(escaped) + " |"
