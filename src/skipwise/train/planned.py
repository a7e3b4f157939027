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
from skipwise.plan.memory import Loss, Method, Settings, training_memory
from skipwise.plan.speed import model_flops

_GIB = 1024**3


def settings_of(recipe: TrainingRecipe, row_length: int, micro_batch: int, *, liger: bool) -> Settings:
    """``recipe`` in the words of the plan."""
    adapter, method = recipe.adapter, "full"
    if adapter is not None:
        method = "lora" if adapter.quantize == "none" else "qlora"
    loss: Loss = "fused" if liger else "chunked" if recipe.logits_chunk else "whole"
    kind: Method = method  # type: ignore[assignment]
    return Settings(
        row_length=row_length,
        method=kind,
        weights=recipe.weights,
        optimizer=recipe.optimizer,
        micro_batch=micro_batch,
        accumulates=recipe.rows_per_step > micro_batch * processes.count(),
        gradient_checkpointing=recipe.gradient_checkpointing is True,
        liger=liger,
        loss=loss,
        logits_chunk=recipe.logits_chunk or 1024,
        rank=adapter.rank if adapter else 16,
        gpus=processes.count() if recipe.sharding != "none" or recipe.deepspeed else 1,
    )


def wants_checkpointing(config: PretrainedConfig, recipe: TrainingRecipe, row_length: int) -> bool:
    """Whether activations are to be computed again instead of kept, as the recipe says.

    ``auto``: if a step that keeps them would not fit on the GPU, by the plan.
    """
    if recipe.gradient_checkpointing != "auto":
        return recipe.gradient_checkpointing
    if not torch.cuda.is_available():
        return False
    micro_batch = 1 if recipe.micro_batch == "auto" else recipe.micro_batch
    settings = settings_of(recipe, row_length, micro_batch, liger=False)
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return training_memory(model_size(config), settings).total > USABLE * total


def flops(model: PreTrainedModel, recipe: TrainingRecipe, row_length: int) -> tuple[float, float] | None:
    """Operations that a token takes in training, and those that all GPUs can do in a second.

    None on a CPU, for a GPU that the plan does not know, and for a model that it cannot size.
    """
    size = _size(model)
    gpu = hardware_called(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if size is None or gpu is None:
        return None
    settings = settings_of(recipe, row_length, 1, liger=False)
    return model_flops(size, settings) / settings.tokens, processes.count() * gpu.tflops * 1e12


def needs(model: PreTrainedModel, recipe: TrainingRecipe, row_length: int, micro_batch: int) -> str:
    """What the plan says of the memory of a step, and of steps that take less: one sentence, or nothing."""
    size = _size(model)
    if size is None:
        return ""
    settings = settings_of(recipe, row_length, micro_batch, liger=False)
    planned = training_memory(size, settings).total
    less = [
        f"{words} {total / _GIB:.1f} GiB"
        for words, total in smaller(size, settings, 1)
        if total < planned and "GPUs" not in words
    ]
    return f"planned are {planned / _GIB:.1f} GiB; {', then '.join(less)}" if less else ""


def _size(model: PreTrainedModel) -> ModelSize | None:
    try:
        return model_size(model.config)
    except InputError:
        return None
