"""What `skipwise plan` says of the steps that measure.py measured.

python benchmarks/plan/compare.py                (reads results/measured.json, writes RESULTS.md beside it)
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from skipwise.models.size import ModelSize, model_size
from skipwise.plan.hardware import HARDWARE
from skipwise.plan.memory import Settings, inference_memory, training_memory
from skipwise.plan.speed import step_seconds

FOLDER = Path(__file__).parent
MEASURED = FOLDER / "results" / "measured.json"
GIB = 1024**3


@dataclass(frozen=True)
class Comparison:
    """One case: bytes at the peak of a step and its seconds, planned and measured."""

    name: str
    bytes_planned: float
    bytes_measured: float
    seconds_planned: float
    seconds_measured: float

    @property
    def memory_off(self) -> float:
        """Share by which the planned memory is off."""
        return self.bytes_planned / self.bytes_measured - 1

    @property
    def time_off(self) -> float:
        """Share by which the planned time is off."""
        return self.seconds_planned / self.seconds_measured - 1


def main() -> None:
    """Print the table and write it."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else MEASURED
    page = table(json.loads(path.read_text(encoding="utf-8")))
    print(page)
    path.with_name("RESULTS.md").write_text(page, encoding="utf-8")


def comparisons(measured: dict[str, Any]) -> list[Comparison]:
    """Every training that ran."""
    cases = [each for each in measured["cases"] if "error" not in each]
    return [compare(each) for each in cases if each["settings"]["method"] != "inference"]


def compare(case: dict[str, Any]) -> Comparison:
    """Plan one case as it was run on an H200."""
    given = case["settings"]
    size = shape(given["model"])
    settings = Settings(
        **{key: given[key] for key in ("row_length", "method", "weights", "optimizer", "micro_batch")},
        accumulates=given["micro_batches"] > 1,
        gradient_checkpointing=given["checkpointing"],
        liger=given["liger"] == "all",
        stochastic=False,  # torch's fused AdamW
        loss="fused" if given["fused_loss"] else "whole",
    )
    seconds = sum(case["seconds"].values())
    return Comparison(
        name=name_of(given),
        bytes_planned=training_memory(size, settings).total,
        bytes_measured=case["memory"]["peak"],
        seconds_planned=step_seconds(size, settings, HARDWARE["h200"], given["micro_batches"]),
        seconds_measured=seconds,
    )


def name_of(given: dict[str, Any]) -> str:
    """A case's settings in words."""
    words = [given["model"], given["method"] if given["method"] != "full" else f"full {given['weights']}"]
    words += [f"{given['micro_batch']} x {given['row_length']:,}"]
    words += ["checkpointed"] if given["checkpointing"] else []
    words += [] if given["fused_loss"] else ["whole logits"]
    words += [] if given["optimizer"] == "adamw" else ["8-bit AdamW"]
    words += [] if given["liger"] == "loss" else ["all of Liger"]
    return ", ".join(words)


@cache
def shape(name: str) -> ModelSize:
    """Sizes of one of measure.py's models."""
    sys.path.insert(0, str(FOLDER))
    from measure import SHAPES

    hidden, inner, layers, heads, shared, vocabulary, tied = SHAPES[name]
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": shared}
    return model_size(LlamaConfig(**sizes, **heads_of, vocab_size=vocabulary, tie_word_embeddings=tied))


def table(measured: dict[str, Any]) -> str:
    """The page: every case, planned and measured."""
    environment = measured["environment"]
    versions = ", ".join(f"{key} {value}" for key, value in environment["versions"].items() if value)
    lines = [
        "# Planned and measured steps",
        "",
        f"One {environment['device']}, {environment['made']}, {versions}.",
        "Seconds are of an optimizer step of two micro-batches (one at 32,768 tokens), medians; GiB are",
        "torch's largest allocation in it. An inference's GiB are its weights and cache.",
        "",
        "| case | GiB planned | measured | off | seconds planned | measured | off |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in comparisons(measured):
        memory = f"{each.bytes_planned / GIB:.2f} | {each.bytes_measured / GIB:.2f} | {each.memory_off:+.1%}"
        time = f"{each.seconds_planned:.3f} | {each.seconds_measured:.3f} | {each.time_off:+.0%}"
        lines.append(f"| {each.name} | {memory} | {time} |")
    for case in measured["cases"]:
        given = case["settings"]
        if "error" in case:
            lines.append(f"| {name_of(given)} | | {case['error']} | | | | |")
        elif given["method"] == "inference":
            planned = inference_memory(shape(given["model"]), given["row_length"])
            found = case["memory"]["built"] + case["memory"]["cache"]
            off = f"{planned.total / found - 1:+.1%}"
            lines.append(
                f"| {name_of(given)} | {planned.total / GIB:.2f} | {found / GIB:.2f} | {off} | | | |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
