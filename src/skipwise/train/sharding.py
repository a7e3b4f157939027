"""A run that asked for sharding gets it, or stops; and its model is put together again at the end.

FSDP2 (torch's ``fully_shard``) and DeepSpeed ZeRO divide weights, gradients and optimizer over the processes.
Accelerate falls back to a whole copy in each of them, or to several runs side by side, without a word and
with exit code 0: on a CPU, under another launcher, with a config file that says nothing. So what came out is
looked at, here before the first step.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from skipwise import processes
from skipwise.config import TrainingRecipe
from skipwise.environment import default_device
from skipwise.errors import RunError


def is_sharded(recipe: TrainingRecipe) -> bool:
    """Whether ``recipe`` asks for a model that is divided over the processes."""
    return recipe.sharding != "none" or recipe.deepspeed is not None


def load_device(recipe: TrainingRecipe) -> str:
    """Where the model is loaded to: a model to be sharded need not fit on one GPU, so it waits on the CPU."""
    return "cpu" if is_sharded(recipe) else default_device()


def train_device(model: PreTrainedModel, recipe: TrainingRecipe) -> torch.device:
    """Where it is trained: a whole model where it lies, a sharded one on this process's own device."""
    return torch.device(default_device()) if is_sharded(recipe) else model.device


def check_sharded(trainer: Trainer, recipe: TrainingRecipe, checkpoint: Path | None = None) -> None:
    """Raises RunError when ``trainer`` would not divide model and rows as ``recipe`` and the launcher say.

    Also for a ``checkpoint`` to go on from that DeepSpeed cannot divide anew.

    What can be seen of the weights only after they were divided is looked at when the training begins.
    """
    processes.check_joined(trainer.args.world_size)
    if trainer.args.n_gpu > 1:
        raise RunError(
            f"Trainer would copy the model to {trainer.args.n_gpu} GPUs within one process, which changes "
            "the batch: start one process a GPU with torchrun"
        )
    if recipe.sharding == "fsdp2" and not trainer.accelerator.is_fsdp2:
        raise RunError(
            f"training.sharding = fsdp2, but Accelerate does not shard on {trainer.args.device.type}: each "
            "process would hold the whole model; it takes GPUs (on a CPU, training.deepspeed works)"
        )
    if recipe.deepspeed and not trainer.is_deepspeed_enabled:
        raise RunError(f"training.deepspeed = {recipe.deepspeed}, but Accelerate does not use DeepSpeed")
    if not is_sharded(recipe) and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise RunError(
            "the launcher asks for FSDP or DeepSpeed, but the recipe does not: say so in training.sharding "
            "or training.deepspeed, and let the launcher only start processes"
        )
    if recipe.deepspeed and checkpoint:
        _check_as_many(checkpoint, trainer.args.world_size)
    if is_sharded(recipe):
        trainer.add_callback(_SharedOut(trainer))


def _check_as_many(checkpoint: Path, count: int) -> None:
    """DeepSpeed keeps the optimizer in as many pieces as there were processes, and reads it so only."""
    saved = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    if saved != count:
        raise RunError(
            f"{checkpoint} was saved by {saved} processes and there are {count} now: DeepSpeed cannot divide "
            f"it anew; start {saved} (training.sharding = fsdp2 goes on with any number)"
        )


class _SharedOut(TrainerCallback):
    """Looks at the weights before the first step: is what this process holds a share of them?"""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Raises RunError if each process holds everything."""
        share, count = share_held(self.trainer), args.world_size
        if processes.any_of(count > 1 and share > 0.75):
            raise RunError(
                f"sharding was asked for, but a process holds {share:.0%} of what {count} should divide: see "
                "that the config file and the model's _no_split_modules name what is to be divided"
            )


def share_held(trainer: Trainer) -> float:
    """The share of weights, or under ZeRO-1 and 2 of optimizer state, that lies in this process.

    Of trainable weights, once `Trainer` has prepared the model.
    """
    engine = trainer.model_wrapped
    if trainer.is_deepspeed_enabled and cast(Any, engine).zero_optimization_stage() in (1, 2):
        whole = sum(each.numel() for each in engine.parameters() if each.requires_grad)
        groups = cast(Any, engine).optimizer.single_partition_of_fp32_groups
        return float(sum(each.numel() for each in groups) / whole)
    weights: list[Any] = [
        each for each in cast(torch.nn.Module, trainer.model).parameters() if each.requires_grad
    ]
    held = whole = 0
    for each in weights:
        if isinstance(each, DTensor):
            held, whole = held + each.to_local().numel(), whole + each.numel()
        elif hasattr(each, "ds_tensor"):  # DeepSpeed ZeRO-3
            held, whole = held + each.ds_tensor.numel(), whole + each.ds_numel
        else:
            held, whole = held + each.numel(), whole + each.numel()
    return held / whole


def empty_copy(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` as it is before it is sharded, without the memory of its weights (they are on ``meta``)."""
    empty = {
        id(each): torch.nn.Parameter(torch.empty_like(each, device="meta"), requires_grad=each.requires_grad)
        for each in model.parameters()
    }
    return copy.deepcopy(model, empty)  # which takes what it finds under an id for the copy


def whole_model(trainer: Trainer, empty: PreTrainedModel) -> PreTrainedModel:
    """The trained weights of all processes in an ordinary model, on the CPU, in the main process.

    ``empty`` is what `empty_copy` made of the model before; the other processes get it back. All must call
    this together. Weights come from the float32 masters where the optimizer keeps some, in the dtype they
    were loaded in.
    """
    trained = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    whole: dict[int, Any] = {}
    for name, each in empty.named_parameters():
        weight = _gathered(trained[name])
        if processes.is_main():
            weight = weight.detach().to("cpu", each.dtype, copy=True)
            whole[id(each)] = torch.nn.Parameter(weight, requires_grad=each.requires_grad)
    unset_hf_deepspeed_config()  # else the next model is loaded in pieces, by all processes together
    return copy.deepcopy(empty, whole) if whole else empty


def _gathered(weight: torch.Tensor) -> torch.Tensor:
    """One weight, whole; all processes must ask for it."""
    if isinstance(weight, DTensor):
        return weight.full_tensor()
    if not hasattr(weight, "ds_id") and not hasattr(weight, "_hp_mapping"):
        return weight
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param

    if weight.requires_grad:
        master: torch.Tensor = safe_get_full_fp32_param(weight)
        return master
    with zero.GatheredParameters([weight]):
        return weight.detach().clone()
