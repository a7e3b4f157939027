"""What watches a training: the curve on disk, the line on the terminal, the guard on the loss, signals."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from skipwise.errors import RunError


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


class MetricsLog(TrainerCallback):
    """Appends one JSON line an optimizer step: step, loss, learning_rate, grad_norm."""

    def __init__(self, path: Path, *, resumed: bool) -> None:
        self.path = path
        self.resumed = resumed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the lines of steps that the checkpoint does not hold: they are run again."""
        kept = []
        if self.resumed and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [
                line
                for line in lines
                if line.endswith("\n") and json.loads(line)["step"] <= state.global_step
            ]
        self.path.write_text("".join(kept), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the step's line."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        values = {key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm") if key in logs}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **values}) + "\n")


class ProgressLine(TrainerCallback):
    """One live line on the terminal: step, loss, tokens/s, time left."""

    def __init__(self, title: str, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self.progress = Progress(
            TextColumn(title),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tok/s"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task(title, total=None, loss="-", speed="-")
        self.started = (0, 0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the line at the step the run goes on from."""
        self.started = (state.global_step, time.perf_counter())
        if state.is_world_process_zero:
            self.progress.update(self.task, total=state.max_steps, completed=state.global_step)
            self.progress.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Advance the line."""
        if logs and "loss" in logs:
            step, began = self.started
            speed = (state.global_step - step) * self.tokens_per_step / (time.perf_counter() - began)
            self.progress.update(
                self.task, completed=state.global_step, loss=f"{logs['loss']:.3f}", speed=f"{speed:,.0f}"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the last state on the screen."""
        self.stop()

    def stop(self) -> None:
        """Let go of the terminal; a second call does nothing."""
        self.progress.stop()
