"""The recipe of `skipwise demo`: the embedded model, 256 -> 4,096 tokens, with the control beside it."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np

from skipwise.config import Recipe, make_recipe
from skipwise.demo import corpus
from skipwise.files import write_text
from skipwise.models.load import find_checkpoint, load_tokenizer

WINDOW = 256
TARGET = 4096
LIBRARY_DOCUMENTS = 200
PASSKEY_DOCUMENTS = 1_600


def model_folder() -> Path:
    """Where the embedded model lies (`tools/train_demo_base.py` made it)."""
    return Path(str(files("skipwise.demo") / "demo-base"))


def demo_recipe(data_folder: Path, seed: int) -> Recipe:
    """Write the demo's text to ``data_folder`` and return the recipe that uses it.

    The recipe was found by `benchmarks/demo_recipe`.
    """
    train, held_out = write_text_files(data_folder, seed)
    return make_recipe(
        {
            "model": str(model_folder()),
            "target_length": TARGET,
            "interpolation": "yarn",
            "interpolation_options": {"beta_fast": 8.0},
            "data": {"files": [str(train)], "evaluation_files": [str(held_out)]},
            "sampler": {"name": "pose", "chunks": 3, "headroom": WINDOW},
            "training": {
                "steps": 100,
                "rows_per_step": 16,
                "micro_batch": 16,
                "learning_rate": 6e-4,
                "schedule": "linear",
                "logits_chunk": 0,  # they are small here
            },
            "evaluation": {"documents": len(corpus.HELD_OUT), "trials": 20},
            "control": True,
            "seed": seed,
        }
    )


def write_text_files(folder: Path, seed: int) -> tuple[Path, Path]:
    """Write the training documents and the held-out ones as JSON lines; return the two files."""
    held_out = corpus.held_out_documents()
    library = list(corpus.library_documents())
    chosen = np.random.default_rng(seed).permutation(len(library))[:LIBRARY_DOCUMENTS]
    tokenizer = load_tokenizer(find_checkpoint(str(model_folder())))
    prompts = corpus.passkey_documents(
        tokenizer, "".join(library), length=WINDOW, count=PASSKEY_DOCUMENTS, seed=seed
    )
    train_file, held_out_file = folder / "train.jsonl", folder / "held_out.jsonl"
    write_text(train_file, _json_lines([*(library[i] for i in chosen), *prompts]))
    write_text(held_out_file, _json_lines(held_out))
    return train_file, held_out_file


def _json_lines(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)
