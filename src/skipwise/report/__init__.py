"""A run folder's `scores.json` and `run.json` -> tables, figures and one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from skipwise.report.inputs import parse_scores
from skipwise.report.tables import Grid, grid, markdown_table, terminal_tables, titled

__all__ = ["markdown_tables", "score_tables", "write_report"]


def write_report(run: Path) -> Path:
    """Writes `report.html` and `figures/*.png` into the run folder; returns the path of the page.

    Raises InputError if `scores.json` or `run.json` is missing or not understood.
    """
    # Late, because matplotlib takes a second to import and a terminal table needs none of it.
    from skipwise.report.page import write_report as write

    return write(run)


def score_tables(scores: Sequence[Mapping[str, Any]], titles: Mapping[str, str] | None = None) -> list[Table]:
    """Retrieval and perplexity by length for an 80-column terminal, from the rows of `scores.json`.

    `titles` maps a model's name to what is printed for it, in display order. No scores: an empty list.
    """
    return [table for grid in _grids(scores, titles) for table in terminal_tables(grid)]


def markdown_tables(scores: Sequence[Mapping[str, Any]], titles: Mapping[str, str] | None = None) -> str:
    """The same tables as Markdown, ended by a newline; empty text without scores."""
    tables = [markdown_table(grid) for grid in _grids(scores, titles)]
    return "\n\n".join(tables) + "\n" if tables else ""


def _grids(scores: Sequence[Mapping[str, Any]], titles: Mapping[str, str] | None) -> list[Grid]:
    parsed = parse_scores(scores)
    models = titled([score.model for score in parsed], titles)
    found = [grid(parsed, task, models) for task in ("retrieval", "perplexity")]
    return [table for table in found if table is not None]
