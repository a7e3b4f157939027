"""One variant of a comparison, trained and exported; what is finished is not done again."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from skipwise import processes
from skipwise.config import Recipe
from skipwise.environment import default_device
from skipwise.evals.passkey import share_found
from skipwise.export.checkpoint import export_checkpoint
from skipwise.files import disk_errors, write_json
from skipwise.models.load import load_model
from skipwise.pipeline.base import Base, sharpened
from skipwise.pipeline.corpus import Corpus
from skipwise.pipeline.parts import blend, described, facts
from skipwise.pipeline.variants import Variant
from skipwise.train import engine
from skipwise.train.adapters import (
    WEIGHTS,
    add_adapter,
    half_products,
    loaded_dtype,
    merged,
    quantization,
)
from skipwise.train.planned import wants_checkpointing
from skipwise.train.selection import train_only
from skipwise.train.sharding import load_device

Say = Callable[[str], None]


def trained(
    recipe: Recipe, base: Base, corpus: Corpus, variant: Variant, output: Path, say: Say
) -> dict[str, Any]:
    """Train ``variant`` and export it to its folder; returns its curve, seconds and data, for the record."""
    assert variant.sampler is not None
    record = output / "train" / f"{variant.name}.json"
    if processes.any_of(not record.is_file()):
        found = _train(recipe, base, corpus, variant, output, say)
        with processes.main_first():
            if processes.is_main():
                write_json(record, found)
    if processes.is_main():  # resume points of a finished training; its curve and trackers' files stay
        for checkpoint in (output / "train" / variant.name).glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
    part: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return part


def _train(
    recipe: Recipe, base: Base, corpus: Corpus, variant: Variant, output: Path, say: Say
) -> dict[str, Any]:
    rows = blend(recipe, corpus.parts, variant.samplers)
    for line in described(corpus.parts, rows):
        say(f"      {line}")
    assert variant.folder is not None
    with disk_errors(output):
        result = engine.train(
            _load(recipe, base, variant, taught=bool(rows.taught)),
            rows,
            recipe.training,
            output / "train" / variant.name,
            seed=recipe.seed,
            title=variant.title,
            accept_limits=recipe.accept_limits,
            retrieval=_retrieval(recipe, base),
            teacher=_teacher(recipe, base) if rows.taught else None,
        )
        if processes.is_main():
            model = merged(result.model, _unquantised(recipe, base, variant))
            export_checkpoint(model, base.tokenizer, variant.folder, dtype=_dtype(base.config))
    release(result.model)
    return {
        "name": variant.name,
        "training": result.curve,
        "retrieval": result.retrieval,
        "seconds": {f"train {variant.name}": result.seconds},
        "data": {
            **facts(corpus.parts, rows, variant.title),
            "documents held out": len(corpus.held_out),
            f"tokens seen in training ({variant.title})": result.tokens,
            f"checkpoint kept ({variant.title})": f"step {result.kept_step}",
        },
    }


def _load(recipe: Recipe, base: Base, variant: Variant, *, taught: bool) -> PreTrainedModel:
    """The model to train, on its device, with adapters if the recipe says so."""
    training, device = recipe.training, load_device(recipe.training)
    config = variant.config or base.config
    assert variant.sampler is not None
    dtype = loaded_dtype(training, default_device())
    model = load_model(
        base.checkpoint,
        config,
        dtype=dtype,
        attention=recipe.attention,
        device=device,
        gradient_checkpointing=wants_checkpointing(
            config, training, variant.sampler.row_length, taught=taught
        ),
        quantization=quantization(training, dtype),
    )
    if variant.config is not None:
        sharpened(model, recipe.interpolation, recipe.interpolation_options)
    train_only(model, training.only)
    if training.adapter is None:
        return model
    return add_adapter(model, training.adapter, dtype=WEIGHTS[training.weights], seed=recipe.seed)


def _teacher(recipe: Recipe, base: Base) -> PreTrainedModel:
    """The untouched model, as it was published."""
    device = default_device()
    dtype = torch.bfloat16 if half_products(recipe.training, device) else torch.float32
    return load_model(base.checkpoint, dtype=dtype, attention=recipe.attention, device=device)


def _unquantised(recipe: Recipe, base: Base, variant: Variant) -> PreTrainedModel | None:
    """The same checkpoint without quantization, for adapters to be merged into."""
    if recipe.training.adapter is None or recipe.training.adapter.quantize == "none":
        return None
    return load_model(base.checkpoint, variant.config, attention=recipe.attention)


def _retrieval(recipe: Recipe, base: Base) -> engine.Retrieval:
    """The cheap look during training: few passkey prompts, of another seed than those of the judgement."""
    asked = recipe.training.retrieval
    length = asked.length or recipe.target_length

    def look(model: PreTrainedModel) -> float:
        return share_found(model, base.tokenizer, length, trials=asked.trials, seed=recipe.seed + 1)

    return look


def _dtype(config: PretrainedConfig) -> torch.dtype | None:
    """The dtype of the checkpoint to extend, in which the extended one is written too."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else None


def release(model: PreTrainedModel) -> None:
    """Free a model's memory before the next one is loaded."""
    torch.nn.Module.to(model, "meta")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
