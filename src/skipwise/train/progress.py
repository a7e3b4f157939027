"""What shows a training: the curve on disk, the line on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from skipwise.files import write_text

METRICS = "metrics.jsonl"
CURVE = ("loss", "learning_rate", "grad_norm")
"""What a step leaves behind that the same run again leaves too."""

_WRITTEN = (*CURVE, "tokens_per_second", "mfu", "memory_gib", "eval_retrieval")


class MetricsLog(TrainerCallback):
    """Appends one JSON line an optimizer step (step, `CURVE`, speed and memory), and one a look at retrieval
    (step, eval_retrieval)."""

    def __init__(self, path: Path, *, resumed: bool) -> None:
        self.path = path
        self.resumed = resumed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the lines of steps that the checkpoint does not hold: they are run again."""
        if not state.is_world_process_zero:
            return
        kept = []
        if self.resumed and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [
                line
                for line in lines
                if line.endswith("\n") and json.loads(line)["step"] <= state.global_step
            ]
        if state.is_world_process_zero:
            write_text(self.path, "".join(kept))

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


_SHOWN = {
    "loss": "loss {:.3f}",
    "tokens_per_second": "{:,.0f} tok/s",
    "mfu": "MFU {:.0%}",
    "memory_gib": "{:.1f} GiB",
}


class ProgressLine(TrainerCallback):
    """One live line on the terminal: step, loss, tokens/s, MFU and memory on a GPU, time left."""

    def __init__(self, title: str) -> None:
        self.progress = Progress(
            TextColumn(title),
            BarColumn(bar_width=10),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[found]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task(title, total=None, found="")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the line at the step the run goes on from."""
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
            found = "  ".join(text.format(logs[key]) for key, text in _SHOWN.items() if key in logs)
            self.progress.update(self.task, completed=state.global_step, found=found)

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
