"""The tasks of lm-evaluation-harness, with their data.

Data that lie in a folder take the place of a task's dataset as the harness provides for it: by a YAML file
that includes the task's own. The prompts stay as they are.
"""

from __future__ import annotations

import difflib
import itertools
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import yaml
from huggingface_hub import constants
from jinja2 import TemplateError

from skipwise.data.documents import datasets_session
from skipwise.errors import InputError
from skipwise.evals.benchmarks.models import quiet
from skipwise.evals.run import fingerprint

_FOLDERS = ("super_glue/boolq", "piqa", "winogrande", "truthfulqa", "arc", "hellaswag")
"""Of the tasks that are asked for most: to look through all of its 14,000 files takes the harness 10 s."""

_FAILURES: tuple[type[Exception], ...] = (
    *(AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(datasets.exceptions.DatasetsError, TemplateError),
)
"""What data that are not there, or not as a task wants them, raise in the harness and in `datasets`."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A task of the harness with its data."""

    task: Any
    examples: int
    """Before each question."""
    metric: str
    version: str
    questions: int
    data: str
    """A hash over the questions, and over those that examples are drawn from."""

    @property
    def scores_answers(self) -> bool:
        """Whether it needs the probability of given answers, not only answers of the model's own."""
        return bool(self.task.OUTPUT_TYPE != "generate_until")


def load_tasks(
    names: Sequence[str],
    *,
    standards: Mapping[str, tuple[int, str]],
    data_folder: Path | None,
    task_folder: Path | None,
    limit: int | None,
) -> dict[str, Loaded]:
    """The tasks that ``names`` stand for, by their names. A tag or a group stands for its tasks.

    ``standards``: examples and metric of some tasks, instead of those of their definitions. Raises InputError
    for an unknown name, for data that are not there, and for too few examples.
    """
    for folder in (data_folder, task_folder):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
    found: dict[str, Loaded] = {}
    with quiet(), datasets_session(Path(datasets.config.HF_DATASETS_CACHE)):
        manager = _manager(names, task_folder)
        entries = [manager.task_index[name] for name in names]
        parts = [sorted(each.tags) if each.kind.name == "TAG" else [each.name] for each in entries]
        for name in itertools.chain.from_iterable(parts):
            standard = standards.get(name)
            tasks = _load(manager, name, standard and standard[0], data_folder)
            found |= {key: _loaded(key, task, standard, limit) for key, task in tasks.items()}
    return found


def _manager(names: Sequence[str], task_folder: Path | None) -> Any:
    """The harness's index of tasks; all of its own only where it is needed."""
    import lm_eval

    tasks = Path(lm_eval.__file__).parent / "tasks"
    own = () if task_folder is None else (task_folder,)
    some = _index(*(tasks / each for each in _FOLDERS), *own)
    if set(names) <= set(some.all_subtasks):
        return some
    every = _index(tasks, *own)
    for name in names:
        if name not in every.all_tasks:
            near = difflib.get_close_matches(name, every.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "--task-folder names tasks of your own"
            raise InputError(f"lm-evaluation-harness has no task {name}: {hint}")
    return every


@cache
def _index(*folders: Path) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False, include_path=list(folders))


def _load(manager: Any, name: str, examples: int | None, data_folder: Path | None) -> dict[str, Any]:
    """The tasks of the harness behind a name, with their data."""
    entry = manager.task_index[name]
    definition = entry.cfg or {}
    here = None if data_folder is None else data_folder / name
    source = str(definition.get("dataset_path") or name)
    try:
        if here is not None and here.is_dir():
            with tempfile.TemporaryDirectory() as folder:
                override = Path(folder) / f"{name}.yaml"
                override.write_text(yaml.safe_dump(_override(entry, here, examples)), encoding="utf-8")
                tasks = manager.load([str(override)])["tasks"]
        else:
            if "/" in source and not Path(source).exists():
                _check_network(entry, data_folder)
            tasks = manager.load([name])["tasks"]
    except _FAILURES as error:
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"
        if isinstance(error, ImportError):
            problem = f"{name} needs another package ({reason}): see the extras of lm-eval"
        elif here is not None and here.is_dir():
            problem = f"{here} cannot be read as {name} ({reason}): it must hold the files of {source}"
        else:
            problem = f"{name}: {source} cannot be had ({reason}): {_way_out(entry, data_folder)}"
        raise InputError(problem) from None
    if examples is not None:
        for task in tasks.values():
            task.set_config(key="num_fewshot", value=examples)
    return dict(tasks)


def _override(entry: Any, folder: Path, examples: int | None) -> dict[str, Any]:
    """The definition of a task whose data lie in ``folder``: the splits of its dataset, a file or more each.

    A dataset of several parts may lie there whole: the task's part is the folder of that name.
    """
    if entry.kind.name != "TASK":
        raise InputError(
            f"{folder}: {entry.name} is not one task: name its tasks instead, each with a folder"
        )
    definition = entry.cfg
    part = folder / str(definition.get("dataset_name") or "")
    folder = part if part.is_dir() else folder
    splits = set(datasets.load_dataset_builder(str(folder)).config.data_files or ())
    asked = {key: definition.get(f"{key}_split") for key in ("training", "validation", "test", "fewshot")}
    needed = [asked["test"] or asked["validation"]]
    if examples or definition.get("num_fewshot"):
        needed.append(asked["fewshot"] or asked["training"] or needed[0])
    for split in needed:
        if split not in splits:
            raise InputError(
                f"{folder}: no file of the split {split} (such as {split}.jsonl or "
                f"{split}-00000-of-00001.parquet), which {entry.name} needs"
            )
    absent = {f"{key}_split": None for key, split in asked.items() if split and split not in splits}
    return {
        "include": str(entry.yaml_path),
        "task": entry.name,
        "dataset_path": str(folder.resolve()),
        "dataset_name": None,
        "dataset_kwargs": None,
        **absent,
    }


def _loaded(name: str, task: Any, standard: tuple[int, str] | None, limit: int | None) -> Loaded:
    if task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    examples = int(task.config.num_fewshot)
    questions = list(task.eval_docs)[:limit]
    if not questions:
        raise InputError(f"{name}: its data have no questions")
    pool = list(task.fewshot_docs()) if examples else []
    if examples and len(pool) < examples:
        raise InputError(f"{name}: {len(pool)} training questions are too few for {examples} examples")
    return Loaded(
        task=task,
        examples=examples,
        metric=standard[1] if standard else next(iter(task.aggregation())),
        version=str(task.VERSION),
        questions=len(questions),
        data=fingerprint("\n".join(repr(each) for each in [*questions, *pool])),
    )


def _check_network(entry: Any, data_folder: Path | None) -> None:
    """Raise InputError rather than wait for minutes while one download after the other is tried again."""
    if not constants.HF_HUB_OFFLINE and not _answers(constants.ENDPOINT):
        raise InputError(
            f"{entry.name}: {constants.ENDPOINT} does not answer: {_way_out(entry, data_folder)}; or set "
            "HF_HUB_OFFLINE=1 if it was downloaded before"
        )


def _way_out(entry: Any, data_folder: Path | None) -> str:
    if entry.kind.name == "GROUP":
        return "name its tasks instead, each with a folder of data"
    folder = f"put its data into {data_folder or 'DIR'}/{entry.name}"
    return folder if data_folder else f"{folder} and add --data-folder DIR"


@cache
def _answers(address: str) -> bool:
    """Whether a server is there; one that refuses us, or whose certificate is unknown here, is."""
    try:
        urllib.request.urlopen(address, timeout=10).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True
