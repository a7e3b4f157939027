"""What a run starts from: the model to extend, the lengths that follow, and the run folder it claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from skipwise.config import Recipe, save_recipe
from skipwise.errors import InputError
from skipwise.files import disk_errors
from skipwise.models.hints import check_stock_config
from skipwise.models.load import Checkpoint, find_checkpoint, load_config, load_tokenizer
from skipwise.models.sharpen import sharpen
from skipwise.rope import extend_rope, model_window


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


def find_base(recipe: Recipe) -> Base:
    """The model of ``recipe``; InputError for lengths that do not fit it."""
    checkpoint = find_checkpoint(recipe.model)
    check_stock_config(checkpoint)
    config = load_config(checkpoint)
    window = model_window(config)
    target, train_length = recipe.target_length, recipe.train_length or window
    if target <= window:
        raise InputError(
            f"a target_length of {target} is not larger than the model's window of {window} tokens: "
            "there is nothing to extend"
        )
    if train_length > window and not recipe.allow_longer_rows:
        raise InputError(
            f"a train_length of {train_length} is larger than the model's window of {window} tokens: "
            "lower it, or allow_longer_rows"
        )
    if train_length > window and any(each.taught for each in recipe.data.beside):
        raise InputError(
            f"data.beside: taught rows of {train_length} tokens are longer than the window of {window} in "
            "which the untouched model can teach: lower train_length, or leave taught out"
        )
    if train_length > target:
        raise InputError(f"a train_length of {train_length} is larger than the target_length of {target}")
    extended = extend_rope(config, target, recipe.interpolation, recipe.interpolation_options)
    lengths = tuple(sorted(set(recipe.evaluation.lengths))) or _doublings(window, target)
    return Base(checkpoint, config, extended, load_tokenizer(checkpoint), window, train_length, lengths)


def sharpened(
    model: PreTrainedModel, interpolation: str, options: Mapping[str, float | list[float]]
) -> PreTrainedModel:
    """``model``, loaded with the extended config, with the attention factor that its config cannot hold."""
    factor = options.get("attention_factor")
    if interpolation in ("abf", "ntk") and isinstance(factor, int | float):
        sharpen(model, factor)
    return model


def _doublings(window: int, target: int) -> tuple[int, ...]:
    lengths = []
    while window < target:
        lengths.append(window)
        window *= 2
    return (*lengths, target)


def claim(output: Path, recipe: Recipe) -> None:
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
    elif output.exists() and (not output.is_dir() or _names(output) - {f"{recipe_file.name}.partial"}):
        raise InputError(f"{output} exists and is not a run of skipwise: choose another --output")
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, recipe_file)


def _names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}
