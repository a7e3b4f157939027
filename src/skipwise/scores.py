"""`scores.json`: what evaluations found, on which models, and how. Written by `evals`, read by `report`.

One file holds any number of models and tasks. Each `Score` is one number with its standard error and, in
``samples``, what each unit behind it (a document, a trial, a question) contributed, so that two files can be
compared unit by unit. `Subject` says what was judged and `Evaluation` how.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skipwise.errors import InputError
from skipwise.files import write_text

SCHEMA = 2
"""Raised when a reader of `scores.json` written before could be misled."""

FILE = "scores.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Score(_Record):
    """One number that was measured."""

    model: str
    """Name of a `Subject`."""
    task: str
    """``passkey``, ``perplexity``, ``ruler`` ...: the measure, and with it the unit of ``value``."""
    subtask: str = ""
    """One of several parts of a task, such as ``niah_single_1``; empty: all of it."""
    length: int = Field(ge=0)
    """Tokens of the prompt and its answer, or of the scored text; 0: the task has no length."""
    value: float
    """Perplexity, or a share of 0 .. 1."""
    n: int = Field(0, ge=0)
    """Documents, trials or questions behind ``value``."""
    stderr: float = 0.0
    """Standard error, in the unit of ``value``; 0: not known."""
    depth: float | None = None
    """Where the key was hidden, as a fraction of the haystack; None: over all depths."""
    start: int | None = None
    """First scored position (perplexity_bucket); ``length`` is the position after the last."""
    samples: tuple[float, ...] = ()
    """Of each unit: its share (0 .. 1), or its mean loss in nats a token."""
    weights: tuple[float, ...] = ()
    """Of each sample in ``value``, such as its scored tokens; empty: all alike."""

    @property
    def key(self) -> tuple[str, str, int, float | None, int | None]:
        """What is measured: the same for another model."""
        return self.task, self.subtask, self.length, self.depth, self.start


class Subject(_Record):
    """A model that was judged."""

    name: str
    title: str = ""
    """What tables print; empty: the name."""
    description: str = ""
    path: str = ""
    """Checkpoint folder, hub name or address of the server."""
    revision: str = ""
    """Commit of a hub model; otherwise a hash over its config and the sizes of its weight files."""
    rope_parameters: dict[str, Any] = Field(default_factory=dict)
    """As in force while it was judged."""
    window: int = 0
    """``max_position_embeddings``, tokens; 0: not known."""
    tokenizer: str = ""
    """A hash of the vocabulary: perplexities of different tokenizers do not compare."""
    dtype: str = ""
    attention: str = ""


class Evaluation(_Record):
    """One task on one model."""

    model: str
    task: str
    seed: int | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    """All that decides what was asked: scores of the same settings are made of the same units."""
    command: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class Scores(_Record):
    """The whole file."""

    subjects: tuple[Subject, ...] = ()
    """In the order in which they are shown."""
    evaluations: tuple[Evaluation, ...] = ()
    scores: tuple[Score, ...] = ()

    def with_results(self, subject: Subject, evaluation: Evaluation, scores: Iterable[Score]) -> Self:
        """These scores and the new ones, which replace what there was of the same task on the same model."""
        new = tuple(scores)
        replaced = {(evaluation.model, evaluation.task)} | {(each.model, each.task) for each in new}
        subjects = {each.name: each for each in self.subjects} | {subject.name: subject}
        kept = [each for each in self.evaluations if (each.model, each.task) not in replaced]
        scores_kept = [each for each in self.scores if (each.model, each.task) not in replaced]
        return type(self)(
            subjects=tuple(subjects.values()),
            evaluations=(*kept, evaluation),
            scores=(*scores_kept, *new),
        )

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """The scores of several files, of different models, in one."""
        kept = list(parts)
        return cls(
            subjects=tuple(each for part in kept for each in part.subjects),
            evaluations=tuple(each for part in kept for each in part.evaluations),
            scores=tuple(each for part in kept for each in part.scores),
        )

    def write(self, path: Path) -> None:
        """Write the file in one step."""
        rows = json.loads(self.model_dump_json(exclude_defaults=True))
        rows["scores"] = _Lines(rows.get("scores", ()))
        write_text(path, _json({"schema": SCHEMA, **rows}))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The scores of a `scores.json`, or of the folder that holds one.

        Raises InputError for a missing file, bad JSON, another schema, and rows that are not understood.
        """
        path = path / FILE if path.is_dir() else path
        document = read_object(path)
        schema = document.pop("schema", None)
        if schema != SCHEMA:
            raise InputError(
                f"{path}: schema {schema!r} is not {SCHEMA}: delete the file (or name another --output) and "
                "run the evaluation again"
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}: {place}: {first['msg']}; run the evaluation again") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError for anything else."""
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


class _Lines(list[Any]):
    """Rows of a table: one line of JSON each, however many numbers they hold."""


def _json(document: dict[str, Any]) -> str:
    """JSON that a person can read and a diff can show."""
    parts = []
    for key, value in document.items():
        if isinstance(value, _Lines) and value:
            text = "[\n" + ",\n".join("  " + json.dumps(row) for row in value) + "\n ]"
        else:
            text = json.dumps(value, indent=1).replace("\n", "\n ")
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
