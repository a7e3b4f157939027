"""RULER on a model: samples of every task at every length, and their means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from skipwise.errors import InputError
from skipwise.evals.reader import Reader
from skipwise.evals.ruler.generator import Generator
from skipwise.evals.ruler.scoring import score
from skipwise.evals.ruler.tasks import TASKS
from skipwise.evals.run import Item, fingerprint
from skipwise.evals.shares import share_score
from skipwise.scores import Score


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """``samples`` prompts of each task and length. ``tasks`` None: all that can be made.

    ``texts``: the real text of haystacks. ``squad`` and ``hotpotqa``: files, without which their two tasks
    are left out. The score of a length is the mean over its tasks, as in the paper (table 3).
    """

    lengths: Sequence[int]
    texts: Sequence[str]
    tasks: tuple[str, ...] | None = None
    samples: int = 50
    seed: int = 0
    squad: Path | None = None
    hotpotqa: Path | None = None
    chat: bool = False
    source: dict[str, Any] = field(default_factory=dict)
    name: str = "ruler"
    _generators: list[Generator] = field(default_factory=list, init=False, repr=False, compare=False)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "lengths": sorted(self.lengths),
            "tasks": list(self.names),
            "samples": self.samples,
            "seed": self.seed,
            "chat": self.chat,
            "texts": {"hash": fingerprint("\n".join(self.texts))},
            "questions": {
                name: fingerprint(path.read_text(encoding="utf-8"))
                for name, path in (("qa_1", self.squad), ("qa_2", self.hotpotqa))
                if path is not None and name in self.names
            },
            **self.source,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks that are asked, in RULER's order. Raises InputError for one that cannot be made."""
        files = {"qa_1": (self.squad, "--squad"), "qa_2": (self.hotpotqa, "--hotpotqa")}
        without_file = {task: option for task, (path, option) in files.items() if path is None}
        for task in self.tasks or ():
            if task not in TASKS:
                raise InputError(f"no ruler task is called {task!r}: choose from {', '.join(TASKS)}")
            if task in without_file:
                raise InputError(
                    f"{task} is made of a file that has to be downloaded: {without_file[task]} PATH"
                )
        wanted = self.tasks or tuple(TASKS)
        return tuple(task for task in TASKS if task in wanted and task not in without_file)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the scores should know."""
        if self.tasks is not None or len(self.names) == len(TASKS):
            return ()
        absent = ", ".join(task for task in TASKS if task not in self.names)
        return (
            f"{absent} were left out (they need files: --squad, --hotpotqa), so the mean is over "
            f"{len(self.names)} tasks instead of {len(TASKS)}.",
        )

    def items(self, reader: Reader) -> list[Item]:
        """One a sample. Raises InputError when the shortest length leaves no room for a task."""
        generator = self._generator(reader)
        for task in self.names:
            generator.sample(task, min(self.lengths), self.seed, 0)
        return [
            Item(f"{task}/{length}/{index}", length, (task, index))
            for length in sorted(self.lengths)
            for task in self.names
            for index in range(self.samples)
        ]

    def measure(self, reader: Reader, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Of each sample: RULER's score of the answer, and the answer."""
        generator = self._generator(reader)
        samples = [generator.sample(each.what[0], each.length, self.seed, each.what[1]) for each in items]
        found: list[dict[str, Any]] = [{} for _ in items]
        for task in {each.what[0] for each in items}:  # tasks differ in how much a model may write
            own = [number for number, each in enumerate(items) if each.what[0] == task]
            said = reader.generate([samples[number].token_ids for number in own], TASKS[task].new_tokens)
            for number, answer in zip(own, said, strict=True):
                value = score(task, answer, samples[number].answers)
                found[number] = {"found": value, "answer": answer}
        return found

    def scores(self, model: str, results: dict[str, dict[str, Any]]) -> list[Score]:
        """Of each length the mean over the tasks, then each task.

        The samples of the mean are over tasks: sample i of it is the mean of every task's sample i.
        """
        found = []
        for length in sorted(self.lengths):
            table = np.array(
                [
                    [results[f"{task}/{length}/{index}"]["found"] for index in range(self.samples)]
                    for task in self.names
                ]
            )
            found.append(share_score(list(table.mean(0)), model=model, task=self.name, length=length))
            found += [
                share_score(list(row), model=model, task=self.name, subtask=task, length=length)
                for task, row in zip(self.names, table, strict=True)
            ]
        return found

    def _generator(self, reader: Reader) -> Generator:
        if not self._generators:  # made once: it tokenizes all the text
            self._generators.append(
                Generator(
                    reader.tokenizer,
                    list(self.texts),
                    squad=self.squad,
                    hotpotqa=self.hotpotqa,
                    chat=self.chat,
                )
            )
        return self._generators[0]
