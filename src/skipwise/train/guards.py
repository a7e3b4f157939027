"""What guards a training: probes before the first step, an eye on the loss, signals."""

from __future__ import annotations

import math
import signal
import threading
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from skipwise import processes
from skipwise.data.rows import TrainingRows
from skipwise.errors import RunError
from skipwise.files import write_json
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
        check(model, self.target_length, accept_limits=self.accept_limits)


class StopOnBadLoss(TrainerCallback):
    """Stops a run whose loss or gradient norm is no finite number, or whose loss explodes.

    Exploding: `PATIENCE` steps in a row lie more than `JUMP` nats a token above the median of the `WINDOW`
    steps before them: a perplexity 55 times what it was, for longer than an odd document takes. While the
    loss lies there nothing is saved, so the last checkpoint is from before.

    The batch is written to ``folder/bad_batch.json``: the steps, the losses up to them, and every row of
    these steps by its number (``rows[number]`` makes it again) and its first tokens.
    """

    JUMP, PATIENCE, WINDOW = 4.0, 3, 20

    def __init__(self, rows: TrainingRows, rows_per_step: int, folder: Path) -> None:
        self.rows = rows
        self.rows_per_step = rows_per_step
        self.folder = folder

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at each logged value, before a checkpoint of its step is saved. Raises RunError."""
        if not logs or "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                self._stop(args, state, f"{name} is {logs[name]} at step {state.global_step}", 1)
        recent = islice(
            (each for each in reversed(state.log_history) if "loss" in each), self.WINDOW + self.PATIENCE
        )
        losses = [float(each["loss"]) for each in recent][::-1]
        high = self._high(losses)
        if high >= self.PATIENCE:
            usual = median(losses[:-high])
            reason = f"the loss rose from {usual:.2f} to {losses[-1]:.2f} by step {state.global_step}"
            self._stop(args, state, reason, high)
        if high:
            control.should_save = False

    def _high(self, losses: list[float]) -> int:
        """How many of the last losses, up to `PATIENCE`, lie too high above those before them."""
        for high in range(min(self.PATIENCE, len(losses) - 1), 0, -1):
            if min(losses[-high:]) > median(losses[:-high][-self.WINDOW :]) + self.JUMP:
                return high
        return 0

    def _stop(self, args: TrainingArguments, state: TrainerState, reason: str, steps: int) -> NoReturn:
        file = self.folder / "bad_batch.json"
        if state.is_world_process_zero:
            last = state.global_step * self.rows_per_step
            first = last - steps * self.rows_per_step
            write_json(file, {"reason": reason, **self._batch(state, first, last)})
        processes.wait()  # a launcher ends all when the first one fails
        raise RunError(
            f"{reason}: lower training.learning_rate (now {args.learning_rate:g}), or look at the rows of "
            f"that step, which {file} names"
        )

    def _batch(self, state: TrainerState, first: int, last: int) -> dict[str, Any]:
        rows = {number: self.rows[number] for number in range(first, last)}
        return {
            "seed": self.rows.seed,
            "steps": [first // self.rows_per_step + 1, state.global_step],
            "rows": [
                {"number": number, "first_token_ids": row.token_ids[:32].tolist()}
                for number, row in rows.items()
            ],
            "history": [each for each in state.log_history[-100:] if "loss" in each],
        }


class StopOnSignal(TrainerCallback):
    """Ctrl-C (SIGINT) or SIGTERM: finishes the step, saves a checkpoint and stops; a second one at once.

    Python turns SIGINT into an exception wherever the program happens to be; in a destructor or a weak
    reference's callback, of which torch has many, that exception is lost. A handler that takes a note is not.
    Of several processes a signal may reach one, or each at another step: all stop at the step at whose end
    the first has a note, for one that stopped alone would leave the others waiting.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
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
        """Save and stop if a signal came, to whichever process."""
        if processes.any_of(self.received is not None):
            if self.received is None:
                self._note(signal.SIGTERM, None)  # this process's own may still come, and is no second one
            control.should_save = control.should_training_stop = True

    def finish(self) -> None:
        """Give the signals back, and raise KeyboardInterrupt if one came."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self.received is not None:
            raise KeyboardInterrupt(self.received)

    def _note(self, number: int, frame: Any) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > 1:  # torchrun passes on what the terminal has sent already
            raise KeyboardInterrupt(number)
