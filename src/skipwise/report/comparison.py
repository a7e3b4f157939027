"""Several `scores.json` -> a folder that compares their models: tables, figures, page, plain values."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from skipwise.errors import InputError
from skipwise.files import write_json, write_text
from skipwise.report.compare import Comparison, compare
from skipwise.report.difference_grids import difference_grids
from skipwise.report.grids import all_grids
from skipwise.report.inputs import run_of
from skipwise.report.merge import read_all
from skipwise.report.tables import markdown_table, terminal_tables
from skipwise.scores import FILE


def compare_files(
    paths: Sequence[Path], output: Path, baseline: str | None = None, *, seed: int = 0
) -> Comparison:
    """The models of these files against ``baseline`` (None: the first).

    Raises InputError, also for an ``output`` that would overwrite one of them.
    """
    if any((path / FILE if path.is_dir() else path).resolve() == (output / FILE).resolve() for path in paths):
        raise InputError(
            f"--output {output}: holds scores to compare, and would lose them: name another folder"
        )
    return compare(read_all(paths), baseline, seed=seed)


def comparison_tables(comparison: Comparison) -> list[Table]:
    """For a terminal of 80 columns: the differences, or of a single model its scores."""
    grids = difference_grids(comparison) or all_grids(comparison.scores, comparison.models)
    return [table for grid in grids if grid.brief for table in terminal_tables(grid)]


def comparison_markdown(comparison: Comparison) -> str:
    """The differences, then the scores, then the notes."""
    grids = [*difference_grids(comparison), *all_grids(comparison.scores, comparison.models)]
    notes = "\n".join(f"- {note}" for note in comparison.notes)
    return "\n\n".join([*map(markdown_table, grids), *filter(None, [notes])]) + "\n"


def write_comparison(comparison: Comparison, folder: Path, command: str = "") -> Path:
    """Writes scores.json, comparison.json, comparison.md, figures/ and report.html; returns the page."""
    from skipwise.report.difference_plots import difference_plots  # late: matplotlib takes a second
    from skipwise.report.page import Extra, write_page

    comparison.scores.write(folder / FILE)
    write_json(folder / "comparison.json", comparison.json())
    write_text(folder / "comparison.md", comparison_markdown(comparison))
    names = [model.title for model in comparison.models]
    run = run_of(comparison.scores, title=f"Comparison of {', '.join(names)}")
    if command:
        run = replace(run, command=f"{command}\n{run.command}".strip())
    extra = Extra(
        lead=_lead(comparison),
        grids=tuple(difference_grids(comparison)),
        notes=comparison.notes,
        plots=tuple(difference_plots(comparison)),
    )
    return write_page(folder, run, comparison.scores, extra)


def _lead(comparison: Comparison) -> tuple[str, ...]:
    """How many differences are more than chance, in which direction, model by model."""
    first, *others = comparison.models
    sentences = []
    for model in others:
        own = [each for each in comparison.differences if each.model == model.name]
        sure = [each for each in own if each.interval is not None and each.interval.excludes_zero]
        better = sum((each.estimate < 1) if each.ratio else (each.estimate > 0) for each in sure)
        if own:
            sentences.append(
                f"{model.title} against {first.title}: {better} of {len(own)} scores better, "
                f"{len(sure) - better} worse, {len(own) - len(sure)} with no difference that is sure at 95 %."
            )
    return tuple(sentences)
