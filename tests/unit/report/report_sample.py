"""An invented run folder with plausible numbers: test data, not a result of anything."""

import json
import math
import random
from pathlib import Path
from typing import Any

WINDOW, TARGET = 2048, 16384
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
RETRIEVAL = {
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


def scores() -> list[dict[str, Any]]:
    """Every task, every model: 50 trials a length, 10 a depth, 40 documents."""
    rows: list[dict[str, Any]] = []
    for model in RETRIEVAL:
        for length, share, value in zip(LENGTHS, RETRIEVAL[model], PERPLEXITY[model], strict=True):
            base = {"model": model, "length": length}
            error = math.sqrt(share * (1 - share) / 50)
            rows.append(base | {"task": "retrieval", "value": share, "n": 50, "stderr": error})
            rows.append(base | {"task": "perplexity", "value": value, "n": 40, "stderr": value * 0.02})
            last = base | {"task": "perplexity_last_quarter", "n": 40, "stderr": value * 0.03}
            rows.append(last | {"value": value ** (1.05 if value > 100 else 0.97)})
            bucket = base | {
                "task": "perplexity_bucket",
                "start": 0 if length == 512 else length // 2,
                "end": length,
            }
            rows.append(bucket | {"value": value * 0.93, "n": 40, "stderr": value * 0.02})
            for depth in DEPTHS:
                found = min(1.0, max(0.0, round(share + 0.2 * (depth - 0.5) * (share < 1), 1)))
                at_depth = base | {"task": "retrieval_at_depth", "depth": depth, "n": 10}
                rows.append(at_depth | {"value": found, "stderr": math.sqrt(found * (1 - found) / 10)})
    return rows


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


def write_run(folder: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """Writes both JSON files; `changes` replace keys of run.json, or remove them where the value is None."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"schema": 1, "scores": scores() if rows is None else rows}
    facts = {key: value for key, value in (run_facts() | changes).items() if value is not None}
    (folder / "scores.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder
