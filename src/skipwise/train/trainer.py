"""`Trainer`, told three things it does not know: where retrieval is measured, and how its state is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from transformers import PreTrainedModel, Trainer

from skipwise.train.speed import Speed


class SkipTrainer(Trainer):
    """Hugging Face `Trainer`; every override is one call into a module of its own."""

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
