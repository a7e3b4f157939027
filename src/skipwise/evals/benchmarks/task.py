"""Original abilities: questions with known answers, asked by lm-evaluation-harness (Gao et al. 2021).

The harness owns the prompts, the examples before each question and the metric; a model that lies here is
handed to it as it was loaded, a served one is asked over its address. `PAPER` are the six benchmarks of the
PoSE paper, as the Open LLM Leaderboard asked four of them. One item is one task of the harness.

Data come from the hub, or without a network from a folder (see `harness`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipwise.errors import InputError, RunError
from skipwise.evals.benchmarks.harness import Loaded, load_tasks
from skipwise.evals.benchmarks.models import language_model, quiet
from skipwise.evals.reader import Reader
from skipwise.evals.run import Item
from skipwise.evals.served import ServedReader
from skipwise.scores import Score

_log = logging.getLogger(__name__)  # not set up by anybody: one line on stderr

PAPER: dict[str, tuple[int, str]] = {
    "boolq": (0, "acc"),
    "piqa": (0, "acc"),
    "winogrande": (0, "acc"),
    "truthfulqa_mc2": (0, "acc"),
    "arc_challenge": (25, "acc_norm"),
    "hellaswag": (10, "acc_norm"),
}
"""Of each benchmark of the paper: its examples before a question, and the metric that is reported."""

SEED = 1234
"""That of the harness itself, so that its users find the same examples before their questions."""


@dataclass(frozen=True, kw_only=True)
class Benchmarks:
    """``tasks``: names of the harness (tasks, groups, tags); None: `PAPER`.

    A task outside of `PAPER` has the examples that its definition asks for and reports its first metric.
    ``data_folder`` holds a folder of data for each task, ``task_folder`` definitions of the user's own.
    ``limit``: questions of each task, at most. ``batch_size``: answers in one forward pass, at most; halved
    when the GPU's memory is full. ``seed`` chooses the examples. Raises InputError without lm-eval.
    """

    tasks: tuple[str, ...] | None = None
    data_folder: Path | None = None
    task_folder: Path | None = None
    limit: int | None = None
    batch_size: int = 8
    seed: int = SEED
    name: str = "benchmark"

    def __post_init__(self) -> None:
        if find_spec("lm_eval") is None:
            raise InputError(
                "benchmarks are asked by lm-evaluation-harness, which is not installed: "
                "pip install 'skipwise[benchmarks]'"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """See `Task`. Of each benchmark what decides its prompts, with a hash over its questions."""
        asked = {
            name: {
                "examples": each.examples,
                "metric": each.metric,
                "version": each.version,
                "questions": each.questions,
                "data": each.data,
            }
            for name, each in self._loaded.items()
        }
        return {"seed": self.seed, "lm_eval": metadata.version("lm_eval"), "tasks": asked}

    def items(self, reader: Reader) -> list[Item]:  # noqa: ARG002
        """One a task. All data are read before anything is asked.

        Raises InputError for an unknown name, and for data that are not there or not the task's.
        """
        return [Item(name, 0, each) for name, each in self._loaded.items()]

    def measure(self, reader: Reader, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Of each task: its metric, its standard error, and what each question contributed."""
        return [self._measure(reader, each.key, each.what) for each in items]

    def scores(self, model: str, results: dict[str, dict[str, Any]]) -> list[Score]:
        """One a task."""
        return [
            Score(
                model=model,
                task=self.name,
                subtask=name,
                length=0,
                value=found["value"],
                n=found["n"],
                stderr=found["stderr"],
                samples=tuple(found["samples"]),
            )
            for name, found in results.items()
        ]

    @cached_property
    def _loaded(self) -> dict[str, Loaded]:
        with _seeded(self.seed):
            return load_tasks(
                self.tasks or tuple(PAPER),
                standards=PAPER,
                data_folder=self.data_folder,
                task_folder=self.task_folder,
                limit=self.limit,
            )

    def _measure(self, reader: Reader, name: str, loaded: Loaded) -> dict[str, Any]:
        found, cut = self._ask(reader, name, loaded)
        key = next(key for key in found["results"][name] if key.partition(",")[0] == loaded.metric)
        chosen = key.partition(",")[2]
        value = float(found["results"][name][key])
        error = found["results"][name].get(f"{loaded.metric}_stderr,{chosen}")
        samples = [each[loaded.metric] for each in found["samples"][name] if each["filter"] == chosen]
        return {
            "value": value,
            "stderr": float(error) if isinstance(error, int | float) else 0.0,
            "n": len(samples),
            "samples": _shares(samples, value),
            "metric": loaded.metric,
            "examples": loaded.examples,
            "version": loaded.version,
            "cut": cut,
        }

    def _ask(self, reader: Reader, name: str, loaded: Loaded) -> tuple[dict[str, Any], int]:
        """What the harness found, and how many prompts had to lose their beginning."""
        import lm_eval

        size = self.batch_size
        while True:
            try:
                with quiet(), _seeded(self.seed):
                    model = language_model(reader, size, scores=loaded.scores_answers)
                    loaded.task.set_fewshot_seed(self.seed)
                    found: dict[str, Any] = lm_eval.evaluate(
                        model,
                        {"tasks": {name: loaded.task}, "groups": {}},
                        limit=self.limit,
                        bootstrap_iters=1_000,
                    )
                break
            except torch.OutOfMemoryError:
                if size == 1:
                    raise RunError(f"{name}: one question does not fit into the GPU's memory") from None
                size //= 2
            except OSError as error:
                if not isinstance(reader, ServedReader):
                    raise
                raise RunError(f"{reader.base_url} broke off in {name}: {error}") from None
            torch.cuda.empty_cache()
        if model.cut:
            _log.warning(
                "%s: the beginning of %s prompts was cut off, they have more than the window of %s tokens",
                name,
                f"{model.cut:,}",
                f"{model.max_length:,}",
            )
        return found, model.cut


def _shares(samples: list[Any], value: float) -> list[float]:
    """What the questions contributed, where the metric is their mean; else nothing."""
    if not all(isinstance(each, int | float | np.number | np.bool_) for each in samples):
        return []
    shares = [float(each) for each in samples]
    return shares if np.isclose(np.mean(shares), value, atol=1e-9) else []


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Some tasks shuffle with the generators that the whole process shares."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
