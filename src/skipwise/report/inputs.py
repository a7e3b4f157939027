"""The two files of a run folder -> checked, frozen values. Contract: a problem is an InputError.

`scores.json` holds what was measured, `run.json` what was run. Everything in `run.json` may be absent (a run
that only evaluates has no training); a key that is there must have the type the report expects.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipwise.errors import InputError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number that was measured."""

    model: str
    task: str
    length: int  # tokens
    value: float  # perplexity, or a share of 0..1 for retrieval; may be inf or nan
    n: int = 0  # documents or trials behind the value; 0: not recorded
    stderr: float = 0.0  # in the unit of `value`; 0: not recorded
    start: int = 0  # tokens, first position of a bucket
    depth: float | None = None  # 0..1, where the key was hidden


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


def read_scores(path: Path) -> list[Score]:
    """The scores of `scores.json`; InputError for a missing file, bad JSON, another schema or a bad row."""
    document = _read_object(path)
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"{path}: schema {document.get('schema')!r} is not {SCHEMA}, the one this version reads; "
            "run the evaluation again"
        )
    rows = document.get("scores")
    if not isinstance(rows, list):
        raise InputError(f"{path}: 'scores' must be a list; run the evaluation again")
    return parse_scores(rows, str(path))


def parse_scores(rows: Iterable[Mapping[str, Any]], source: str = "scores") -> list[Score]:
    """Plain rows -> Score values. Keys the report does not use are ignored; a null value becomes nan."""
    return [_score(row, f"{source}: score {number}") for number, row in enumerate(rows, start=1)]


def read_run(path: Path) -> Run:
    """The facts of `run.json`; InputError for a missing file, bad JSON or a key of the wrong type."""
    document = _read_object(path)
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


def in_display_order(models: Iterable[Model], names: Iterable[str]) -> list[Model]:
    """The known models first, then every other name in order of first appearance, titled by its name."""
    ordered = {model.name: model for model in models}
    for name in names:
        ordered.setdefault(name, Model(name=name, title=name))
    return list(ordered.values())


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a run folder holds scores.json and run.json") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON, line {error.lineno}: {error.msg}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: must hold one JSON object, not a {type(document).__name__}")
    return document


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


def _score(row: Mapping[str, Any], where: str) -> Score:
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: must be an object, not {row!r}")
    task = _get(row, "task", str, None, where)
    needed = ["model", "task", "length", "value"]
    needed += {"perplexity_bucket": ["start"], "retrieval_at_depth": ["depth"]}.get(task, [])
    absent = [key for key in needed if key not in row]
    if absent:
        raise InputError(f"{where}: has no '{absent[0]}'; run the evaluation again")
    length = _get(row, "length", int, 0, where)
    if length < 1:
        raise InputError(f"{where}: 'length' must be at least 1 token, not {length}")
    return Score(
        model=_get(row, "model", str, "", where),
        task=task or "",
        length=length,
        value=float(_get(row, "value", float, math.nan, where)),
        n=_get(row, "n", int, 0, where),
        stderr=float(_get(row, "stderr", float, 0.0, where)),
        start=_get(row, "start", int, 0, where),
        depth=_get(row, "depth", float, None, where),
    )


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
