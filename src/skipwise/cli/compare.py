"""``skipwise compare A B C``: the models of several `scores.json` against one of them, with intervals."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from skipwise.cli.reporting import one_line_errors


def compare(
    scores: Annotated[
        list[Path], typer.Argument(metavar="SCORES...", help="Folders with a scores.json, or such files.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for tables, figures and the page.")] = Path(
        "runs/compare"
    ),
    baseline: Annotated[
        str | None, typer.Option(help="Model that the others are compared with; default: the first.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compare models: each score against the baseline's, with a 95 % interval of the difference.

    Intervals are paired where both models were asked the same, so that 'better' means something.
    """
    with one_line_errors(debug=debug):
        from rich.console import Console

        from skipwise.report.comparison import compare_files, comparison_tables, write_comparison

        found = compare_files(scores, output, baseline, seed=seed)
        console = Console(highlight=False, markup=False)
        for table in comparison_tables(found):
            console.print(table)
            console.print()
        for note in found.notes:
            console.print(note)
        page = write_comparison(found, output, shlex.join(["skipwise", *sys.argv[1:]]))
        console.print()
        for what, path in (("Report", page), ("Tables", output / "comparison.md")):
            console.print(f"{what:<11}{path}", soft_wrap=True)
