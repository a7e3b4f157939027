"""A run folder -> `report.html` and `figures/`. Contract: one page that needs nothing but itself.

Style and drawings are inline, nothing is fetched, and every word that comes from the run is escaped. Files
are written aside and renamed, so that a reader never meets half a page.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from skipwise.files import write_bytes, write_text
from skipwise.report.grids import Grid, all_grids
from skipwise.report.headline import summary, windows
from skipwise.report.inputs import Run, models_of, notes_of, read_run, run_of
from skipwise.report.plots import OWN_NAMES, Plot, all_plots
from skipwise.report.style import styles
from skipwise.report.svg import SCHEME, inline_svg, png, svg_file
from skipwise.report.words import length_label
from skipwise.scores import FILE, Evaluation, Scores, Subject

HARDWARE_WORDS = {"device": "Device", "cpu": "CPU", "cores": "CPU cores", "memory_gib": "Memory (GiB)"}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure as the template needs it."""

    name: str
    caption: str
    svgs: tuple[str, ...]  # markup, escaped by inline_svg


@dataclass(frozen=True, kw_only=True)
class Extra:
    """What a comparison adds to the page."""

    lead: tuple[str, ...] = ()
    """Sentences before the summary's own."""
    grids: tuple[Grid, ...] = ()
    notes: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = field(default=(), repr=False)


def write_report(folder: Path) -> Path:
    """Reads `folder`/scores.json and, if it is there, run.json; writes `folder`/figures/ and report.html.

    Returns the path of the page. InputError for a file that is missing or not understood, RunError if the
    folder cannot be written.
    """
    scores = Scores.read(folder / FILE)
    record = folder / "run.json"
    run = read_run(record) if record.exists() else run_of(scores)
    return write_page(folder, run, scores)


def write_page(folder: Path, run: Run, scores: Scores, extra: Extra | None = None) -> Path:
    """Writes the figures and the page of these scores; returns the path of the page."""
    extra = extra or Extra()
    notes = dict.fromkeys((*run.notes, *notes_of(scores.evaluations)))
    run = replace(run, notes=tuple(notes))
    plots = [*extra.plots, *all_plots(run, scores, models_of(scores, run))]
    page = folder / "report.html"
    text = render(run, scores, plots, extra)
    _write_figures(folder / "figures", plots)
    write_text(page, text)
    return page


def render(run: Run, scores: Scores, plots: Sequence[Plot], extra: Extra) -> str:
    """The page as text; sections without content are left out."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"tokens": length_label, "fact": fact_text, "duration": duration, "bound": bound}
    environment.globals["beyond"] = lambda grid, column: (
        0 < run.window < dict(enumerate(grid.lengths)).get(column, 0)
    )
    package = files("skipwise.report")
    template = environment.from_string((package / "page.html.jinja").read_text("utf-8"))
    models = models_of(scores, run)
    looks = {name: SCHEME[look.color] for name, look in styles([model.name for model in models]).items()}
    shown = {score.model for score in scores.scores} | set(run.training)
    found = windows(scores.scores, models)
    return template.render(
        run=run,
        css=(package / "page.css").read_text("utf-8"),
        summary=[*extra.lead, *summary(run, scores.scores, models)],
        windows=[(window, looks[window.model.name]) for window in found],
        models=[(each, looks[each.name]) for each in models if each.description and each.name in shown],
        grids=_by_section([*extra.grids, *all_grids(scores, models)]),
        difference_notes=extra.notes,
        drawings={section: _drawings(plots, section) for section in {plot.section for plot in plots}},
        recipe=grouped(run.recipe),
        subjects=[
            (each.title or each.name, facts) for each in scores.subjects if (facts := subject_facts(each))
        ],
        evaluations=evaluation_facts(scores.evaluations, {each.name: each.title for each in models}),
        hardware={HARDWARE_WORDS.get(key, key): value for key, value in run.hardware.items()},
    )


def subject_facts(subject: Subject) -> list[tuple[str, Any]]:
    """What is recorded of a model, but its name and words."""
    facts = subject.model_dump(exclude={"name", "title", "description"}, exclude_defaults=True)
    return _flat(facts, "")


def evaluation_facts(
    evaluations: Sequence[Evaluation], titles: Mapping[str, str]
) -> list[tuple[str, list[tuple[str, Any]]]]:
    """(task and models, settings): models that were asked the same share an entry."""
    alike: dict[str, tuple[list[str], Evaluation]] = {}
    for each in evaluations:
        key = json.dumps([each.task, each.seed, each.settings], sort_keys=True, default=str)
        alike.setdefault(key, ([], each))[0].append(titles.get(each.model, each.model))
    found = []
    for names, each in alike.values():
        seed = {} if each.seed is None or "seed" in each.settings else {"seed": each.seed}
        found.append((f"{each.task}: {', '.join(names)}", _flat({**each.settings, **seed}, "")))
    return found


def _by_section(grids: Sequence[Grid]) -> dict[str, list[Grid]]:
    found: dict[str, list[Grid]] = {}
    for grid in grids:
        found.setdefault(grid.section, []).append(grid)
    return found


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
    """Writes PNG and SVG, and removes those an earlier report left that this one does not draw."""
    written = {plot.name for plot in plots}
    for plot in plots:
        write_bytes(folder / f"{plot.name}.png", png(plot.figure))
        write_bytes(folder / f"{plot.name}.svg", svg_file(plot.figure))
    for path in folder.glob("*.*"):
        if path.suffix in (".png", ".svg") and path.stem not in written and OWN_NAMES.fullmatch(path.stem):
            path.unlink()
