"""What a report says about a run besides its scores: from `run.json`, or from `scores.json` without one.

Everything in `run.json` may be absent (a run that only evaluates has no training); a key that is there must
have the type the report expects, or an InputError names it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipwise.errors import InputError
from skipwise.scores import Evaluation, Scores, Subject, read_object

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model of the comparison; the order of a run's models is the order of display."""

    name: str
    title: str
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `run.json` says. None, 0 or an empty collection: not recorded."""

    title: str
    command: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_gib: float | None = None
    train_length: int = 0  # tokens
    target_length: int = 0  # tokens
    window: int = 0  # tokens, the original window of the model
    models: tuple[Model, ...] = ()
    training: Mapping[str, list[dict[str, float]]] = field(default_factory=dict)
    distance: tuple[float, ...] = ()  # tokens, the x of `coverage`
    coverage: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def named_lengths(self) -> dict[str, int]:
        """What figures mark on their axes of tokens."""
        if not self.target_length:
            return {"window": self.window}
        return {"original window": self.window, "target": self.target_length}


def read_run(path: Path) -> Run:
    """The facts of `run.json`; InputError for a missing file, bad JSON or a key of the wrong type."""
    document = read_object(path)
    where = str(path)
    if document.get("schema", SCHEMA) != SCHEMA:
        raise InputError(f"{path}: schema {document['schema']!r} is not {SCHEMA}, the one this version reads")
    coverage = _get(document, "coverage", dict, {}, where)
    distance, curves = _curves(coverage, where)
    return Run(
        title=_get(document, "title", str, "", where) or path.resolve().parent.name,
        command=_get(document, "command", str, "", where),
        recipe=_get(document, "recipe", dict, {}, where),
        versions=_get(document, "versions", dict, {}, where),
        hardware=_get(document, "hardware", dict, {}, where),
        seed=_get(document, "seed", int, None, where),
        seconds=_numbers(_get(document, "seconds", dict, {}, where), f"{where}: 'seconds'"),
        peak_memory_gib=_get(document, "peak_memory_gib", float, None, where),
        train_length=_get(document, "train_length", int, 0, where),
        target_length=_get(document, "target_length", int, 0, where),
        window=_get(document, "window", int, 0, where),
        models=tuple(_model(row, where) for row in _get(document, "models", list, [], where)),
        training=_training(_get(document, "training", dict, {}, where), where),
        distance=distance,
        coverage=curves,
        data=_get(document, "data", dict, {}, where),
        notes=tuple(str(note) for note in _get(document, "notes", list, [], where)),
    )


def run_of(scores: Scores, title: str = "") -> Run:
    """The facts of scores that have no `run.json`: what `skipwise eval` wrote with each evaluation."""
    done = scores.evaluations
    models = models_of(scores)
    titles = {model.name: model.title for model in models}
    windows = {subject.window for subject in scores.subjects}
    seeds = {each.seed for each in done} - {None}
    names = ", ".join(model.title for model in models)
    return Run(
        title=title or (f"Evaluation of {names}" if names else "Evaluation"),
        command="\n".join(dict.fromkeys(each.command for each in done if each.command)),
        versions=_agreed([each.versions for each in done]),
        hardware=_agreed([each.hardware for each in done]),
        seed=seeds.pop() if len(seeds) == 1 else None,
        seconds={f"{each.task}, {titles[each.model]}": each.seconds for each in done if each.seconds},
        window=windows.pop() if len(windows) == 1 else 0,
        notes=notes_of(done),
    )


def notes_of(done: Iterable[Evaluation]) -> tuple[str, ...]:
    """Every note of these evaluations, once."""
    return tuple(dict.fromkeys(note for each in done for note in each.notes))


def models_of(scores: Scores, run: Run | None = None) -> list[Model]:
    """The models in display order: those of the scores, then what only `run.json` or a score names."""
    known = {each.name: each for each in run.models} if run else {}
    ordered = {each.name: _shown(each, known.get(each.name)) for each in scores.subjects}
    names = [*known, *(score.model for score in scores.scores), *(each.model for each in scores.evaluations)]
    for name in [*names, *(run.training if run else ())]:
        ordered.setdefault(name, known.get(name) or Model(name=name, title=name))
    return list(ordered.values())


def _shown(subject: Subject, known: Model | None) -> Model:
    title = subject.title or (known.title if known else subject.name)
    return Model(
        name=subject.name,
        title=title,
        description=subject.description or (known.description if known else ""),
    )


def _agreed(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One value a key; several, where evaluations differ, with commas."""
    found: dict[str, list[Any]] = {}
    for each in facts:
        for key, value in each.items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    return {
        key: values[0] if len(values) == 1 else ", ".join(map(str, values)) for key, values in found.items()
    }


_WORDS = {str: "text", int: "a whole number", float: "a number", dict: "an object", list: "a list"}


def _get(row: Mapping[str, Any], key: str, kind: type, default: Any, where: str) -> Any:
    """`row[key]` if it has the kind asked for, `default` if it is absent or null, InputError otherwise."""
    value = row.get(key)
    if value is None:
        return default
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise InputError(f"{where}: '{key}' must be {_WORDS[kind]}, not {value!r}")
    return value


def _model(row: Any, where: str) -> Model:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        raise InputError(f"{where}: every entry of 'models' must be an object with a 'name', not {row!r}")
    title = _get(row, "title", str, "", where) or row["name"]
    return Model(name=row["name"], title=title, description=_get(row, "description", str, "", where))


def _numbers(values: dict[str, Any], where: str) -> dict[str, float]:
    return {key: float(_get(values, key, float, math.nan, where)) for key in values}


def _training(histories: dict[str, Any], where: str) -> dict[str, list[dict[str, float]]]:
    """Keeps the steps that have a loss: a logger also writes rows of other kinds."""
    kept = {}
    for name in histories:
        inside = f"{where}: training of '{name}'"
        history = _get(histories, name, list, [], f"{where}: 'training'")
        if not all(isinstance(row, dict) for row in history):
            raise InputError(f"{inside}: must be a list of objects with 'step' and 'loss'")
        rows = [
            _numbers({key: row[key] for key in ("step", "loss") if key in row}, inside) for row in history
        ]
        kept[name] = [row for row in rows if len(row) == 2]
    return {name: rows for name, rows in kept.items() if rows}


def _curves(coverage: dict[str, Any], where: str) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
    distance = tuple(_get(coverage, "distance", list, [], f"{where}: 'coverage'"))
    curves = {}
    for label, values in _get(coverage, "probability", dict, {}, f"{where}: 'coverage'").items():
        if not isinstance(values, list) or len(values) != len(distance):
            raise InputError(
                f"{where}: coverage '{label}' must be a list as long as 'distance' ({len(distance)})"
            )
        curves[label] = tuple(values)
    if not all(isinstance(number, int | float) for row in (distance, *curves.values()) for number in row):
        raise InputError(f"{where}: 'coverage' must hold numbers only")
    return (distance, curves) if distance and curves else ((), {})
