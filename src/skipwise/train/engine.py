"""One training run: Hugging Face `Trainer`, configured for rows with skipped positions.

In: a model ready for skipped positions, the rows of the whole run in order, the recipe. Out: the model,
trained in place, and what it took. Checkpoints to resume from lie in the folder given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PrinterCallback

from skipwise.config import TrainingRecipe
from skipwise.data.collate import SkipCollator
from skipwise.data.rows import Rows
from skipwise.train.arguments import training_arguments
from skipwise.train.guards import ProbeFirst, StopOnBadLoss, StopOnSignal
from skipwise.train.memory import explain_out_of_memory, micro_batch_for
from skipwise.train.progress import CURVE, MetricsLog, ProgressLine, read_metrics
from skipwise.train.resume import last_complete_checkpoint
from skipwise.train.sharding import check_sharded
from skipwise.train.speed import Speed
from skipwise.train.trainer import SkipTrainer

Retrieval = Callable[[PreTrainedModel], float]
"""Judges a model during training: the share of passkeys it finds, 0 to 1."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training took: wall seconds of this process, tokens of the whole run, its curve (a dict an
    optimizer step), the looks at retrieval on the way, and the step that was kept."""

    seconds: float
    tokens: int
    curve: list[dict[str, float]]
    retrieval: list[dict[str, float]]
    kept_step: int


def train(
    model: PreTrainedModel,
    rows: Rows,
    recipe: TrainingRecipe,
    folder: Path,
    *,
    seed: int,
    title: str = "training",
    accept_limits: bool = False,
    retrieval: Retrieval | None = None,
) -> TrainResult:
    """Train ``model`` in place on ``rows`` and return what it took.

    The model is probed first, as it is about to be trained. Goes on from the last complete checkpoint in
    ``folder`` when there is one. Raises RunError when a probe does not hold, the loss explodes or memory runs
    out, and KeyboardInterrupt, with a checkpoint saved, after ctrl-C or SIGTERM.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device, length = next(model.parameters()).device, rows.sampler.row_length
    micro_batch = micro_batch_for(model, recipe, length)
    arguments = training_arguments(recipe, folder, micro_batch=micro_batch, seed=seed, device=device)
    last_checkpoint = last_complete_checkpoint(folder)
    signals = StopOnSignal()
    progress = ProgressLine(title)
    metrics = MetricsLog(folder / "metrics.jsonl", resumed=last_checkpoint is not None)
    callbacks = [
        ProbeFirst(rows.sampler.target_length, accept_limits=accept_limits),
        StopOnBadLoss(),
        metrics,
        progress,
        signals,
    ]
    trainer = SkipTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=SkipCollator(),
        callbacks=callbacks,
        retrieval=retrieval,
        speed=Speed(recipe.rows_per_step * length),
    )
    trainer.remove_callback(PrinterCallback)  # the progress line says it
    check_sharded(trainer, recipe)
    started = time.perf_counter()
    try:
        with explain_out_of_memory(micro_batch, length):
            trainer.train(resume_from_checkpoint=str(last_checkpoint) if last_checkpoint else None)
    finally:
        progress.stop()  # after ctrl-C too: a live line left behind hides the terminal's cursor
        signals.finish()
    seconds = time.perf_counter() - started
    # Accelerate leaves its autocast around model.forward; what is evaluated and exported must not have it.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    tokens = recipe.steps * recipe.rows_per_step * length
    lines = read_metrics(folder / "metrics.jsonl")
    return TrainResult(
        seconds,
        tokens,
        curve=[
            {key: line[key] for key in ("step", *CURVE) if key in line} for line in lines if "loss" in line
        ],
        retrieval=[line for line in lines if "eval_retrieval" in line],
        kept_step=trainer.state.best_global_step or trainer.state.global_step,
    )
