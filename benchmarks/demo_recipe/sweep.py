"""Which recipe extends the demo's base model 256 -> 4,096 best? Every combination, measured the same way.

    python benchmarks/demo_recipe/sweep.py GRID.json OUT.jsonl [--library FOLDER] [--processes 8]

GRID.json: a list of objects; each key holds a list of values, and every combination is run. One JSON line is
appended for each, with its scores. Rows are 256 tokens, half of the documents library text and half passkey
prompts of 256 tokens, as in `skipwise demo`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

WINDOW = 256
TARGET = 4096
LENGTHS = [WINDOW * 2**i for i in range(5)]
DEFAULTS: dict[str, Any] = {
    "interpolation": "yarn",
    "rope": {},
    "sampler": "pose",
    "chunks": 2,
    "content": "uniform",
    "headroom": 0,
    "steps": 100,
    "rows": 16,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "passkey": 0.5,
    "seed": 0,
    "trials": 50,
}


def main() -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--processes", type=int, default=8)
    options = parser.parse_args()
    tasks = [
        DEFAULTS | dict(zip(cell, values, strict=True))
        for cell in json.loads(options.grid.read_text(encoding="utf-8"))
        for values in itertools.product(*cell.values())
    ]
    context = get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        futures = {pool.submit(run, task, options.library): task for task in tasks}
        for future in as_completed(futures):
            result = future.result()
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(summary(result), flush=True)


def summary(result: dict[str, Any]) -> str:
    """One line: what differs from the defaults, then the scores."""
    told = " ".join(
        f"{key}={result[key]}" for key in ("model", *DEFAULTS) if result[key] != DEFAULTS.get(key)
    )
    retrieval = " ".join(f"{100 * value:3.0f}" for value in result["retrieval"])
    first, last = result["perplexity"][0], result["last_quarter"][-1]
    return (
        f"{told:70s} retrieval {retrieval} | "
        + " ".join(f"{100 * v:3.0f}" for v in result["retrieval_at_depth"])
        + f" | ppl 256 {first:.2f} all {result['perplexity'][-1]:.2f} last {last:.2f}"
    )


def run(task: dict[str, Any], library: Path | None) -> dict[str, Any]:
    """Train and judge one combination."""
    import torch
    import transformers

    from skipwise.config import TrainingRecipe
    from skipwise.data.rows import Rows
    from skipwise.evals.local import LocalReader
    from skipwise.evals.passkey import Passkey
    from skipwise.evals.perplexity import Perplexity
    from skipwise.evals.run import evaluate
    from skipwise.models.load import find_checkpoint, load_config, load_model, load_tokenizer
    from skipwise.rope import extend_rope
    from skipwise.train.engine import train

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(task["seed"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = find_checkpoint(task["model"])
    tokenizer = load_tokenizer(checkpoint)
    config = load_config(checkpoint)
    if task["interpolation"] != "untouched":
        config = extend_rope(config, TARGET, task["interpolation"], task["rope"])
    model = load_model(checkpoint, config, device=device)
    train_passages, held_out = documents(tokenizer, library, task)
    if task["steps"]:
        recipe = TrainingRecipe(
            steps=task["steps"],
            rows_per_step=task["rows"],
            micro_batch=task["rows"],
            learning_rate=task["learning_rate"],
            schedule=task["schedule"],
            precision="float32",
            save_every=10**6,
        )
        rows = Rows(train_passages, sampler_of(task), count=task["steps"] * task["rows"], seed=task["seed"])
        with tempfile.TemporaryDirectory() as folder:
            train(model, rows, recipe, Path(folder), seed=task["seed"])
    model.eval()
    reader = LocalReader(model, tokenizer)
    passkey = Passkey(lengths=LENGTHS, trials=task["trials"], seed=task["seed"])
    scores = evaluate(passkey, reader) + evaluate(Perplexity(documents=held_out, lengths=LENGTHS), reader)
    values = {
        name: [score.value for score in scores if score.task == name and score.depth is None]
        for name in ("passkey", "perplexity", "perplexity_last_quarter")
    }
    by_depth = [s.value for s in scores if s.depth is not None and s.length == TARGET]
    return task | {
        "retrieval_at_depth": by_depth,
        "retrieval": values["passkey"],
        "perplexity": values["perplexity"],
        "last_quarter": values["perplexity_last_quarter"],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def sampler_of(task: dict[str, Any]) -> Any:
    """The sampler a task names."""
    from skipwise import make_sampler

    options = {key: task[key] for key in ("chunks", "content", "headroom")}
    return make_sampler(task["sampler"], WINDOW, TARGET, **options)


_DOCUMENTS: dict[str, Any] = {}


def documents(tokenizer: Any, library: Path | None, task: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Training passages and the tokens of the held-out modules; tokenized once a process and tokenizer."""
    import numpy as np
    from datasets import Dataset

    from skipwise.data.passages import Passages, tokenize_documents
    from skipwise.demo import corpus

    key = f"{task['model']} {task['passkey']}"
    if key not in _DOCUMENTS:
        texts = list(corpus.library_documents(library))
        joined = "".join(texts)
        texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:200]]
        library_passages = sum(len(text) for text in texts) // 3 // WINDOW
        share = task["passkey"]
        count = min(round(library_passages * share / (1 - share)), 1600)
        prompts = corpus.passkey_documents(tokenizer, joined, length=WINDOW, count=count, seed=1)
        dataset = Dataset.from_dict(
            {"text": [*texts, *prompts], "source": [""] * (len(texts) + len(prompts))}
        )
        cache = Path(tempfile.mkdtemp())
        held_out = [
            np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in corpus.held_out_documents(library)
        ]
        _DOCUMENTS[key] = (tokenize_documents(dataset, tokenizer, cache_dir=cache), held_out)
    tokenized, held_out = _DOCUMENTS[key]
    shortest, longest = sampler_of(task).passage_length
    return Passages(tokenized, min_length=shortest, max_length=longest, seed=task["seed"]), held_out


if __name__ == "__main__":
    main()
