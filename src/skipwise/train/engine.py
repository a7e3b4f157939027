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

from skipwise import processes
from skipwise.config import TrainingRecipe
from skipwise.data.collate import SkipCollator
from skipwise.data.rows import TrainingRows
from skipwise.train.arguments import training_arguments
from skipwise.train.guards import ProbeFirst, StopOnBadLoss, StopOnSignal
from skipwise.train.kernels import fast_kernels
from skipwise.train.loss import restore_forward
from skipwise.train.memory import explain_out_of_memory, micro_batch_for
from skipwise.train.optimizers import optimizer_for
from skipwise.train.planned import flops
from skipwise.train.progress import CURVE, METRICS, MetricsLog, ProgressLine, read_metrics
from skipwise.train.restoration import taught_by
from skipwise.train.resume import resume_point
from skipwise.train.sharding import check_sharded, empty_copy, is_sharded, train_device, whole_model
from skipwise.train.speed import Speed
from skipwise.train.trainer import SkipTrainer

Retrieval = Callable[[PreTrainedModel], float]
"""Judges a model during training: the share of passkeys it finds, 0 to 1."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The trained model, and what it took.

    model: the one that was given; of one that was sharded, a whole copy on the CPU in the main process, and
    one without weights in the others. seconds: of this process. tokens: of the whole run. curve: a dict an
    optimizer step. retrieval: the looks on the way. kept_step: the step whose weights these are.
    """

    model: PreTrainedModel
    seconds: float
    tokens: int
    curve: list[dict[str, float]]
    retrieval: list[dict[str, float]]
    kept_step: int


def train(
    model: PreTrainedModel,
    rows: TrainingRows,
    recipe: TrainingRecipe,
    folder: Path,
    *,
    seed: int,
    title: str = "training",
    accept_limits: bool = False,
    retrieval: Retrieval | None = None,
    teacher: PreTrainedModel | None = None,
) -> TrainResult:
    """Train ``model`` in place on ``rows`` and return what it took.

    ``teacher``: the untouched model, from which rows that are ``taught`` are learned (`train.restoration`).

    The model is probed first, as it is about to be trained. Goes on from the last complete checkpoint in
    ``folder`` when there is one. Raises RunError when a probe does not hold, the loss explodes or memory runs
    out, and KeyboardInterrupt, with a checkpoint saved, after ctrl-C or SIGTERM.
    """
    if teacher is None and getattr(rows, "taught", None):
        raise ValueError("some rows are to be learned from the untouched model: give it as teacher")
    processes.make_folder(folder)
    device, length = train_device(model, recipe), rows.sampler.row_length
    empty = empty_copy(model) if is_sharded(recipe) else None  # as it is before kernels and sharding
    stock = vars(model).get("forward")
    signals, progress = StopOnSignal(), ProgressLine(title)
    learned = taught_by(model, teacher, chunk=recipe.logits_chunk, compiled=recipe.compile)
    with fast_kernels(model, recipe, device, length), learned:
        micro_batch = micro_batch_for(model, recipe, length, taught=teacher is not None)
        arguments = training_arguments(recipe, folder, micro_batch=micro_batch, seed=seed, device=device)
        last_checkpoint = resume_point(folder)
        trainer = SkipTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=SkipCollator(),
            callbacks=[
                ProbeFirst(rows.sampler.target_length, accept_limits=accept_limits),
                StopOnBadLoss(rows, recipe.rows_per_step, folder),
                MetricsLog(folder / METRICS, resumed=last_checkpoint is not None),
                progress,
                signals,
            ],
            optimizer_cls_and_kwargs=optimizer_for(model, recipe),
            retrieval=retrieval,
            speed=Speed(recipe.rows_per_step * length, flops(model, recipe, length)),
        )
        trainer.remove_callback(PrinterCallback)  # the progress line says it
        check_sharded(trainer, recipe, last_checkpoint)
        started = time.perf_counter()
        try:
            with explain_out_of_memory(model, recipe, micro_batch, length, taught=teacher is not None):
                trainer.train(resume_from_checkpoint=str(last_checkpoint) if last_checkpoint else None)
        finally:
            progress.stop()  # after ctrl-C too: a live line left behind hides the terminal's cursor
            signals.finish()
    seconds = time.perf_counter() - started
    # Accelerate leaves its autocast around model.forward; what is evaluated and exported must not have it.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    restore_forward(model, stock)  # it leaves the class's without its decorators
    if empty is not None:
        model = whole_model(trainer, empty)
    return _result(model, trainer, seconds, recipe.steps * recipe.rows_per_step * length)


def _result(model: PreTrainedModel, trainer: SkipTrainer, seconds: float, tokens: int) -> TrainResult:
    processes.wait()  # for the last line of the curve
    lines = read_metrics(Path(str(trainer.args.output_dir)) / METRICS)
    steps = [line for line in lines if "loss" in line]
    return TrainResult(
        model,
        seconds,
        tokens,
        curve=[{key: line[key] for key in ("step", *CURVE) if key in line} for line in steps],
        retrieval=[line for line in lines if "eval_retrieval" in line],
        kept_step=trainer.state.best_global_step or trainer.state.global_step,
    )
