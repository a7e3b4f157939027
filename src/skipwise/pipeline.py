"""The main job, end to end: a recipe goes in, a checkpoint with a longer window and its evidence come out.

    checkpoint, documents -> rope -> probes -> rows -> training -> export -> evaluation -> scores and report

Every model of the comparison is a `Variant`. Each is finished (trained, exported, evaluated) before the next
begins, and what is finished lies in the run folder: the same command again goes on where it stopped.
"""

from __future__ import annotations

import gc
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from skipwise.config import Interpolation, Recipe, format_length, save_recipe
from skipwise.data.coverage import coverage
from skipwise.data.documents import load_documents
from skipwise.data.passages import Passages, TokenizedDocuments, split_documents, tokenize_documents
from skipwise.data.rows import Rows
from skipwise.data.samplers import make_sampler, title
from skipwise.data.skips import Contiguous, Sampler
from skipwise.environment import default_device, exact_matmuls, facts, peak_memory_gib
from skipwise.errors import InputError
from skipwise.evals.passkey import passkey_scores
from skipwise.evals.perplexity import perplexity_scores
from skipwise.evals.scores import SCHEMA, Score
from skipwise.export.checkpoint import export_checkpoint
from skipwise.files import disk_errors, write_json
from skipwise.models.load import Checkpoint, find_checkpoint, load_config, load_model, load_tokenizer
from skipwise.report import write_report
from skipwise.rope import extend_rope, model_window
from skipwise.train.engine import train

Say = Callable[[str], None]

METHODS: dict[Interpolation, str] = {
    "linear": "linear",
    "ntk": "NTK",
    "abf": "new-base",
    "yarn": "YaRN",
    "ntk-by-parts": "NTK-by-parts",
    "pose-yarn": "PoSE's YaRN",
    "llama3": "Llama 3",
    "longrope": "LongRoPE",
    "none": "no",
}
"""The interpolations in the words of the report."""


@dataclass(frozen=True, slots=True)
class Base:
    """The model to extend and the lengths that follow from it, in tokens."""

    checkpoint: Checkpoint
    config: PretrainedConfig
    extended_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    window: int
    train_length: int
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """One model of the comparison: its config (None: as published), and how it is trained (None: not)."""

    name: str
    title: str
    description: str
    config: PretrainedConfig | None
    sampler: Sampler | None
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is trained on and what is judged on."""

    train: TokenizedDocuments
    held_out: TokenizedDocuments
    notes: tuple[str, ...]


def extend(recipe: Recipe, output: Path, *, command: str, say: Say = print) -> Path:
    """Run ``recipe`` in the folder ``output`` and return the path of the report page.

    ``output/checkpoint`` holds the extended model. Raises InputError for a recipe that cannot be run (before
    anything is trained) and RunError when a run fails; what was finished before is kept and found again.
    """
    exact_matmuls()
    base = _base(recipe)
    variants = _variants(recipe, base, output)
    _claim(output, recipe)
    started = time.perf_counter()
    corpus = _corpus(recipe, base, output / "cache")
    seconds = {"documents": time.perf_counter() - started}
    parts = []
    for number, variant in enumerate(variants, start=1):
        say(f"[{number}/{len(variants)}] {variant.title}: {variant.description}")
        parts.append(_finish(recipe, base, corpus, variant, output, say))
        seconds |= parts[-1]["seconds"]
    scores = [score for part in parts for score in part["scores"]]
    write_json(output / "scores.json", {"schema": SCHEMA, "scores": scores})
    write_json(
        output / "run.json",
        {
            "title": _title(recipe, base),
            "command": command,
            "recipe": recipe.model_dump(mode="json"),
            "seed": recipe.seed,
            "window": base.window,
            "train_length": base.train_length,
            "target_length": recipe.target_length,
            "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
            "peak_memory_gib": round(max(part["peak_memory_gib"] for part in parts), 2),
            "models": [
                {"name": each.name, "title": each.title, "description": each.description} for each in variants
            ],
            "training": {part["name"]: part["training"] for part in parts if part["training"]},
            "coverage": _coverage([each for each in variants if each.sampler]),
            "data": {key: value for part in parts for key, value in part["data"].items()},
            "notes": list(corpus.notes),
            **facts(),
        },
    )
    return write_report(output)


def _base(recipe: Recipe) -> Base:
    checkpoint = find_checkpoint(recipe.model)
    config = load_config(checkpoint)
    window = model_window(config)
    target, train_length = recipe.target_length, recipe.train_length or window
    if target <= window:
        raise InputError(
            f"--target-length {target} is not larger than the model's window of {window} tokens: "
            "there is nothing to extend"
        )
    if train_length > window and not recipe.allow_longer_rows:
        raise InputError(
            f"--train-length {train_length} is larger than the model's window of {window} tokens: lower it, "
            "or say --allow-longer-rows"
        )
    if train_length > target:
        raise InputError(f"--train-length {train_length} is larger than --target-length {target}")
    extended = extend_rope(config, target, recipe.interpolation, recipe.interpolation_options)
    lengths = tuple(sorted(set(recipe.evaluation.lengths))) or _doublings(window, target)
    return Base(checkpoint, config, extended, load_tokenizer(checkpoint), window, train_length, lengths)


def _title(recipe: Recipe, base: Base) -> str:
    window, target = format_length(base.window), format_length(recipe.target_length)
    return f"{Path(recipe.model).name}, {window} to {target} tokens"


def _doublings(window: int, target: int) -> tuple[int, ...]:
    lengths = []
    while window < target:
        lengths.append(window)
        window *= 2
    return (*lengths, target)


def _claim(output: Path, recipe: Recipe) -> None:
    """Take ``output`` for this recipe, or go on with the run of the same recipe that lies there.

    A recipe that was refused before it made anything (a mistyped file name) gives way to the corrected one.
    """
    recipe_file = output / "recipe.yaml"
    if recipe_file.is_file():
        if yaml.safe_load(recipe_file.read_text(encoding="utf-8")) == recipe.model_dump(mode="json"):
            return
        if any((output / name).exists() for name in ("parts", "train")):
            raise InputError(
                f"{output} holds a run of another recipe: choose another --output, or start over with --fresh"
            )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not a run of skipwise: choose another --output")
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, recipe_file)


def _corpus(recipe: Recipe, base: Base, cache: Path) -> Corpus:
    if not recipe.data.files:
        raise InputError("no training text: name some with --data")

    def read(sources: tuple[str, ...]) -> TokenizedDocuments:
        documents = load_documents(sources, text_column=recipe.data.text_column, cache_dir=cache)
        return tokenize_documents(documents, base.tokenizer, cache_dir=cache)

    with disk_errors(cache):
        documents = read(recipe.data.files)
        if recipe.data.evaluation_files:
            train_documents, held_out = documents, read(recipe.data.evaluation_files)
        else:
            train_documents, held_out = _set_aside(recipe, base, documents)
    longest = int(held_out.lengths.max(initial=0))
    notes = []
    if longest < max(base.lengths):
        notes.append(
            f"The longest document to judge on has {longest} tokens: perplexity is not measured beyond."
        )
    return Corpus(train_documents, held_out, tuple(notes))


def _set_aside(
    recipe: Recipe, base: Base, documents: TokenizedDocuments
) -> tuple[TokenizedDocuments, TokenizedDocuments]:
    """Hold out documents as long as the longest length for which there are at least four."""
    for length in sorted(base.lengths, reverse=True):
        if int((documents.lengths >= length).sum()) >= 4:
            held_out = recipe.evaluation.documents
            return split_documents(documents, held_out=held_out, min_length=length, seed=recipe.seed)
    raise InputError(
        f"too little text: fewer than 4 documents have the {min(base.lengths)} tokens of the shortest "
        "evaluation length; add documents, or name some to judge on with --eval-data"
    )


def _variants(recipe: Recipe, base: Base, output: Path) -> list[Variant]:
    target = format_length(recipe.target_length)
    config = base.extended_config
    sampler = _sampler(recipe, base)
    method = METHODS[recipe.interpolation]
    found = [
        Variant("untouched", "Untouched", "the checkpoint as it was given", None, None, None),
        Variant(
            "interpolated",
            "Interpolated",
            f"{method} interpolation to {target}, not trained",
            config,
            None,
            None,
        ),
    ]
    budget = f"{recipe.training.steps} steps of {recipe.training.rows_per_step} rows"
    if recipe.control and recipe.sampler.name != "contiguous":
        control = Contiguous(base.train_length, recipe.target_length)
        words = f"the same interpolation, {budget} of {format_length(base.train_length)} tokens, no skips"
        folder = output / "controls" / "contiguous"
        found.append(Variant("contiguous", "Contiguous control", words, config, control, folder))
    cut = f" in {recipe.sampler.chunks} chunks" if recipe.sampler.name in ("pose", "balanced") else ""
    words = f"the same interpolation, {budget} of {format_length(sampler.row_length)} tokens{cut}"
    name = re.sub("[:,]", "-", recipe.sampler.name)  # of files too: pose-0.8-contiguous-0.2
    found.append(Variant(name, title(sampler), words, config, sampler, output / "checkpoint"))
    return found


def _sampler(recipe: Recipe, base: Base) -> Sampler:
    asked = recipe.sampler.model_dump()
    try:
        return make_sampler(asked.pop("name"), base.train_length, recipe.target_length, **asked)
    except ValueError as error:
        raise InputError(str(error)) from None


def _finish(
    recipe: Recipe, base: Base, corpus: Corpus, variant: Variant, output: Path, say: Say
) -> dict[str, Any]:
    """Train, export and evaluate one variant, or read what an earlier run of the same recipe found."""
    part_file = output / "parts" / f"{variant.name}.json"
    if part_file.is_file():
        say("      finished earlier")
        part: dict[str, Any] = json.loads(part_file.read_text(encoding="utf-8"))
        return part
    part = {"name": variant.name, "seconds": {}, "training": [], "data": {}}
    trained = output / "train" / f"{variant.name}.json"
    if variant.sampler is not None and not trained.is_file():
        write_json(trained, _train(recipe, base, corpus, variant, variant.sampler, output, say))
        shutil.rmtree(output / "train" / variant.name)  # resume points of a finished training
    if trained.is_file():
        part |= json.loads(trained.read_text(encoding="utf-8"))
    started = time.perf_counter()
    checkpoint = Checkpoint(str(variant.folder)) if variant.folder else base.checkpoint
    model = load_model(
        checkpoint,
        None if variant.folder else variant.config,
        attention="sdpa" if recipe.attention == "auto" else recipe.attention,
        device=default_device(),
    )
    part["scores"] = _evaluate(recipe, base, corpus, variant.name, model)
    part["seconds"][f"evaluate {variant.name}"] = time.perf_counter() - started
    part["peak_memory_gib"] = peak_memory_gib()
    write_json(part_file, part)
    _release(model)
    return part


def _train(
    recipe: Recipe,
    base: Base,
    corpus: Corpus,
    variant: Variant,
    sampler: Sampler,
    output: Path,
    say: Say,
) -> dict[str, Any]:
    shortest, longest = sampler.passage_length
    passages = Passages(corpus.train, min_length=shortest, max_length=longest, seed=recipe.seed)
    dropped = f"; {passages.dropped} shorter than {shortest} tokens are left out" if passages.dropped else ""
    say(f"      training text: {passages.kept} documents{dropped}")
    count = recipe.training.steps * recipe.training.rows_per_step
    rows = Rows(passages, sampler, count=count, seed=recipe.seed)
    model = load_model(
        base.checkpoint,
        variant.config,
        attention="sdpa" if recipe.attention == "auto" else recipe.attention,
        device=default_device(),
        gradient_checkpointing=recipe.training.gradient_checkpointing,
    )
    assert variant.folder is not None
    with disk_errors(output):
        result = train(
            model,
            rows,
            recipe.training,
            output / "train" / variant.name,
            seed=recipe.seed,
            title=variant.title,
            accept_limits=recipe.accept_limits,
        )
        export_checkpoint(model, base.tokenizer, variant.folder, dtype=_dtype(base.config))
    _release(model)
    return {
        "training": result.curve,
        "seconds": {f"train {variant.name}": result.seconds},
        "data": {
            "documents in training": passages.kept,
            f"documents shorter than {shortest} tokens, dropped": passages.dropped,
            "documents held out": len(corpus.held_out),
            "tokens in the training documents": corpus.train.total_tokens,
            f"tokens seen in training ({variant.title})": result.tokens,
            f"passes over the text ({variant.title})": round(count / len(passages), 2),
        },
    }


def _evaluate(recipe: Recipe, base: Base, corpus: Corpus, name: str, model: PreTrainedModel) -> list[Score]:
    model.eval()
    scores = passkey_scores(
        model, base.tokenizer, base.lengths, name=name, trials=recipe.evaluation.trials, seed=recipe.seed
    )
    order = np.argsort(-corpus.held_out.lengths, kind="stable")[: recipe.evaluation.documents]
    documents = [corpus.held_out[int(index)] for index in order]
    return scores + perplexity_scores(model, documents, base.lengths, name=name)


def _coverage(variants: list[Variant]) -> dict[str, Any]:
    """Coverage curves of the samplers in use, thinned to about 500 distances."""
    if not variants:
        return {}
    target = max(each.sampler.target_length for each in variants if each.sampler)
    distance = np.arange(1, target, max(target // 500, 1))
    curves = {}
    for each in variants:
        assert each.sampler is not None
        full = np.zeros(target - 1)
        found = coverage(each.sampler).probability
        full[: len(found)] = found
        curves[each.title] = [round(float(value), 5) for value in full[distance - 1]]
    return {"distance": distance.tolist(), "probability": curves}


def _dtype(config: PretrainedConfig) -> torch.dtype | None:
    """The dtype of the checkpoint to extend, in which the extended one is written too."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else None


def _release(model: PreTrainedModel) -> None:
    """Free a model's memory before the next one is loaded."""
    torch.nn.Module.to(model, "meta")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
