"""Figures -> figures with a name, a caption and a text alternative. Contract: only what has data.

A caption says in one sentence what is measured; the alternative text gives the ends of every line, so that a
reader who cannot see the figure still gets its numbers (the tables hold the rest).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from skipwise.report import figures
from skipwise.report.figures import Line
from skipwise.report.inputs import Model, Run, Score
from skipwise.report.tables import length_label, value_text

NAMES = (
    *("retrieval_by_length", "retrieval_heat_map"),
    *("perplexity_by_window", "perplexity_last_quarter", "perplexity_by_position"),
    *("coverage", "training_loss"),
)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One figure of the page; `panels`, if any, replace it there, where they can wrap on a narrow screen."""

    name: str  # one of NAMES; also the stem of its PNG
    section: str  # id of the section of the page
    figure: Figure
    caption: str
    alt: str
    panels: tuple["Plot", ...] = ()


def all_plots(run: Run, scores: Sequence[Score], models: Sequence[Model]) -> list[Plot]:
    """Every figure this run has data for, in the order of NAMES."""
    found = [
        _retrieval(run, scores, models),
        _heat_map(scores, models),
        _perplexity(run, scores, models, "perplexity", "perplexity_by_window", _WINDOW),
        _perplexity(run, scores, models, "perplexity_last_quarter", "perplexity_last_quarter", _LAST_QUARTER),
        _perplexity(run, scores, models, "perplexity_bucket", "perplexity_by_position", _POSITION),
        _coverage(run, models),
        _training(run, models),
    ]
    return [plot for plot in found if plot is not None]


_WINDOW = (
    "Perplexity over the first tokens of each document, by how many of them are read{n}; lower is better."
)
_LAST_QUARTER = (
    "Perplexity of the last quarter of the tokens read, those with the longest context{n}; lower is better."
)
_POSITION = (
    "Perplexity of the tokens at each position of a document{n}; it rises where a model is out of its reach."
)


def _retrieval(run: Run, scores: Sequence[Score], models: Sequence[Model]) -> Plot | None:
    lines = figures.score_lines(scores, "retrieval", models)
    figure = figures.retrieval_by_length(lines, run)
    if figure is None:
        return None
    caption = (
        "Share of trials in which the model repeats a key hidden in its window, by window length"
        f"{_counts(scores, 'retrieval', 'trials a point')}; bars: one standard error; thin line: 90 %."
    )
    alt = _described("Line chart of keys found by window length", lines, "retrieval", " %")
    return Plot(name="retrieval_by_length", section="retrieval", figure=figure, caption=caption, alt=alt)


def _heat_map(scores: Sequence[Score], models: Sequence[Model]) -> Plot | None:
    rows = [score for score in scores if score.task == "retrieval_at_depth"]
    figure = figures.heat_map(rows, models)
    if figure is None:
        return None
    caption = (
        "Keys found (%) by window length and by where the key is hidden, 0 % at the start of the window"
        f"{_counts(rows, 'retrieval_at_depth', 'trials a cell')}."
    )
    plot = Plot(name="retrieval_heat_map", section="retrieval", figure=figure, caption=caption, alt="")
    return Plot(**{**vars(plot), "panels": tuple(_heat_panels(rows, models))})


def _heat_panels(rows: Sequence[Score], models: Sequence[Model]) -> list[Plot]:
    """One figure a model, on the axes of all: a length or depth one model misses shows as a gap."""
    panels = []
    for number, model in enumerate(models):
        own = [score for score in rows if score.model == model.name]
        # The other models' rows keep the axes equal; only this model is drawn.
        figure = figures.heat_map(rows, [model]) if own else None
        if figure is not None:
            lowest = min(own, key=lambda score: math.inf if math.isnan(score.value) else score.value)
            alt = (
                f"Heat map of keys found, {model.title}: lowest {value_text('retrieval', lowest.value)} % at "
                f"{length_label(lowest.length)} tokens, depth {100 * (lowest.depth or 0):.3g} %."
            )
            name = f"retrieval_heat_map_{number}"
            panels.append(Plot(name=name, section="retrieval", figure=figure, caption="", alt=alt))
    return panels


def _perplexity(
    run: Run, scores: Sequence[Score], models: Sequence[Model], task: str, name: str, caption: str
) -> Plot | None:
    lines = figures.score_lines(scores, task, models)
    by_position = task == "perplexity_bucket"
    x_label = "position in the document (tokens)" if by_position else "window length (tokens)"
    figure = figures.perplexity(lines, run, x_label)
    if figure is None:
        return None
    caption = caption.format(n=_counts(scores, task, "documents"))
    if figure.axes[0].get_yscale() == "function":
        caption += " Shaded: logarithmic and compressed."
    if any(value == math.inf for line in lines for value in line.y):
        caption += " Arrow heads on the upper edge: infinite."
    alt = _described(f"Line chart of perplexity by {x_label.removesuffix(' (tokens)')}", lines, task, "")
    return Plot(name=name, section="perplexity", figure=figure, caption=caption, alt=alt)


def _coverage(run: Run, models: Sequence[Model]) -> Plot | None:
    figure = figures.coverage(run, models)
    if figure is None:
        return None
    lines = figures.coverage_lines(run, models)
    caption = (
        "Probability that one training row holds two tokens at a given relative distance, by sampler: "
        "a distance that is never covered is never trained."
    )
    alt = _described(
        "Line chart of the probability of coverage by relative distance", lines, "perplexity", ""
    )
    return Plot(name="coverage", section="coverage", figure=figure, caption=caption, alt=alt)


def _training(run: Run, models: Sequence[Model]) -> Plot | None:
    lines = figures.training_lines(run, models)
    figure = figures.training_loss(lines)
    if figure is None:
        return None
    caption = (
        "Loss on the training rows by optimizer step; the models were trained on different rows, so read the "
        "course of each line, not which one is lower."
    )
    if max(len(line.y) for line in lines) >= 80:
        caption += " Strong line: mean over neighbouring steps; faint line: every step logged."
    alt = _described("Line chart of training loss by optimizer step", lines, "perplexity", "", step=True)
    return Plot(name="training_loss", section="training", figure=figure, caption=caption, alt=alt)


def _counts(scores: Sequence[Score], task: str, unit: str) -> str:
    """` (50 trials a point)`, ` (20 to 50 documents)`, or nothing if no count was recorded."""
    counts = {score.n for score in scores if score.task == task and score.n > 0}
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    return f" ({low:,} {unit})" if low == high else f" ({low:,} to {high:,} {unit})"


def _described(start: str, lines: Sequence[Line], task: str, unit: str, step: bool = False) -> str:
    """`start. PoSE: 99 % at 256, 96 % at 2k; ...`: the two ends of every line."""
    parts = []
    for line in lines:
        ends = dict.fromkeys([(line.x[0], line.y[0]), (line.x[-1], line.y[-1])])
        places = [
            f"{value_text(task, y)}{unit} at {f'step {x:g}' if step else length_label(x)}" for x, y in ends
        ]
        parts.append(f"{line.title}: {', '.join(places)}")
    return f"{start}. {'; '.join(parts)}."
