"""One training run: Hugging Face `Trainer`, configured for rows with skipped positions.

In: a model ready for skipped positions, the rows of the whole run in order, the recipe. Out: the model,
trained in place, and what it took. Checkpoints to resume from lie in the folder given.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from skipwise.config import TrainingRecipe
from skipwise.data.collate import SkipCollator
from skipwise.data.rows import Rows
from skipwise.train.callbacks import MetricsLog, ProgressLine, StopOnBadLoss, StopOnSignal


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training took: wall seconds of this process, tokens of the whole run, and its curve."""

    seconds: float
    tokens: int
    curve: list[dict[str, float]]


def train(
    model: PreTrainedModel,
    rows: Rows,
    recipe: TrainingRecipe,
    folder: Path,
    *,
    seed: int,
    title: str = "training",
) -> TrainResult:
    """Train ``model`` in place on ``rows`` and return what it took.

    Goes on from the last checkpoint in ``folder`` when there is one. Raises RunError when the loss is not a
    finite number, and KeyboardInterrupt, with a checkpoint saved, after ctrl-C or SIGTERM.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last_checkpoint = get_last_checkpoint(str(folder))
    metrics = MetricsLog(folder / "metrics.jsonl", resumed=last_checkpoint is not None)
    signals = StopOnSignal()
    progress = ProgressLine(title, recipe.rows_per_step * rows.sampler.row_length)
    trainer = Trainer(
        model=model,
        args=_arguments(recipe, folder, seed, next(model.parameters()).device),
        train_dataset=rows,
        data_collator=SkipCollator(),
        callbacks=[StopOnBadLoss(), metrics, progress, signals],
    )
    trainer.remove_callback(PrinterCallback)  # the progress line says it
    started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint)
    finally:
        progress.stop()  # after ctrl-C too: a live line left behind hides the terminal's cursor
        signals.finish()
    seconds = time.perf_counter() - started
    # Accelerate leaves its autocast around model.forward; what is evaluated and exported must not have it.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    tokens = recipe.steps * recipe.rows_per_step * rows.sampler.row_length
    return TrainResult(seconds, tokens, read_metrics(folder / "metrics.jsonl"))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The training curve that `MetricsLog` wrote: one dict an optimizer step."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _arguments(recipe: TrainingRecipe, folder: Path, seed: int, device: torch.device) -> TrainingArguments:
    on_gpu = device.type == "cuda"
    bf16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and on_gpu)
    world_size = int(torch.distributed.get_world_size()) if torch.distributed.is_initialized() else 1
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=recipe.rows_per_step // (recipe.micro_batch * world_size),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch_fused" if on_gpu else "adamw_torch",
        bf16=bf16,
        tf32=False if on_gpu else None,  # TF32 rounds the rotary angles of positions above 2,048
        use_cpu=device.type == "cpu",
        train_sampling_strategy="sequential",  # the rows of an epoch are shuffled already
        remove_unused_columns=False,
        dataloader_num_workers=recipe.workers,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a bad loss must be seen, not replaced
        disable_tqdm=True,
        report_to="none",
        save_strategy="steps",
        save_steps=recipe.save_every,
        save_total_limit=2,
        seed=seed,
    )
