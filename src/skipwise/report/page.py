"""A run folder -> `report.html` and `figures/*.png`. Contract: one page that needs nothing but itself.

Style and drawings are inline, nothing is fetched, and every word that comes from the run is escaped. Files
are written aside and renamed, so that a reader never meets half a page.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from skipwise.files import write_bytes, write_text
from skipwise.report.headline import summary, windows
from skipwise.report.inputs import Model, Run, Score, in_display_order, read_run, read_scores
from skipwise.report.plots import NAMES, Plot, all_plots
from skipwise.report.style import styles
from skipwise.report.svg import SCHEME, inline_svg, png
from skipwise.report.tables import Grid, grid, length_label, value_text

HARDWARE_WORDS = {"device": "Device", "cpu": "CPU", "cores": "CPU cores", "memory_gib": "Memory (GiB)"}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure as the template needs it."""

    name: str
    caption: str
    svgs: tuple[str, ...]  # markup, escaped by inline_svg


def write_report(run: Path) -> Path:
    """Reads `run`/scores.json and `run`/run.json; writes `run`/figures/*.png and `run`/report.html.

    Returns the path of the page. InputError for a file that is missing or not understood, RunError if the
    folder cannot be written.
    """
    facts, scores = read_run(run / "run.json"), read_scores(run / "scores.json")
    models = in_display_order(facts.models, [*(score.model for score in scores), *facts.training])
    plots = all_plots(facts, scores, models)
    page = run / "report.html"
    text = render(facts, scores, models, plots)
    _write_figures(run / "figures", plots)
    write_text(page, text)
    return page


def render(run: Run, scores: Sequence[Score], models: Sequence[Model], plots: Sequence[Plot]) -> str:
    """The page as text; sections without content are left out."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"tokens": length_label, "fact": fact_text, "duration": duration, "bound": bound}
    environment.globals["score_cells"] = score_cells
    package = files("skipwise.report")
    template = environment.from_string((package / "page.html.jinja").read_text("utf-8"))
    looks = styles([model.name for model in models])
    with_scores = {score.model for score in scores} | set(run.training)
    tasks = {name: [name] for name in ("retrieval", "perplexity")}
    tasks["perplexity"].append("perplexity_last_quarter")
    return template.render(
        run=run,
        css=(package / "page.css").read_text("utf-8"),
        summary=summary(run, scores, models),
        windows=[(window, SCHEME[looks[window.model.name].color]) for window in windows(scores, models)],
        models=[
            (model, SCHEME[looks[model.name].color])
            for model in models
            if model.description and model.name in with_scores
        ],
        grids={
            section: [table for task in of if (table := grid(scores, task, models))]
            for section, of in tasks.items()
        },
        drawings={
            section: _drawings(plots, section)
            for section in ("retrieval", "perplexity", "coverage", "training")
        },
        recipe=grouped(run.recipe),
        hardware={HARDWARE_WORDS.get(key, key): value for key, value in run.hardware.items()},
    )


def score_cells(table: Grid, row: int) -> list[dict[str, Any]]:
    """One row of a table: the text of each cell, its standard error, whether it is the best of its column."""
    cells = []
    for column in range(len(table.lengths)):
        score = table.cells[row][column]
        best = score is not None and score.value == table.best(column)
        cells.append({"text": table.text(row, column), "error": _error_text(table.task, score), "best": best})
    return cells


def grouped(recipe: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """A nested recipe as (section, [(dotted key, value)]); keys outside any section come first, under ''."""
    groups: dict[str, list[tuple[str, Any]]] = {"": []}
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            groups[str(key)] = _flat(value, "")
        else:
            groups[""].append((str(key), value))
    return [(name, rows) for name, rows in groups.items() if rows]


def fact_text(value: Any) -> str:
    """A value of a recipe or a fact as one writes it: `true`, `2e-05`, `12,345` stays a copyable `12345`."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def bound(text: str) -> str:
    """`text` with its percent signs kept on the line of their numbers."""
    return text.replace(" %", "\u00a0%")


def duration(seconds: float) -> str:
    """0.8 s, 42 s, 3 min 5 s, 1 h 12 min."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    large, small, units = (whole // 60, whole % 60, ("min", "s"))
    if whole >= 3600:
        large, small, units = (*divmod(round(whole / 60), 60), ("h", "min"))
    return f"{large} {units[0]}" + (f" {small} {units[1]}" if small else "")


def _error_text(task: str, score: Score | None) -> str:
    """The standard error in the unit of the table; nothing if it is 0 or was not recorded."""
    if score is None or not score.stderr > 0 or not math.isfinite(score.stderr):
        return ""
    if task.startswith("retrieval"):
        return f"±{100 * score.stderr:.1f}"
    return f"±{value_text(task, score.stderr)}"


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _drawings(plots: Sequence[Plot], section: str) -> list[Drawing]:
    return [
        Drawing(
            name=plot.name,
            caption=plot.caption,
            svgs=tuple(inline_svg(part.figure, part.name, part.alt) for part in plot.panels or (plot,)),
        )
        for plot in plots
        if plot.section == section
    ]


def _write_figures(folder: Path, plots: Sequence[Plot]) -> None:
    """Writes the PNGs, and removes those an earlier report left that this one does not draw."""
    for plot in plots:
        write_bytes(folder / f"{plot.name}.png", png(plot.figure))
    for name in set(NAMES) - {plot.name for plot in plots}:
        (folder / f"{name}.png").unlink(missing_ok=True)
