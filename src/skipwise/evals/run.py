"""A task and a model -> scores. What is measured is kept item by item, so that nothing is measured twice.

A `Task` names its items (a document, a trial, a question), measures some of them at a time, and turns all
results into scores. The journal is a file of one JSON line an item beside `scores.json`; its first line is
the task's settings and the model, and results of other settings are never taken for these.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from skipwise.errors import InputError
from skipwise.evals.reader import Reader
from skipwise.files import disk_errors
from skipwise.scores import Score, Subject


@dataclass(frozen=True, slots=True)
class Item:
    """One unit of work: its name among those of the task, and its tokens (0: not known)."""

    key: str
    length: int
    what: Any = None


class Task(Protocol):
    """One evaluation."""

    @property
    def name(self) -> str:
        """As `Score.task` has it."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is asked of a model, in JSON's types."""

    def items(self, reader: Reader) -> list[Item]:
        """The work, in the order in which it is cheapest. Raises InputError for what cannot be done."""

    def measure(self, reader: Reader, items: Sequence[Item]) -> list[Any]:
        """What was found for each of some items of one length, in JSON's types."""

    def scores(self, model: str, results: dict[str, Any]) -> list[Score]:
        """The scores of the model, from the result of every item by its key."""


def evaluate(
    task: Task,
    reader: Reader,
    *,
    journal: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """The scores of ``reader`` in ``task``; what ``journal`` holds of them is not measured again.

    ``progress`` is called with the tokens (or, where there are none, items) done and in all. Raises
    InputError for a journal of another evaluation.
    """
    items = task.items(reader)
    kept = Journal(journal, _identity(task, reader)) if journal else None
    results = dict(kept.results) if kept else {}
    total = sum(each.length or 1 for each in items)
    to_do = [each for each in items if each.key not in results]
    done = total - sum(each.length or 1 for each in to_do)
    show = progress or (lambda *_: None)
    show(done, total)
    for batch in _batches(to_do, reader):
        for item, result in zip(batch, task.measure(reader, batch), strict=True):
            results[item.key] = result
            if kept:
                kept.add(item.key, result)
        done += sum(each.length or 1 for each in batch)
        show(done, total)
    return task.scores(reader.subject.name, {each.key: results[each.key] for each in items})


def _batches(items: list[Item], reader: Reader) -> Iterator[list[Item]]:
    """Neighbours of one length, as many at a time as the reader takes."""
    for length, group in itertools.groupby(items, key=lambda each: each.length):
        neighbours = list(group)
        size = reader.at_once(length) if length else 1
        for start in range(0, len(neighbours), size):
            yield neighbours[start : start + size]


def fingerprint(value: Any) -> str:
    """A short hash of anything that JSON can hold, to recognise it."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:16]


def model_identity(subject: Subject) -> dict[str, Any]:
    """What tells one model from another of its name."""
    return subject.model_dump(
        mode="json", include={"path", "revision", "rope_parameters", "tokenizer", "dtype"}
    )


def _identity(task: Task, reader: Reader) -> dict[str, Any]:
    return {"task": task.name, "settings": task.settings, "model": model_identity(reader.subject)}


class Journal:
    """Results by item in a file that grows by a line with each one."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.results: dict[str, Any] = {}
        first = json.dumps(identity, sort_keys=True)
        text = path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""
        lines = text.split("\n")
        if len(lines) < 2:  # nothing, or a first line that was cut off
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(first + "\n", encoding="utf-8")
            return
        if lines[0] != first:
            raise InputError(
                f"{path.parent.parent} holds results of {_difference(lines[0], identity)}: choose another "
                "--output, or --fresh to delete them"
            )
        for number, line in enumerate(lines[1:-1], 2):  # the last one is empty, or was cut off
            try:
                row = json.loads(line)
                self.results[row["item"]] = row["result"]
            except (ValueError, TypeError, KeyError):
                raise InputError(f"{path}: line {number} is damaged: --fresh measures all again") from None
        if lines[-1]:
            whole = "\n".join(lines[:-1]) + "\n"
            with disk_errors(path), path.open("r+", encoding="utf-8") as file:
                file.truncate(len(whole.encode("utf-8")))

    def add(self, item: str, result: Any) -> None:
        """Keep one result, on the disk when this returns."""
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"item": item, "result": result}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _difference(line: str, identity: dict[str, Any]) -> str:
    """The first setting that is not the same, in words."""
    try:
        before = json.loads(line)
        for part in ("model", "settings"):
            for key in {**before[part], **identity[part]}:
                old, new = before[part].get(key), identity[part].get(key)
                if old != new:
                    return f"another {part.removesuffix('s')} ({key} was {_short(old)}, is {_short(new)})"
    except (ValueError, TypeError, KeyError):
        return "something else"
    return "another task"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
