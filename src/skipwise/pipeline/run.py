"""The two runs of a recipe: `train`, and `extend`, which also judges every model of the comparison.

Each variant is finished (trained, exported, evaluated) before the next begins, and what is finished lies in
the run folder: the same command again goes on where it stopped, and `extend` goes on from what `train` made.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from skipwise import processes
from skipwise.config import Recipe, format_length
from skipwise.data.coverage import coverage
from skipwise.environment import default_device, exact_matmuls, facts, idle_gpus, peak_memory_gib
from skipwise.errors import InputError
from skipwise.evals.local import LocalReader
from skipwise.evals.opening import describe
from skipwise.evals.passkey import Passkey
from skipwise.evals.perplexity import Perplexity
from skipwise.evals.run import Task, evaluate
from skipwise.files import write_json
from skipwise.models.load import Checkpoint, load_model
from skipwise.pipeline.base import Base, claim, find_base, sharpened
from skipwise.pipeline.corpus import Corpus, read_corpus
from skipwise.pipeline.training import Say, release, trained
from skipwise.pipeline.variants import Variant, variants
from skipwise.report import write_report
from skipwise.scores import FILE, Evaluation, Scores


def train(recipe: Recipe, output: Path, *, command: str, say: Say = print) -> Path:
    """Train as ``recipe`` says in the folder ``output`` and return the folder of the extended checkpoint.

    Nothing is judged, and a control is not trained. Raises InputError for a recipe that cannot be run (before
    anything is trained) and RunError when a run fails; what was finished before is kept and found again.
    """
    exact_matmuls()
    base = find_base(recipe)
    wanted = variants(recipe, base, output)[-1]
    assert wanted.folder is not None
    with processes.main_first():
        claim(output, recipe)
        corpus = read_corpus(recipe, base, output / "cache", judged=False)
    if hint := idle_gpus():
        say(hint)
    say(f"{wanted.title}: {wanted.description}")
    part = trained(recipe, base, corpus, wanted, output, say)
    part["peak_memory_gib"] = peak_memory_gib()
    if processes.is_main():
        _write_record(recipe, base, [wanted], [part], command, output)
    return wanted.folder


def extend(recipe: Recipe, output: Path, *, command: str, say: Say = print) -> Path:
    """Run ``recipe`` in the folder ``output`` and return the path of the report page.

    ``output/checkpoint`` holds the extended model. Raises as `train` does.
    """
    exact_matmuls()
    if processes.count() > 1:
        raise InputError(
            "a comparison is judged by one process: start skipwise train with the launcher, then the same "
            "skipwise extend without one; it goes on from there"
        )
    base = find_base(recipe)
    compared = variants(recipe, base, output)
    claim(output, recipe)
    started = time.perf_counter()
    corpus = read_corpus(recipe, base, output / "cache")
    reading = {"seconds": {"documents": time.perf_counter() - started}}
    parts = []
    for number, variant in enumerate(compared, start=1):
        say(f"[{number}/{len(compared)}] {variant.title}: {variant.description}")
        parts.append(_finish(recipe, base, corpus, variant, output, command, say))
    Scores.joined(Scores.read(output / "parts" / f"{each.name}.scores.json") for each in compared).write(
        output / FILE
    )
    _write_record(recipe, base, compared, [reading, *parts], command, output, notes=corpus.notes)
    return write_report(output)


def _finish(
    recipe: Recipe, base: Base, corpus: Corpus, variant: Variant, output: Path, command: str, say: Say
) -> dict[str, Any]:
    """Train, export and evaluate one variant, or read what an earlier run of the same recipe found."""
    part_file = output / "parts" / f"{variant.name}.json"
    if part_file.is_file():
        say("      finished earlier")
        part: dict[str, Any] = json.loads(part_file.read_text(encoding="utf-8"))
        return part
    part = {"name": variant.name, "seconds": {}, "training": [], "data": {}}
    if variant.sampler is not None:
        part |= trained(recipe, base, corpus, variant, output, say)
    started = time.perf_counter()
    reader = _open(recipe, base, variant, output)
    _judge(recipe, corpus, base.lengths, reader, output / "parts", command)
    part["seconds"][f"evaluate {variant.name}"] = time.perf_counter() - started
    part["peak_memory_gib"] = peak_memory_gib()
    write_json(part_file, part)
    release(reader.model)
    return part


def _open(recipe: Recipe, base: Base, variant: Variant, output: Path) -> LocalReader:
    checkpoint = Checkpoint(str(variant.folder)) if variant.folder else base.checkpoint
    model = load_model(
        checkpoint,
        None if variant.folder else variant.config,
        attention=recipe.attention,
        device=default_device(),
    )
    if variant.config is not None and not variant.folder:
        sharpened(model, recipe.interpolation, recipe.interpolation_options)  # exported ones have it
    subject = describe(model.config, base.tokenizer, name=variant.name, checkpoint=checkpoint)
    words = {"title": variant.title, "description": variant.description, "dtype": "float32"}
    if variant.folder:
        words["path"] = variant.folder.relative_to(output).as_posix()  # a run folder may be moved
    return LocalReader(model, base.tokenizer, subject.model_copy(update=words))


def _judge(
    recipe: Recipe, corpus: Corpus, lengths: tuple[int, ...], reader: LocalReader, folder: Path, command: str
) -> None:
    """Write the scores of one variant; what was measured before an interruption is not measured again."""
    name, order = reader.subject.name, np.argsort(-corpus.held_out.lengths, kind="stable")
    documents = [corpus.held_out[int(index)] for index in order[: recipe.evaluation.documents]]
    tasks: list[Task] = [Passkey(lengths=lengths, trials=recipe.evaluation.trials, seed=recipe.seed)]
    if any(len(document) >= min(lengths) for document in documents):
        tasks.append(Perplexity(documents=documents, lengths=lengths))
    found = Scores()
    for task in tasks:
        scores = evaluate(task, reader, journal=folder / f"{name}-{task.name}.jsonl")
        record = Evaluation(
            model=name, task=task.name, seed=recipe.seed, settings=task.settings, command=command, **facts()
        )
        found = found.with_results(reader.subject, record, scores)
    found.write(folder / f"{name}.scores.json")


def _write_record(
    recipe: Recipe,
    base: Base,
    compared: list[Variant],
    parts: list[dict[str, Any]],
    command: str,
    output: Path,
    notes: tuple[str, ...] = (),
) -> None:
    """``run.json``: what was run, on what, and what it took."""
    seconds = {stage: value for part in parts for stage, value in part.get("seconds", {}).items()}
    window, target = format_length(base.window), format_length(recipe.target_length)
    record = {
        "title": f"{Path(recipe.model).name}, {window} to {target} tokens",
        "command": command,
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "window": base.window,
        "train_length": base.train_length,
        "target_length": recipe.target_length,
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
        "peak_memory_gib": round(max(part.get("peak_memory_gib", 0.0) for part in parts), 2),
        "models": [
            {"name": each.name, "title": each.title, "description": each.description} for each in compared
        ],
        "training": {part["name"]: part["training"] for part in parts if part.get("training")},
        "coverage": _coverage([each for each in compared if each.sampler]),
        "data": {key: value for part in parts for key, value in part.get("data", {}).items()},
        "notes": list(notes),
        **facts(),
    }
    write_json(output / "run.json", record)


def _coverage(trained_variants: list[Variant]) -> dict[str, Any]:
    """Coverage curves of the samplers in use, thinned to about 500 distances."""
    if not trained_variants:
        return {}
    target = max(each.sampler.target_length for each in trained_variants if each.sampler)
    distance = np.arange(1, target, max(target // 500, 1))
    curves = {}
    for each in trained_variants:
        assert each.sampler is not None
        full = np.zeros(target - 1)
        found = coverage(each.sampler).probability
        full[: len(found)] = found
        curves[each.title] = [round(float(value), 5) for value in full[distance - 1]]
    return {"distance": distance.tolist(), "probability": curves}
