"""`Trainer`, told three things it does not know: where retrieval is measured, and how its state is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import logging

from skipwise.errors import RunError
from skipwise.train.resume import complete_or_removed
from skipwise.train.speed import Speed
from skipwise.train.state_files import load_rng_state, load_state, rng_state, save_state


class SkipTrainer(Trainer):
    """Hugging Face `Trainer`; every override is one call into a module of its own.

    A checkpoint holds safetensors and JSON, no pickle; but the optimizer and scheduler of a DeepSpeed or FSDP
    run, divided over its processes, are written and read by those engines, in formats of their own.
    """

    def __init__(
        self, *, retrieval: Callable[[PreTrainedModel], float] | None, speed: Speed, **options: Any
    ) -> None:
        # Without a dataset to evaluate on, Trainer refuses to evaluate at all; `evaluate` looks at none.
        super().__init__(eval_dataset=options["train_dataset"], **options)
        self.retrieval = retrieval
        self.speed = speed

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """Add the speed to what every callback and tracker is told of a step."""
        speed = self.speed.read(self.state.global_step) if "loss" in logs else {}
        super().log({**logs, **speed}, *args, **options)

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:  # noqa: ARG002
        """Judge by retrieval instead of by loss; `Trainer` keeps the best checkpoint, the later of equals."""
        found: dict[str, float] = {}
        if self.retrieval is not None:
            model = cast(PreTrainedModel, self.model)
            was_training = model.training
            model.eval()
            value = self.retrieval(model)
            model.train(was_training)
            found = {"eval_retrieval": value, "eval_choice": value + 1e-9 * self.state.global_step}
            self.log({"eval_retrieval": value})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with _no_progress_bars(), complete_or_removed(self):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # a pickle that nobody reads: the recipe lies in the run folder
            Path(output_dir or str(self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._engine_saves:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            for file, owner in self._state_files(output_dir):
                save_state(owner.state_dict(), file)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._engine_saves:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        for file, owner in self._state_files(checkpoint):
            if not file.exists():
                raise RunError(f"{checkpoint} is of a DeepSpeed or FSDP run: go on with the same engine")
            owner.load_state_dict(load_state(file, self.args.device))

    def _state_files(self, checkpoint: str) -> list[tuple[Path, Any]]:
        owners = {"optimizer": self.optimizer, "scheduler": self.lr_scheduler}
        return [(Path(checkpoint, f"{name}.safetensors"), owner) for name, owner in owners.items()]

    def _save_rng_state(self, output_dir: str) -> None:
        # A process may be here before the main one has made the folder.
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_state(rng_state(self.args.device), self._rng_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # Absent when the checkpoint was saved by fewer processes; the rows do not depend on it.
        if checkpoint is not None and self._rng_file(checkpoint).exists():
            load_rng_state(load_state(self._rng_file(checkpoint), self.args.device))

    def _rng_file(self, checkpoint: str) -> Path:
        return Path(checkpoint, f"rng_state_{self.args.process_index}.safetensors")

    @property
    def _engine_saves(self) -> bool:
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Those of `save_pretrained` would break the live line."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
