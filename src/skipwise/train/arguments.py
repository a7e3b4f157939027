"""Training recipe -> `TrainingArguments` of Hugging Face `Trainer`: the one place that knows both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from skipwise.config import TrainingRecipe
from skipwise.errors import InputError


def training_arguments(
    recipe: TrainingRecipe, folder: Path, *, micro_batch: int, seed: int, device: torch.device
) -> TrainingArguments:
    """What `Trainer` is told.

    The rows of an optimizer step are ``recipe.rows_per_step`` whatever the number of devices: they are
    divided into micro-batches, of which each device takes its share. Raises InputError when they cannot be.
    """
    on_gpu = device.type == "cuda"
    bf16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and on_gpu)
    return TrainingArguments(
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


def _accumulation(rows_per_step: int, micro_batch: int) -> int:
    devices = PartialState().num_processes
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
    if recipe.deepspeed:
        if not Path(recipe.deepspeed).is_file():
            raise InputError(f"training.deepspeed = {recipe.deepspeed}: no such file")
        return {"deepspeed": recipe.deepspeed}
    return {}
