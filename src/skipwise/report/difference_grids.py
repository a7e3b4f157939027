"""A comparison -> tables of the differences. Contract: every difference stands beside its interval.

`*` marks an interval that excludes no difference, `°` one of Newcombe's, `†` one that is not paired.
"""

from collections.abc import Sequence

from skipwise.report.compare import Comparison, Difference, place
from skipwise.report.grids import Cell, Grid
from skipwise.report.measures import MEASURES, title_of
from skipwise.report.words import length_label, points_text, ratio_text

SECTION = "differences"


def groups(comparison: Comparison) -> dict[tuple[str, str], list[Difference]]:
    """The differences of each table and figure: by (task, subtask) over lengths, or all parts of a task.

    Parts have the subtask '*'; those of RULER are taken at the longest length.
    """
    found: dict[tuple[str, str], list[Difference]] = {}
    parts = [each for each in comparison.differences if each.task == "ruler" and each.subtask]
    longest = max((each.length for each in parts), default=0)
    for each in comparison.differences:
        if each.task == "benchmark":
            found.setdefault((each.task, "*"), []).append(each)
        elif each.task == "ruler" and each.subtask:
            if each.length == longest:
                found.setdefault((each.task, "*"), []).append(each)
        elif each.task != "perplexity_bucket":
            found.setdefault((each.task, each.subtask), []).append(each)
    order = list(MEASURES)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1] == "*")))


def difference_grids(comparison: Comparison) -> list[Grid]:
    """A table of each group."""
    return [
        _of_parts(comparison, task, rows)
        if subtask == "*"
        else _over_lengths(comparison, task, subtask, rows)
        for (task, subtask), rows in groups(comparison).items()
    ]


def group_title(comparison: Comparison, task: str, subtask: str, rows: Sequence[Difference]) -> str:
    """What is compared, without its unit."""
    if task == "ruler" and subtask == "*":
        return f"RULER by task at {length_label(rows[0].length)} tokens"
    return title_of(comparison.scores, task, subtask.strip("*")).partition(" (")[0]


def change(comparison: Comparison, task: str) -> str:
    """The unit of a difference, with what it is from."""
    baseline = comparison.models[0].title
    return f"times {baseline}'s" if MEASURES[task].perplexity else f"percentage points more than {baseline}"


def difference_cell(each: Difference | None) -> Cell:
    """The estimate with its marks, and the interval as a note."""
    if each is None:
        return Cell()
    text = ratio_text if each.ratio else points_text
    apart = each.interval is not None and each.interval.excludes_zero
    marks = "*" if apart else ""
    if each.interval is not None and each.interval.method == "newcombe":
        marks += "°"
    if each.interval is not None and not each.paired:
        marks += "†"
    note = ""
    if each.bounds is not None:
        note = " to ".join(text(bound).removeprefix("×") for bound in each.bounds)
    return Cell(text=text(each.estimate) + marks, note=note, strong=apart)


def _over_lengths(comparison: Comparison, task: str, subtask: str, rows: Sequence[Difference]) -> Grid:
    """Models as rows under the baseline's own scores, lengths as columns."""
    lengths = tuple(sorted({each.length for each in rows}))
    own = {each.length: MEASURES[task].text(each.baseline) for each in rows}
    shown = [model for model in comparison.models if any(each.model == model.name for each in rows)]
    by_place = {(each.model, each.length): each for each in rows}
    cells = [tuple(Cell(text=own[length]) for length in lengths)]
    cells += [
        tuple(difference_cell(by_place.get((model.name, length))) for length in lengths) for model in shown
    ]
    title = group_title(comparison, task, subtask, rows)
    return Grid(
        task=task,
        section=SECTION,
        title=f"{title}: {change(comparison, task)}",
        corner="model",
        rows=("baseline", *(model.title for model in shown)),
        columns=tuple(map(length_label, lengths)),
        lengths=lengths,
        cells=tuple(cells),
        stacked=True,
        brief=task != "perplexity_last_quarter",
    )


def _of_parts(comparison: Comparison, task: str, rows: Sequence[Difference]) -> Grid:
    """Parts as rows, the baseline's own scores and then the models as columns."""
    names = {each.subtask: place(each) for each in rows}
    own = {each.subtask: MEASURES[task].text(each.baseline) for each in rows}
    shown = [model for model in comparison.models if any(each.model == model.name for each in rows)]
    by_place = {(each.model, each.subtask): each for each in rows}
    cells = tuple(
        (Cell(text=own[name]), *(difference_cell(by_place.get((model.name, name))) for model in shown))
        for name in names
    )
    title = group_title(comparison, task, "*", rows)
    return Grid(
        task=task,
        section=SECTION,
        title=f"{title}: {change(comparison, task)}",
        corner="benchmark" if task == "benchmark" else "task",
        rows=tuple(names.values()),
        columns=("baseline", *(model.title for model in shown)),
        cells=cells,
        stacked=len(shown) > 1,
    )
