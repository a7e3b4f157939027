"""What shows a training: the curve on disk, the line on the terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_WRITTEN = ("loss", "learning_rate", "grad_norm", "eval_retrieval")


class MetricsLog(TrainerCallback):
    """Appends one JSON line an optimizer step (step, loss, learning_rate, grad_norm), and one a look at
    retrieval (step, eval_retrieval)."""

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
        """Write the step's line, or that of a look at retrieval after it."""
        values = {key: float(value) for key, value in (logs or {}).items() if key in _WRITTEN}
        if state.is_world_process_zero and values:
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


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The training curve that `MetricsLog` wrote: one dict an optimizer step."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
