"""The 13 tasks of RULER by name, in the benchmark's order, with everything that tells them apart.

The facts are those of NVIDIA/RULER: `scripts/synthetic.yaml` (the tasks),
`scripts/data/synthetic/constants.py` (tokens to generate), `scripts/eval/synthetic/constants.py` (metrics),
`scripts/config_tasks.sh` (samples).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
"""Tokens of prompt and answer at which the paper evaluates."""

SAMPLES = 500
"""Prompts of each task and length in the paper."""

Haystack = Literal["noise", "essay", "needle"]
Kind = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needles:
    """What a retrieval task hides (``keys`` with ``values`` each) and asks for (``queries`` of the keys)."""

    haystack: Haystack
    """Four sentences over and over, real text, or needles with other keys."""
    key: Kind = "words"
    value: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


@dataclass(frozen=True, slots=True)
class RulerTask:
    """One task. ``metric``: the share of the answers that were given (all), or whether one was (part)."""

    name: str
    category: Literal["retrieval", "multi-hop tracing", "aggregation", "question answering"]
    new_tokens: int
    """Tokens that a model may generate; they count into the length."""
    metric: Literal["all", "part"] = "all"
    needles: Needles | None = None
    """Of retrieval tasks."""


def _retrieval(name: str, needles: Needles) -> RulerTask:
    return RulerTask(name, "retrieval", 128, needles=needles)


TASKS: dict[str, RulerTask] = {
    task.name: task
    for task in (
        _retrieval("niah_single_1", Needles(haystack="noise")),
        _retrieval("niah_single_2", Needles(haystack="essay")),
        _retrieval("niah_single_3", Needles(haystack="essay", value="uuids")),
        _retrieval("niah_multikey_1", Needles(haystack="essay", keys=4)),
        _retrieval("niah_multikey_2", Needles(haystack="needle")),
        _retrieval("niah_multikey_3", Needles(haystack="needle", key="uuids", value="uuids")),
        _retrieval("niah_multivalue", Needles(haystack="essay", values=4)),
        _retrieval("niah_multiquery", Needles(haystack="essay", keys=4, queries=4)),
        RulerTask("vt", "multi-hop tracing", 30),
        RulerTask("cwe", "aggregation", 120),
        RulerTask("fwe", "aggregation", 50),
        RulerTask("qa_1", "question answering", 32, "part"),
        RulerTask("qa_2", "question answering", 32, "part"),
    )
}
