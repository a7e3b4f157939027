"""Training recipe -> `TrainingArguments` of Hugging Face `Trainer`: the one place that knows both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, is_deepspeed_available
from transformers import TrainingArguments

from skipwise import processes
from skipwise.config import TrainingRecipe
from skipwise.errors import InputError
from skipwise.train.sharding import is_sharded


def training_arguments(
    recipe: TrainingRecipe, folder: Path, *, micro_batch: int, seed: int, device: torch.device
) -> TrainingArguments:
    """What `Trainer` is told.

    The rows of an optimizer step are ``recipe.rows_per_step`` whatever the number of devices: they are
    divided into micro-batches, of which each device takes its share. Raises InputError when they cannot be.
    """
    on_gpu = device.type == "cuda"
    bf16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and on_gpu)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=_accumulation(recipe.rows_per_step, micro_batch),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch_fused" if on_gpu else "adamw_torch",
        bf16=bf16 and recipe.weights == "float32",  # weights in bfloat16 need no autocast
        tf32=False if on_gpu else None,  # TF32 rounds the rotary angles of positions above 2,048
        use_cpu=device.type == "cpu",
        train_sampling_strategy="sequential",  # the rows of an epoch are shuffled already
        remove_unused_columns=False,
        label_names=["labels"],  # PEFT's forward hides the names it takes
        dataloader_num_workers=recipe.workers,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a bad loss must be seen, not replaced
        disable_tqdm=True,
        report_to=list(recipe.report_to) or "none",
        save_strategy="steps",
        save_steps=recipe.save_every,
        save_total_limit=2,
        seed=seed,
        **_retrieval(recipe),
        **_sharding(recipe),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else Trainer copies the model to every GPU it sees
    return arguments


def _accumulation(rows_per_step: int, micro_batch: int) -> int:
    devices = processes.count()
    if rows_per_step % (micro_batch * devices):
        raise InputError(
            f"training.rows_per_step = {rows_per_step} cannot be divided over {devices} devices in "
            f"micro-batches of {micro_batch}: make it a multiple of {micro_batch * devices}"
        )
    return rows_per_step // (micro_batch * devices)


def _retrieval(recipe: TrainingRecipe) -> dict[str, Any]:
    """`Trainer`'s own evaluation and choice of the best checkpoint, fed with passkey retrieval."""
    if not recipe.retrieval.every:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": recipe.retrieval.every,
        "metric_for_best_model": "eval_choice" if recipe.retrieval.keep_best else None,
        "greater_is_better": True,
        "load_best_model_at_end": recipe.retrieval.keep_best,
    }


def _sharding(recipe: TrainingRecipe) -> dict[str, Any]:
    """FSDP2 or DeepSpeed; the rows of a step and the clipping stay what the recipe says."""
    if not is_sharded(recipe):
        return {}
    if processes.join().distributed_type == DistributedType.NO:
        raise InputError(
            "training.sharding and training.deepspeed divide a model over the processes of a launcher: "
            "torchrun --nproc-per-node GPUS -m skipwise train RECIPE"
        )
    if recipe.deepspeed:
        return {"deepspeed": _deepspeed(recipe.deepspeed)}
    layers = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}  # by the model's _no_split_modules
    return {
        "fsdp": True,
        "fsdp_config": layers | {"reshard_after_forward": True, "state_dict_type": "FULL_STATE_DICT"},
    }


_RECIPE_SAYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)


def _deepspeed(file: str) -> dict[str, Any]:
    """The config in ``file``, checked; what belongs to the recipe is left to `Trainer` (``auto``)."""
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        stage = config.get("zero_optimization", {}).get("stage", 0)
    except OSError as error:
        raise InputError(f"training.deepspeed = {file} cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError) as error:
        raise InputError(f"training.deepspeed = {file} is no DeepSpeed config in JSON: {error}") from None
    if stage not in (1, 2, 3):
        raise InputError(
            f"training.deepspeed = {file} divides nothing: set zero_optimization.stage to 1, 2 or 3"
        )
    ours = dict.fromkeys(_RECIPE_SAYS, "auto")
    for key in ours:
        if config.get(key, "auto") != "auto":
            raise InputError(f"training.deepspeed = {file}: {key} is the recipe's to say: leave it out")
    if not is_deepspeed_available():
        raise InputError("training.deepspeed needs DeepSpeed: pip install deepspeed")
    return {"bf16": {"enabled": "auto"}, **config, **ours}
