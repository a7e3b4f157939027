"""A training as `skipwise.plan` counts it: what a token costs, and what would take less memory."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedModel

from skipwise import processes
from skipwise.config import TrainingRecipe
from skipwise.errors import InputError
from skipwise.models.size import ModelSize, model_size
from skipwise.plan import smaller
from skipwise.plan.hardware import USABLE, hardware_called
from skipwise.plan.memory import Method, Settings, training_memory
from skipwise.plan.speed import model_flops

_GIB = 1024**3


def settings_of(
    recipe: TrainingRecipe, row_length: int, micro_batch: int, *, taught: bool = False
) -> Settings:
    """``recipe`` in the words of the plan; without Liger's kernels, which only take less."""
    adapter = recipe.adapter
    method: Method = "full"
    if adapter is not None:
        method = "lora" if adapter.quantize == "none" else "qlora"
    return Settings(
        row_length=row_length,
        method=method,
        weights=recipe.weights,
        optimizer=recipe.optimizer,
        micro_batch=micro_batch,
        accumulates=recipe.rows_per_step > micro_batch * processes.count(),
        gradient_checkpointing=recipe.gradient_checkpointing is True,
        liger=False,
        loss="chunked" if recipe.logits_chunk else "whole",
        logits_chunk=recipe.logits_chunk or 1024,
        rank=adapter.rank if adapter else 16,
        gpus=processes.count() if recipe.sharding != "none" or recipe.deepspeed else 1,
        taught=taught,
    )


def wants_checkpointing(
    config: PretrainedConfig, recipe: TrainingRecipe, row_length: int, *, taught: bool = False
) -> bool:
    """Whether activations are to be computed again instead of kept, as the recipe says.

    ``auto``: if a step that keeps them would not fit on the GPU, by the plan; ``taught``: beside a teacher.
    """
    if recipe.gradient_checkpointing != "auto":
        return recipe.gradient_checkpointing
    if not torch.cuda.is_available():
        return False
    micro_batch = 1 if recipe.micro_batch == "auto" else recipe.micro_batch
    settings = settings_of(recipe, row_length, micro_batch, taught=taught)
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    size = _size(config)
    return size is not None and training_memory(size, settings).total > USABLE * total


def flops(model: PreTrainedModel, recipe: TrainingRecipe, row_length: int) -> tuple[float, float] | None:
    """Operations that a token takes in training, and those that all GPUs can do in a second.

    None on a CPU, for a GPU that the plan does not know, and for a model that it cannot size.
    """
    gpu = hardware_called(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    size = _size(model.config) if gpu else None  # which takes seconds
    if gpu is None or size is None:
        return None
    settings = settings_of(recipe, row_length, 1)
    return model_flops(size, settings) / settings.tokens, processes.count() * gpu.tflops * 1e12


def needs(
    model: PreTrainedModel, recipe: TrainingRecipe, row_length: int, micro_batch: int, *, taught: bool = False
) -> str:
    """What the plan says of the memory of a step, and of steps that take less: one sentence, or nothing."""
    size = _size(model.config)
    if size is None:
        return ""
    settings = settings_of(recipe, row_length, micro_batch, taught=taught)
    planned = training_memory(size, settings).total
    less = [
        f"{words} {total / _GIB:.1f} GiB"
        for words, total in smaller(size, settings, 1)
        if total < planned and "GPUs" not in words
    ]
    return f"planned are {planned / _GIB:.1f} GiB; {', then '.join(less)}" if less else ""


def _size(config: PretrainedConfig) -> ModelSize | None:
    try:
        return model_size(config)
    except InputError:
        return None
