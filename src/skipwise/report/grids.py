"""Scores -> the cells of every table, before they have a form. Contract: a number is written once.

HTML, terminal and Markdown (`tables.py`, `page.py`) read the same `Grid`, so a number cannot differ between
them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from skipwise.report.inputs import Model
from skipwise.report.measures import (
    MEASURES,
    Measure,
    effective_length,
    no_shares,
    over_lengths,
    subtasks,
    title_of,
)
from skipwise.report.words import (
    MISSING,
    benchmark_title,
    length_label,
    perplexity_text,
    points_text,
)
from skipwise.scores import Score, Scores


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number as it is printed, without its unit."""

    text: str = MISSING
    note: str = ""
    """A change, an interval: what stands beside the number in every form."""
    error: str = ""
    """Its standard error, where there is room for it."""
    strong: bool = False
    """The best of its models, or a difference that excludes none."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table: `cells[row][column]`."""

    task: str
    section: str
    title: str
    corner: str
    """What the rows are."""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    lengths: tuple[int, ...] = ()
    """Of the first columns, tokens."""
    stacked: bool = False
    """In a terminal notes stand below their numbers."""
    brief: bool = True
    """Printed in a terminal, too."""


def all_grids(scores: Scores, models: Sequence[Model]) -> list[Grid]:
    """Every table there are scores for."""
    found: list[Grid] = []
    for task in MEASURES:
        if task == "benchmark":
            found += _benchmarks(scores, models)
        elif task != "perplexity_bucket":
            for subtask in subtasks(scores.scores, task) if task == "needle" else [""]:
                found += _by_length(scores, models, task, subtask)
        if task == "ruler":
            found += _ruler_tasks(scores, models)
    return found


def _by_length(scores: Scores, models: Sequence[Model], task: str, subtask: str) -> Iterator[Grid]:
    """Models as rows, lengths as columns; RULER's has the effective length as well."""
    measure = MEASURES[task]
    found = over_lengths(scores.scores, task, subtask)
    shown = [model for model in models if model.name in found]
    if not shown:
        return
    lengths = tuple(sorted({length for rows in found.values() for length in rows}))
    table = [[found[model.name].get(length) for length in lengths] for model in shown]
    best = [measure.best(score.value for score in column if score) for column in zip(*table, strict=True)]
    cells = [
        tuple(score_cell(measure, score, top) for score, top in zip(row, best, strict=True)) for row in table
    ]
    columns = tuple(map(length_label, lengths))
    if task == "ruler":
        columns += ("effective",)
        cells = [
            (*row, Cell(text=effective_label(list(found[model.name].values()))))
            for row, model in zip(cells, shown, strict=True)
        ]
    yield Grid(
        task=task,
        section=measure.section,
        title=title_of(scores, task, subtask),
        corner="model",
        rows=tuple(model.title for model in shown),
        columns=columns,
        cells=tuple(cells),
        lengths=lengths,
        brief=task != "perplexity_last_quarter",
    )


def effective_label(rows: Sequence[Score]) -> str:
    """``16k``, ``≥ 16k`` where no longer one was tested, ``< 4k`` where the shortest is not reached."""
    reached, longest = effective_length(rows)
    if not reached:
        return f"< {length_label(rows[0].length)}"
    return f"≥ {length_label(reached)}" if longest else length_label(reached)


def _ruler_tasks(scores: Scores, models: Sequence[Model]) -> Iterator[Grid]:
    """RULER's tasks as rows, models as columns, at the longest length."""
    rows = [score for score in scores.scores if score.task == "ruler" and score.subtask]
    if rows:
        longest = max(score.length for score in rows)
        names = subtasks(rows, "ruler")
        at_longest = {(score.model, score.subtask): score for score in rows if score.length == longest}
        title = f"RULER by task at {length_label(longest)} tokens (%)"
        yield across("ruler", title, "task", {name: name for name in names}, models, at_longest)


def _benchmarks(scores: Scores, models: Sequence[Model]) -> Iterator[Grid]:
    """Benchmarks as rows, models as columns, with the change against the first model."""
    found = benchmark_scores(scores.scores, models)
    if found:
        names = {name: benchmark_title(name) if name else "average" for _, name in found}
        base = next(model for model in models if any(name == model.name for name, _ in found))
        odd = no_shares(scores.scores)

        def change(score: Score) -> str:
            first = found.get((base.name, score.subtask))
            if first is None or score.model == base.name or score.subtask in odd:
                return ""
            return points_text(score.value - first.value)

        several = len({name for name, _ in found}) > 1
        title = MEASURES["benchmark"].title + (f", change from {base.title}" if several else "")
        yield across("benchmark", title, "benchmark", names, models, found, change)


def benchmark_scores(scores: Sequence[Score], models: Sequence[Model]) -> dict[tuple[str, str], Score]:
    """(model, benchmark) -> its score, then under the name '' the average of models that have them all.

    What is no share has no part in the average.
    """
    names = [name for name in subtasks(scores, "benchmark") if name and name not in no_shares(scores)]
    found = {(row.model, row.subtask): row for row in scores if row.task == "benchmark" and row.subtask}
    averages = {}
    for model in models:
        rows = [found[model.name, name] for name in names if (model.name, name) in found]
        if len(rows) == len(names) > 1:
            averages[model.name, ""] = Score(
                model=model.name,
                task="benchmark",
                length=0,
                value=sum(row.value for row in rows) / len(rows),
                n=sum(row.n for row in rows),
                stderr=math.sqrt(sum(row.stderr**2 for row in rows)) / len(rows),
            )
    return found | averages


def across(
    task: str,
    title: str,
    corner: str,
    names: Mapping[str, str],
    models: Sequence[Model],
    found: Mapping[tuple[str, str], Score],
    note: Callable[[Score], str] | None = None,
) -> Grid:
    """Parts of a task (name -> title) as rows, models as columns; the best of each row is strong."""
    measure = MEASURES[task]
    shown = [model for model in models if any(name == model.name for name, _ in found)]
    cells = []
    for name in names:
        row = [found.get((model.name, name)) for model in shown]
        best = measure.best(score.value for score in row if score)
        cells.append(
            tuple(score_cell(measure, score, best, note(score) if note and score else "") for score in row)
        )
    return Grid(
        task=task,
        section=measure.section,
        title=title,
        corner=corner,
        rows=tuple(names.values()),
        columns=tuple(model.title for model in shown),
        cells=tuple(cells),
    )


def score_cell(measure: Measure, score: Score | None, best: float = math.nan, note: str = "") -> Cell:
    """A score, or that there is none; strong where it is the best."""
    if score is None:
        return Cell()
    error = ""
    if score.stderr > 0 and math.isfinite(score.stderr):
        share = not measure.perplexity and 0 <= score.value <= 1
        error = f"{100 * score.stderr:.1f}" if share else perplexity_text(score.stderr)
    return Cell(
        text=measure.text(score.value),
        note=note,
        error=error and f"±{error}",
        strong=score.value == best,
    )
