"""Which recipe takes SmolLM2-135M-Instruct from 8,192 to 131,072 tokens? All are measured the same way.

    python benchmarks/smollm2/search.py TOKENS.npz GRID.json OUT.jsonl --model FOLDER_OR_GGUF

TOKENS.npz: made by `tokens.py` beside this file. GRID.json: a list of objects that change `DEFAULTS`. One
JSON line is appended for each run: settings, seconds, retrieval and perplexity by length, retrieval by depth.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from skipwise import make_sampler
from skipwise.config import TrainingRecipe
from skipwise.data.rows import Rows
from skipwise.environment import exact_matmuls, peak_memory_gib
from skipwise.evals.local import LocalReader
from skipwise.evals.passkey import Passkey
from skipwise.evals.perplexity import Perplexity
from skipwise.evals.run import evaluate
from skipwise.models.load import find_checkpoint, load_config, load_model, load_tokenizer
from skipwise.rope import extend_rope
from skipwise.train.engine import train

TARGET = 131_072
LENGTHS = [2048 * 2**i for i in range(7)]
DEFAULTS: dict[str, Any] = {
    "interpolation": "yarn",
    "rope": {},
    "sampler": "pose",
    "chunks": 2,
    "content": "uniform",
    "headroom": 0,
    "train_length": 8192,
    "steps": 100,
    "rows": 8,
    "micro_batch": 4,
    "learning_rate": 1e-4,
    "schedule": "cosine",
    "library": 0.0,
    "seed": 0,
    "trials": 10,
    "documents": 2,
}


class Texts:
    """Passages drawn from lists of documents: a kind by its share, a document by its length."""

    def __init__(self, kinds: list[tuple[list[np.ndarray], float]], lengths: tuple[int, int]) -> None:
        shortest, self.length = lengths
        self.kinds = [([each for each in texts if len(each) >= shortest], share) for texts, share in kinds]

    def __len__(self) -> int:
        return 1_000_000

    def draw(self, epoch: int, example: int, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG002
        """One passage."""
        shares = np.array([share for _, share in self.kinds])
        texts = self.kinds[rng.choice(len(self.kinds), p=shares / shares.sum())][0]
        lengths = np.array([len(text) for text in texts])
        text = texts[rng.choice(len(texts), p=lengths / lengths.sum())]
        start = rng.integers(0, max(len(text) - self.length, 0) + 1)
        return text[start : start + self.length]


def run(task: dict[str, Any], model_name: str, tokens: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Train and judge one setting."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(task["seed"])
    checkpoint = find_checkpoint(model_name)
    tokenizer, config = load_tokenizer(checkpoint), load_config(checkpoint)
    if task["interpolation"] != "untouched":
        config = extend_rope(config, TARGET, task["interpolation"], task["rope"])
    model = load_model(checkpoint, config, device=device)
    found: dict[str, Any] = {}
    if task["steps"] and task["interpolation"] != "untouched":
        options = {key: task[key] for key in ("chunks", "content", "headroom")}
        sampler = make_sampler(task["sampler"], task["train_length"], TARGET, **options)
        kinds = [(tokens["train"], 1 - task["library"]), (tokens["library"], task["library"])]
        passages = Texts([kind for kind in kinds if kind[1]], sampler.passage_length)
        recipe = TrainingRecipe(
            steps=task["steps"],
            rows_per_step=task["rows"],
            micro_batch=task["micro_batch"],
            learning_rate=task["learning_rate"],
            schedule=task["schedule"],
            save_every=10**6,
            report_to=(),
        )
        rows = Rows(passages, sampler, count=task["steps"] * task["rows"], seed=task["seed"])
        with tempfile.TemporaryDirectory() as folder:
            result = train(model, rows, recipe, Path(folder), seed=task["seed"])
        found |= {
            "train_seconds": round(result.seconds, 1),
            "tokens": result.tokens,
            "loss": [round(line["loss"], 3) for line in result.curve[:: max(task["steps"] // 10, 1)]],
        }
    started = time.perf_counter()
    found |= judge(model.eval(), tokenizer, task, tokens)
    return task | found | {"judge_seconds": round(time.perf_counter() - started, 1)}


def judge(
    model: Any, tokenizer: Any, task: dict[str, Any], tokens: dict[str, list[np.ndarray]]
) -> dict[str, Any]:
    """Retrieval and perplexity of novels by length, perplexity of other text at 2k, in bfloat16 autocast."""
    reader = LocalReader(model, tokenizer)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        scores = evaluate(Perplexity(documents=tokens["dev"][: task["documents"]], lengths=LENGTHS), reader)
        other = evaluate(Perplexity(documents=tokens["other"], lengths=LENGTHS[:1]), reader)
        if task["trials"]:
            lengths = task.get("retrieval_lengths", LENGTHS)
            passkey = Passkey(lengths=lengths, trials=task["trials"], seed=task["seed"])
            scores += evaluate(passkey, reader)

    def value(name: str) -> list[float]:
        return [round(each.value, 4) for each in scores if each.task == name and each.depth is None]

    by_depth = [each.value for each in scores if each.depth is not None and each.length == TARGET]
    return {
        "perplexity": value("perplexity"),
        "buckets": value("perplexity_bucket"),
        "other": round(other[0].value, 4),
        "retrieval": value("passkey"),
        "retrieval_at_depth": by_depth,
        "peak_memory_gib": round(peak_memory_gib(), 1),
    }


def summary(result: dict[str, Any]) -> str:
    """One line: what differs from the defaults, then the scores."""
    told = " ".join(f"{key}={result[key]}" for key in DEFAULTS if result[key] != DEFAULTS[key])
    retrieval = " ".join(f"{100 * value:3.0f}" for value in result["retrieval"])
    perplexity = " ".join(f"{value:.2f}" for value in result["perplexity"])
    return (
        f"{told or 'defaults'} | {result.get('train_seconds', 0)}+{result['judge_seconds']} s | "
        f"{retrieval} | {perplexity} | last {result['buckets'][-1]:.2f} other {result['other']:.3f}"
    )


def main() -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokens", type=Path)
    parser.add_argument("grid", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    options = parser.parse_args()
    exact_matmuls()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with np.load(options.tokens) as arrays:
        tokens = {
            kind: np.split(arrays[kind], np.cumsum(arrays[f"{kind}_lengths"])[:-1])
            for kind in ("train", "dev", "library", "other")
        }
    for changes in json.loads(options.grid.read_text(encoding="utf-8")):
        result = run(DEFAULTS | changes, options.model, tokens)
        result["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
        result["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(summary(result), flush=True)


if __name__ == "__main__":
    main()
