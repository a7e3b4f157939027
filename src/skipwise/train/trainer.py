"""`Trainer`, told three things it does not know: where retrieval is measured, and how its state is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel, Trainer


class SkipTrainer(Trainer):
    """Hugging Face `Trainer`; every override is one call into a module of its own."""

    def __init__(self, *, retrieval: Callable[[PreTrainedModel], float] | None, **options: Any) -> None:
        super().__init__(**options)
        self.retrieval = retrieval

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:  # noqa: ARG002
        """Judge by retrieval instead of by loss; `Trainer` keeps the best checkpoint by it."""
        found: dict[str, float] = {}
        if self.retrieval is not None:
            was_training = self.model.training
            self.model.eval()
            found = {"eval_retrieval": self.retrieval(self.model)}
            self.model.train(was_training)
            self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found
