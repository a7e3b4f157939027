"""An invented run folder with plausible numbers: test data, not a result of anything."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np

from skipwise.report.measures import MEASURES
from skipwise.scores import Evaluation, Score, Scores, Subject

WINDOW, TARGET = 2048, 16384
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PASSKEY = {
    "untouched": (1.0, 1.0, 0.98, 0.0, 0.0, 0.0),
    "interpolated": (0.94, 0.88, 0.72, 0.46, 0.22, 0.06),
    "contiguous": (1.0, 1.0, 0.98, 0.76, 0.44, 0.18),
    "pose": (1.0, 1.0, 1.0, 0.98, 0.96, 0.94),
}
PERPLEXITY = {
    "untouched": (6.31, 5.62, 5.14, 152.7, 1904.0, 124_533.0),
    "interpolated": (9.85, 8.94, 8.41, 8.62, 9.97, 12.40),
    "contiguous": (6.52, 5.78, 5.27, 5.16, 5.48, 6.21),
    "pose": (6.48, 5.74, 5.22, 4.96, 4.81, 4.77),
}
RULER_LENGTHS = (4096, 8192, 16384)
RULER = {
    "niah_single_1": 0.01,
    "niah_single_2": 0.02,
    "niah_single_3": 0.04,
    "niah_multikey_1": 0.05,
    "niah_multikey_2": 0.12,
    "niah_multikey_3": 0.2,
    "niah_multivalue": 0.08,
    "niah_multiquery": 0.06,
    "vt": 0.14,
    "cwe": 0.3,
    "fwe": 0.12,
    "qa_1": 0.22,
    "qa_2": 0.4,
}
"""Task -> what is lost of 1 at the shortest length."""
BENCHMARKS = {
    "boolq": 0.777,
    "piqa": 0.787,
    "winogrande": 0.689,
    "truthfulqa_mc2": 0.389,
    "arc_challenge": 0.532,
    "hellaswag": 0.786,
}
MODELS = [
    {"name": "untouched", "title": "Untouched", "description": "The model as published, no interpolation."},
    {"name": "interpolated", "title": "Interpolated only", "description": "RoPE interpolated, no training."},
    {
        "name": "contiguous",
        "title": "Contiguous control",
        "description": "Same budget, positions without skips.",
    },
    {"name": "pose", "title": "PoSE", "description": "Same budget, two chunks with skipped positions."},
]


def share(samples: np.ndarray, **of: Any) -> Score:
    """A share and its standard error."""
    error = samples.std() / math.sqrt(len(samples))
    return Score(value=samples.mean(), n=len(samples), stderr=error, samples=tuple(samples.tolist()), **of)


def perplexity(value: float, means: np.ndarray, **of: Any) -> Score:
    """Documents whose losses differ by ``means`` around the log of ``value``."""
    losses = means - means.mean() + math.log(value)
    error = value * float(losses.std(ddof=1)) / math.sqrt(len(losses))
    return Score(value=value, n=len(losses), stderr=error, samples=tuple(losses.tolist()), **of)


def trials(share_: float, count: int, seed: int) -> np.ndarray:
    """So many right ones, in an order of their own."""
    found = np.zeros(count)
    found[: round(share_ * count)] = 1.0
    return np.random.default_rng(seed).permutation(found)


def scores() -> list[Score]:
    """What a run of the demo measures, on every model: 50 trials a length, 10 a depth, 40 documents."""
    return [row for model in PASSKEY for row in [*_shares(model), *_perplexities(model)]]


def everything() -> list[Score]:
    """Every task on every model: as well 50 prompts a cell, 400 questions."""
    return scores() + [row for model in PASSKEY for row in _harder(model)]


def _shares(model: str) -> list[Score]:
    rows = []
    for length, value in zip(LENGTHS, PASSKEY[model], strict=True):
        of = {"model": model, "task": "passkey", "length": length}
        rows.append(share(trials(value, 50, length), **of))
        for depth in DEPTHS:
            found = min(1.0, max(0.0, round(value + 0.2 * (depth - 0.5) * (value < 1), 1)))
            rows.append(share(trials(found, 10, length), depth=depth, **of))
    return rows


def _perplexities(model: str) -> list[Score]:
    rows = []
    for length, value in zip(LENGTHS, PERPLEXITY[model], strict=True):
        # Documents differ by far more than a model does between them.
        noise = np.random.default_rng(length).normal(0, 0.2, 40)
        noise = noise + np.random.default_rng([length, *model.encode()]).normal(0, 0.02, 40)
        of = {"model": model, "length": length}
        rows.append(perplexity(value, noise, task="perplexity", **of))
        last = value ** (1.05 if value > 100 else 0.97)
        rows.append(perplexity(last, noise, task="perplexity_last_quarter", **of))
        start = 0 if length == 512 else length // 2
        rows.append(perplexity(0.93 * value, noise, task="perplexity_bucket", start=start, **of))
    return rows


def _harder(model: str) -> list[Score]:
    rows = []
    for length, value in zip(LENGTHS[3:], PERPLEXITY[model][3:], strict=True):
        noise = np.random.default_rng([length, *model.encode()]).normal(0, 0.2, 40)
        of = {"model": model, "length": length}
        rows.append(perplexity(0.9 * value, noise, task="sliding_perplexity", **of))
        rows.append(perplexity(2.1 * value**1.2, noise, task="longppl", **of))
    for length, reached in zip(LENGTHS[3:], PASSKEY[model][3:], strict=True):
        for number, kind in enumerate(("number", "sentence", "several")):
            of = {"model": model, "task": "needle", "subtask": kind, "length": length}
            by_depth = [
                trials(max(0.0, reached - 0.1 * number - 0.2 * (depth == 0.5)), 10, length + number)
                for depth in DEPTHS
            ]
            rows.append(share(np.concatenate(by_depth), **of))
            rows += [share(each, depth=depth, **of) for depth, each in zip(DEPTHS, by_depth, strict=True)]
        parts = []
        for number, (name, lost) in enumerate(RULER.items()):
            right = trials(reached * (1 - lost * (1 + 0.2 * math.log2(length / 4096))), 50, length + number)
            of = {"model": model, "task": "ruler", "length": length}
            parts.append(share(right, subtask=name, **of))
        mean = float(np.mean([part.value for part in parts]))
        error = math.sqrt(sum(part.stderr**2 for part in parts)) / len(parts)
        rows += [Score(value=mean, n=50 * len(parts), stderr=error, **of), *parts]
    loss = {"untouched": 0.0, "interpolated": 0.12, "contiguous": 0.01, "pose": 0.015}[model]
    for number, (name, right) in enumerate(BENCHMARKS.items()):
        of = {"model": model, "task": "benchmark", "subtask": name, "length": 0}
        rows.append(share(np.random.default_rng(number).permutation(trials(right - loss, 400, 0)), **of))
    return rows


def subjects() -> tuple[Subject, ...]:
    """The models of the run."""
    return tuple(
        Subject(
            **model,
            path=f"runs/small-16k/{model['name']}",
            revision="0123456789abcdef",
            rope_parameters={"rope_type": "yarn", "factor": 8.0} if model["name"] != "untouched" else {},
            window=WINDOW if model["name"] == "untouched" else TARGET,
            tokenizer="fedcba9876543210",
            dtype="bfloat16",
            attention="sdpa",
        )
        for model in MODELS
    )


SETTINGS = {
    "passkey": {"lengths": list(LENGTHS), "trials": 50, "seed": 7, "depth": "grid", "depths": 5},
    "perplexity": {
        "lengths": list(LENGTHS),
        "documents": {"count": 40, "tokens": 655360, "hash": "00112233aabbccdd"},
        "files": ["books/*.txt"],
    },
    "sliding_perplexity": {
        "lengths": list(LENGTHS[3:]),
        "stride": 1024,
        "documents": {"count": 40, "tokens": 655360, "hash": "00112233aabbccdd"},
        "files": ["books/*.txt"],
    },
    "needle": {"lengths": list(LENGTHS[3:]), "trials": 10, "seed": 7, "depths": 5},
    "ruler": {"lengths": list(LENGTHS[3:]), "samples": 50, "seed": 7, "tasks": list(RULER)},
    "longppl": {"lengths": list(LENGTHS[3:]), "short_length": 2048, "evaluator": {"path": "large"}},
    "benchmark": {"tasks": {name: {"examples": 0, "data": name} for name in BENCHMARKS}, "seed": 7},
}


def evaluations(*models: str) -> tuple[Evaluation, ...]:
    """Every task on these models, or on all."""
    return tuple(
        Evaluation(
            model=model,
            task=task,
            seed=settings.get("seed"),
            settings=settings,
            command=f"skipwise eval {task} runs/small-16k/{model}",
            versions={"skipwise": "0.1.0", "torch": "2.11.0"},
            hardware={"device": "Example GPU, 80 GiB"},
            seconds=12.5,
        )
        for model in models or PASSKEY
        for task, settings in SETTINGS.items()
    )


def document(rows: list[Score] | None = None) -> Scores:
    """All of a `scores.json`; by default that of `scores`."""
    rows = scores() if rows is None else rows
    asked = {(row.model, MEASURES[row.task].evaluation) for row in rows}
    done = tuple(each for each in evaluations() if (each.model, each.task) in asked)
    return Scores(subjects=subjects(), evaluations=done, scores=tuple(rows))


def run_facts() -> dict[str, Any]:
    """A full `run.json`."""
    noise = random.Random(0)
    distance = [1, *(2**power for power in range(4, 14)), 10240, 12288, 14336, 16000, 16383]
    pose = [
        min(1.0, max(0.0, 1.12 - 0.26 * math.log2(max(x, 1024) / 800))) if x > 64 else 1.0 for x in distance
    ]
    return {
        "title": "A small model from 2k to 16k tokens",
        "command": "skipwise run recipes/small-16k.yaml --seed 7 \\\n  --out runs/small-16k",
        "recipe": {
            "model": {"name": "example/small", "dtype": "bfloat16"},
            "rope": {"kind": "yarn", "factor": 8.0, "attention_factor": None},
            "skips": {"chunks": 2, "text": "uniform", "lengths": {"minimum": 1}},
            "training": {
                "steps": 1000,
                "batch": 64,
                "learning_rate": 2e-5,
                "warmup_steps": 10,
                "optimizer": "adamw",
            },
        },
        "versions": {"skipwise": "0.1.0", "python": "3.11.9", "torch": "2.11.0", "transformers": "5.17.0"},
        "hardware": {"device": "Example GPU, 80 GiB", "cpu": "Example CPU", "cores": 16, "memory_gib": 125.8},
        "seed": 7,
        "seconds": {"data": 41.2, "train PoSE": 3512.0, "train contiguous": 3498.0, "evaluate": 1260.5},
        "peak_memory_gib": 38.4,
        "train_length": WINDOW,
        "target_length": TARGET,
        "window": WINDOW,
        "models": MODELS,
        "training": {
            name: [
                {
                    "step": step,
                    "loss": 2 + 0.9 * math.exp(-step / 60) + rise + noise.gauss(0, 0.06),
                    "learning_rate": 2e-5,
                }
                for step in range(1, 1001, 4)
            ]
            for name, rise in (("contiguous", 0.0), ("pose", 0.07))
        },
        "coverage": {
            "distance": distance,
            "probability": {
                "PoSE, N = 2": pose,
                "PoSE, N = 3": [p**0.8 for p in pose],
                "contiguous": [1.0 if x < WINDOW else 0.0 for x in distance],
            },
        },
        "data": {
            "source": "invented books",
            "documents kept": 12345,
            "documents dropped": 678,
            "share kept": 0.948,
        },
        "notes": [
            "Perplexity alone does not show a longer window: compare with the contiguous control.",
            "Retrieval of one key is the easiest long-context task; harder ones were not measured.",
        ],
    }


def write_run(folder: Path, found: Scores | None = None, **changes: Any) -> Path:
    """Writes both JSON files; `changes` replace keys of run.json, or remove them where the value is None."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {key: value for key, value in (run_facts() | changes).items() if value is not None}
    (document() if found is None else found).write(folder / "scores.json")
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder
