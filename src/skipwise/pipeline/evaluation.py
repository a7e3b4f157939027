"""One model, some tasks -> `scores.json`, figures and the report page; what was measured is kept."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from skipwise.data.documents import load_documents
from skipwise.environment import default_device, exact_matmuls, facts
from skipwise.errors import InputError
from skipwise.evals.opening import open_local, open_served
from skipwise.evals.reader import Reader, encode, start_tokens
from skipwise.evals.run import Task, evaluate, model_identity
from skipwise.scores import FILE, Evaluation, Scores, Subject

Progress = Callable[[int, int], None]


def open_reader(
    model: str | None,
    *,
    name: str | None = None,
    base_url: str | None = None,
    tokenizer: str | None = None,
    dtype: str = "auto",
    attention: str = "auto",
    piece: int | None = None,
) -> Reader:
    """The model to judge: a checkpoint, or with ``base_url`` one that is served. ``name``: in the scores."""
    exact_matmuls()
    if base_url:
        return open_served(base_url, name=name or model or "served", model=model, tokenizer=tokenizer)
    if model is None:
        raise InputError("no model: name a checkpoint, or the address of a server with --base-url")
    if tokenizer is not None:
        raise InputError("--tokenizer goes with --base-url: a checkpoint has its own")
    return open_local(
        model,
        name=name or model_name(model),
        device=default_device(),
        dtype=dtype,
        attention=attention,
        piece=piece,
    )


def model_name(model: str) -> str:
    """A checkpoint's name without its folders and file ending."""
    return Path(model).resolve().name.removesuffix(".gguf") if Path(model).exists() else Path(model).name


def judge(
    reader: Reader,
    task: Task,
    output: Path,
    *,
    command: str,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Judge ``reader`` in ``task``, add what was found to ``output/scores.json``, and return it alone.

    Interrupted, the same call goes on from ``output/measured``. ``fresh``: what was measured of this task is
    deleted first. Raises InputError for a folder that holds results of other settings.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: name a folder with --output")
    name = reader.subject.name
    journal = output / "measured" / f"{file_name(name)}-{task.name}.jsonl"
    known = Scores.read(output) if (output / FILE).is_file() else Scores()
    _check_same_model(known, reader.subject, task.name, output)
    if fresh:
        journal.unlink(missing_ok=True)
    started = time.perf_counter()
    scores = evaluate(task, reader, journal=journal, progress=progress)
    record = Evaluation(
        model=name,
        task=task.name,
        seed=getattr(task, "seed", None),
        settings=task.settings,
        command=command,
        seconds=round(time.perf_counter() - started, 1),
        notes=tuple(getattr(task, "notes", ())),
        **facts(),
    )
    known.with_results(reader.subject, record, scores).write(output / FILE)
    return Scores().with_results(reader.subject, record, scores)


def _check_same_model(known: Scores, subject: Subject, task: str, output: Path) -> None:
    """Raise InputError where the scores of other tasks are those of another model of this name."""
    before = [each for each in known.subjects if each.name == subject.name]
    others = {each.task for each in known.evaluations if each.model == subject.name} - {task}
    if others and before and model_identity(before[0]) != model_identity(subject):
        raise InputError(
            f"{output / FILE} has {sorted(others)[0]} of another model called {subject.name} "
            f"({before[0].path} {before[0].revision}): choose another --output or --name"
        )


def file_name(name: str) -> str:
    """A model's name without what a file's name may not have on some system."""
    return re.sub(r'[\\/:*?"<>|\x00-\x1f]', "--", name)


def read_texts(files: Sequence[str], text_column: str, cache: Path, *, characters: int = 1) -> list[str]:
    """The texts of at least so many characters. Raises InputError if there is none, or no file."""
    if not files:
        raise InputError("no text: name some with --data")
    documents = load_documents(files, text_column=text_column, cache_dir=cache)
    texts = [str(text) for text in documents["text"] if len(text) >= characters]
    if not texts:
        raise InputError(f"{files[0]}: no document has {characters} characters: evaluate shorter lengths")
    return texts


def tokenize(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, tokens: int, count: int
) -> list[NDArray[np.int64]]:
    """The first ``count`` documents of at least ``tokens`` tokens, cut there; the longest others if too few.

    Each begins with what the tokenizer puts before every text.
    """
    found: list[NDArray[np.int64]] = []
    full = 0
    start = start_tokens(tokenizer)
    for text in sorted(texts, key=lambda each: len(each) < 8 * tokens):  # those that are surely long first
        if full == count:
            break
        # a token of any tokenizer in use has under 64 characters on average: what is cut off is not needed
        found.append(np.array((start + encode(tokenizer, text[: 64 * tokens]))[:tokens], dtype=np.int64))
        full += len(found[-1]) == tokens
    found.sort(key=lambda each: -len(each))
    return found[:count]
