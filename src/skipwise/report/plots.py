"""Figures -> figures with a name, a caption and a text alternative. Contract: only what has data.

A caption says in one sentence what is measured; the alternative text gives the ends of every line, so that a
reader who cannot see the figure still gets its numbers (the tables hold the rest).
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from skipwise.report import figures as charts
from skipwise.report.dots import Dots, dot_chart
from skipwise.report.figures import Line
from skipwise.report.grids import benchmark_scores
from skipwise.report.headline import THRESHOLD
from skipwise.report.heat import Heat, depth_heat, heat_map, task_heat
from skipwise.report.inputs import Model, Run
from skipwise.report.measures import EFFECTIVE, MEASURES, NEEDLES, no_shares, subtasks, title_of
from skipwise.report.style import styles
from skipwise.report.words import benchmark_title, length_label, one_or_range, perplexity_text, share_text
from skipwise.scores import Score, Scores

OWN_NAMES = re.compile(
    r"(passkey|ruler|longppl)_by_length|(passkey|needle)_heat_map(_\w+)?|ruler_by_task|benchmarks|"
    r"perplexity_(by_window|last_quarter|by_position)|sliding_perplexity|coverage|training_loss|"
    r"difference_\w+|retrieval_(by_length|heat_map)"
)
"""The files in `figures/` that a report may replace or remove."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One figure of the page; `panels`, if any, replace it there, where they can wrap on a narrow screen."""

    name: str  # matched by OWN_NAMES; also the stem of its files
    section: str  # id of the section of the page
    figure: Figure
    caption: str
    alt: str
    panels: tuple["Plot", ...] = ()


def all_plots(run: Run, scores: Scores, models: Sequence[Model]) -> list[Plot]:
    """Every figure there is data for."""
    rows = scores.scores
    found = [_passkey(run, rows, models), _depths("passkey", "", "Keys found", rows, models)]
    for kind in subtasks(rows, "needle"):
        what = f"Found of a hidden needle, {NEEDLES.get(kind, kind)}"
        found.append(_depths("needle", kind, what, rows, models))
    found += [_ruler(run, scores, models), _ruler_tasks(rows, models)]
    for task, name, of in _PERPLEXITIES:
        found.append(_perplexity(run, rows, models, task, name, of))
    found += [_benchmarks(rows, models), _coverage(run, models), _training(run, models)]
    return [plot for plot in found if plot is not None]


_PERPLEXITIES = (
    ("perplexity", "perplexity_by_window", "the first tokens of each document, by how many of them are read"),
    (
        "perplexity_last_quarter",
        "perplexity_last_quarter",
        "the last quarter of the tokens read, those with the longest context",
    ),
    ("perplexity_bucket", "perplexity_by_position", "the tokens at each position of a document"),
    (
        "sliding_perplexity",
        "sliding_perplexity",
        "whole documents, read through a window that slides over them",
    ),
    ("longppl", "longppl_by_length", "the tokens that need the long context (LongPPL)"),
)


def _passkey(run: Run, rows: Sequence[Score], models: Sequence[Model]) -> Plot | None:
    lines = charts.score_lines(rows, "passkey", models)
    rows = [score for score in rows if score.depth is None]
    caption = (
        "Share of trials in which the model repeats a key hidden in its prompt, by the prompt's length"
        f"{_counts(rows, 'passkey', 'trials a point')}; bars: one standard error; thin line: 90 %."
    )
    alt = "Line chart of keys found by prompt length"
    return _line_plot(
        charts.shares(lines, run, "keys found (%)", THRESHOLD),
        lines,
        "passkey_by_length",
        "passkey",
        caption,
        alt,
    )


def _ruler(run: Run, scores: Scores, models: Sequence[Model]) -> Plot | None:
    lines = charts.score_lines(scores.scores, "ruler", models)
    title = title_of(scores, "ruler").removesuffix(" (%)")
    caption = (
        f"{title}, by prompt length; bars: one standard error; thin line: 85.6 %, the threshold of the "
        "effective length, which the paper set for the average of 13 tasks."
    )
    alt = "Line chart of the RULER average by prompt length"
    figure = charts.shares(lines, run, "RULER, average (%)", EFFECTIVE)
    return _line_plot(figure, lines, "ruler_by_length", "ruler", caption, alt)


def _line_plot(
    figure: Figure | None, lines: Sequence[Line], name: str, section: str, caption: str, alt: str
) -> Plot | None:
    if figure is None:
        return None
    alt = _described(alt, lines, lambda value: f"{share_text(value)} %")
    return Plot(name=name, section=section, figure=figure, caption=caption, alt=alt)


def _depths(
    task: str, subtask: str, what: str, rows: Sequence[Score], models: Sequence[Model]
) -> Plot | None:
    own = [score for score in rows if score.subtask == subtask and score.depth is not None]
    caption = (
        f"{what} (%) by prompt length and by where the key is hidden, 0 % at the start of the prompt"
        f"{_counts(own, task, 'trials a cell')}."
    )
    suffix = "_" + re.sub(r"\W", "_", subtask) if subtask else ""
    heat = depth_heat(rows, task, subtask)
    return _heat_plot(heat, models, f"{task}_heat_map{suffix}", MEASURES[task].section, caption, what)


def _ruler_tasks(rows: Sequence[Score], models: Sequence[Model]) -> Plot | None:
    parts = [score for score in rows if score.subtask]
    caption = f"RULER by task and prompt length (%){_counts(parts, 'ruler', 'prompts a cell')}."
    return _heat_plot(task_heat(rows, "ruler"), models, "ruler_by_task", "ruler", caption, "RULER by task")


def _heat_plot(
    heat: Heat, models: Sequence[Model], name: str, section: str, caption: str, what: str
) -> Plot | None:
    """On the page one figure a model, on the axes of all: what one model misses shows as a gap."""
    figure = heat_map(heat, models)
    if figure is None:
        return None
    panels = []
    for number, model in enumerate(heat.models(models)):
        alone = heat_map(heat, [model])
        assert alone is not None
        own = {key: value for key, value in heat.values.items() if key[0] == model.name}
        lowest = min(own, key=lambda key: math.inf if math.isnan(own[key]) else own[key])
        place = dict(zip(heat.rows, heat.row_labels, strict=True))[lowest[2]]
        where = f"depth {place} %" if heat.y_label else place
        alt = (
            f"Heat map, {what}, {model.title}: lowest {share_text(own[lowest])} % at "
            f"{length_label(lowest[1])} tokens, {where}."
        )
        panels.append(Plot(name=f"{name}_{number}", section=section, figure=alone, caption="", alt=alt))
    return Plot(name=name, section=section, figure=figure, caption=caption, alt="", panels=tuple(panels))


def _perplexity(
    run: Run, rows: Sequence[Score], models: Sequence[Model], task: str, name: str, of: str
) -> Plot | None:
    lines = charts.score_lines(rows, task, models)
    by_position = task == "perplexity_bucket"
    x_label = "position in the document (tokens)" if by_position else "window length (tokens)"
    figure = charts.perplexity(lines, run, x_label, "LongPPL" if task == "longppl" else "perplexity")
    if figure is None:
        return None
    caption = f"Perplexity of {of}{_counts(rows, task, 'documents')}; lower is better."
    if figure.axes[0].get_yscale() == "function":
        caption += " Shaded: logarithmic and compressed."
    if any(value == math.inf for line in lines for value in line.y):
        caption += " Arrow heads on the upper edge: infinite."
    start = f"Line chart of {'LongPPL' if task == 'longppl' else 'perplexity'} by"
    alt = _described(f"{start} {x_label.removesuffix(' (tokens)')}", lines, perplexity_text)
    return Plot(name=name, section=MEASURES[task].section, figure=figure, caption=caption, alt=alt)


def _benchmarks(rows: Sequence[Score], models: Sequence[Model]) -> Plot | None:
    found = benchmark_scores(rows, models)
    names = [name for name in dict.fromkeys(name for _, name in found) if name not in no_shares(rows)]
    looks, nan = styles([model.name for model in models]), math.nan
    series = []
    for model in models:
        pairs = [
            (100 * row.value, 100 * row.stderr) if (row := found.get((model.name, name))) else (nan, nan)
            for name in names
        ]
        series.append(
            Dots(
                title=model.title,
                style=looks[model.name],
                values=tuple(value for value, _ in pairs),
                low=tuple(value - error for value, error in pairs),
                high=tuple(value + error for value, error in pairs),
            )
        )
    figure = dot_chart(series, [benchmark_title(name) if name else "average" for name in names], "score (%)")
    if figure is None:
        return None
    caption = f"Benchmarks{_counts(rows, 'benchmark', 'questions each')}; bars: one standard error."
    parts = [
        f"{each.title}: {', '.join(f'{value:.1f} %' for value in each.values if math.isfinite(value))}"
        for each in series
        if any(map(math.isfinite, each.values))
    ]
    alt = f"Dot chart of benchmark scores, from top to bottom. {'; '.join(parts)}."
    return Plot(name="benchmarks", section="benchmarks", figure=figure, caption=caption, alt=alt)


def _coverage(run: Run, models: Sequence[Model]) -> Plot | None:
    figure = charts.coverage(run, models)
    if figure is None:
        return None
    caption = (
        "Probability that one training row holds two tokens at a given relative distance, by sampler: "
        "a distance that is never covered is never trained."
    )
    lines = charts.coverage_lines(run, models)
    start = "Line chart of the probability of coverage by relative distance"
    alt = _described(start, lines, perplexity_text)
    return Plot(name="coverage", section="coverage", figure=figure, caption=caption, alt=alt)


def _training(run: Run, models: Sequence[Model]) -> Plot | None:
    lines = charts.training_lines(run, models)
    figure = charts.training_loss(lines)
    if figure is None:
        return None
    caption = (
        "Loss on the training rows by optimizer step; the models were trained on different rows, so read the "
        "course of each line, not which one is lower."
    )
    if max(len(line.y) for line in lines) >= 80:
        caption += " Strong line: mean over neighbouring steps; faint line: every step logged."
    start = "Line chart of training loss by optimizer step"
    alt = _described(start, lines, perplexity_text, lambda step: f"step {step:g}")
    return Plot(name="training_loss", section="training", figure=figure, caption=caption, alt=alt)


def _counts(rows: Iterable[Score], task: str, unit: str) -> str:
    """` (50 trials a point)`, ` (20 to 50 documents)`, or nothing if no count was recorded."""
    counts = one_or_range({score.n for score in rows if score.task == task and score.n > 0})
    return counts and f" ({counts} {unit})"


def _described(
    start: str,
    lines: Sequence[Line],
    text: Callable[[float], str],
    place: Callable[[float], str] = length_label,
) -> str:
    """`start. PoSE: 99 % at 256, 96 % at 2k; ...`: the two ends of every line."""
    parts = []
    for line in lines:
        ends = dict.fromkeys([(line.x[0], line.y[0]), (line.x[-1], line.y[-1])])
        parts.append(f"{line.title}: {', '.join(f'{text(y)} at {place(x)}' for x, y in ends)}")
    return f"{start}. {'; '.join(parts)}."
