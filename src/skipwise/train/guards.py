"""What guards a training: probes before the first step, an eye on the loss, signals."""

from __future__ import annotations

import math
import signal
import threading
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from skipwise.errors import RunError
from skipwise.models.probes import check


class ProbeFirst(TrainerCallback):
    """Probes the model before the first step: wrapped, cast and placed as it will be trained."""

    def __init__(self, target_length: int, *, accept_limits: bool = False) -> None:
        self.target_length = target_length
        self.accept_limits = accept_limits

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Raises RunError for a model that would learn nothing from skipped positions."""
        assert model is not None
        check(model, self.target_length)


class StopOnBadLoss(TrainerCallback):
    """Stops the run at the first loss or gradient norm that is not a finite number."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at each logged value."""
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(float(value)):
                raise RunError(
                    f"{name} is {value} at step {state.global_step}: lower training.learning_rate "
                    f"(now {args.learning_rate:g}) or look at the data of that step"
                )


class StopOnSignal(TrainerCallback):
    """Ctrl-C (SIGINT) or SIGTERM: finishes the step, saves a checkpoint and stops; a second one at once.

    Python turns SIGINT into an exception wherever the program happens to be; in a destructor or a weak
    reference's callback, of which torch has many, that exception is lost. A handler that takes a note is not.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the signals (only a main thread can)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop if a signal came."""
        if self.received is not None:
            control.should_save = control.should_training_stop = True

    def finish(self) -> None:
        """Give the signals back, and raise KeyboardInterrupt if one came."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self.received is not None:
            raise KeyboardInterrupt(self.received)

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None:
            raise KeyboardInterrupt(number)
        self.received = number
