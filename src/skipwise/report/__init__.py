"""`scores.json`, and `run.json` where there is one -> tables, figures and one self-contained HTML page."""

from pathlib import Path

from rich.table import Table

from skipwise.report.grids import Grid, all_grids
from skipwise.report.inputs import models_of
from skipwise.report.tables import markdown_table, terminal_tables
from skipwise.scores import Scores

__all__ = ["markdown_tables", "score_tables", "write_report"]


def write_report(run: Path) -> Path:
    """Writes `report.html` and `figures/` (PNG, SVG) into the run folder; returns the path of the page.

    Raises InputError if `scores.json` is missing or not understood, or `run.json` is there and is not.
    """
    # Late, because matplotlib takes a second to import and a terminal table needs none of it.
    from skipwise.report.page import write_report as write

    return write(run)


def score_tables(scores: Scores) -> list[Table]:
    """The scores for an 80-column terminal, one table a task or more. No scores: an empty list."""
    return [table for grid in _brief(scores) for table in terminal_tables(grid)]


def markdown_tables(scores: Scores) -> str:
    """The same tables as Markdown, ended by a newline; empty text without scores."""
    tables = [markdown_table(grid) for grid in _brief(scores)]
    return "\n\n".join(tables) + "\n" if tables else ""


def _brief(scores: Scores) -> list[Grid]:
    return [grid for grid in all_grids(scores, models_of(scores)) if grid.brief]
