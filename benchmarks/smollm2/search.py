"""Which recipe takes SmolLM2-135M-Instruct from 8,192 to 131,072 tokens? All are measured the same way.

    python benchmarks/smollm2/search.py GRID.json OUT.jsonl --model FOLDER_OR_GGUF --text TOKENS.npz [...]

--text: what `tokens.py`, `selftext.py` and `other.py` beside this file wrote. GRID.json: a list of objects
that change `DEFAULTS`. One JSON line is appended for each run: settings, seconds, retrieval and perplexity by
length, retrieval by depth.
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
from recall import recall_document

from skipwise import make_sampler
from skipwise.config import TrainingRecipe
from skipwise.data.skips import Row
from skipwise.environment import exact_matmuls, peak_memory_gib
from skipwise.evals.local import LocalReader
from skipwise.evals.passkey import Passkey
from skipwise.evals.perplexity import Perplexity
from skipwise.evals.run import evaluate
from skipwise.export.checkpoint import export_checkpoint
from skipwise.models.load import find_checkpoint, load_config, load_model, load_tokenizer
from skipwise.rope import extend_rope
from skipwise.train.engine import train

TARGET = 131_072
LENGTHS = [2048 * 2**i for i in range(7)]
Tokens = dict[str, list[np.ndarray]]
DEFAULTS: dict[str, Any] = {
    "interpolation": "abf",
    "rope": {"rope_theta": 4e6},
    "sampler": "pose",
    "chunks": 2,
    "content": "uniform",
    "headroom": 8192,
    "train_length": 8192,
    "steps": 150,
    "mix": {"long": 5, "recall": 1, "self": 1, "book": 1},
    "restore": True,
    "micro_batch": 4,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "compile": True,
    "workers": 2,
    "seed": 0,
    "trials": 10,
    "retrieval_lengths": [2048, 16384, 65536, TARGET],
    "documents": 4,
    "keep": False,
}
NOT_JUDGED = {"train", "dev", "library", "self", "other"}
KINDS = ("long", "recall", "self", "book")
"""What a row is made of: a passage of a novel with skipped positions; a document that states facts and asks
for them (`recall`), with skipped positions; texts of the untouched model (`selftext`); a short passage."""


class Mix:
    """Rows of several kinds, as many of each in every optimizer step as ``mix`` says, like ones together."""

    def __init__(self, task: dict[str, Any], sampler: Any, tokens: Tokens, tokenizer: Any) -> None:
        self.order = [kind for kind in KINDS for _ in range(task["mix"].get(kind, 0))]
        self.sampler, self.seed, self.tokens = sampler, task["seed"], tokens
        self.count = task["steps"] * len(self.order)
        self.length = sampler.row_length
        self.short = make_sampler("contiguous", self.length, TARGET)
        options = {key: task[key] for key in ("chunks", "headroom")}
        self.near = make_sampler(task["sampler"], self.length, TARGET, content="contiguous", **options)
        self.tokenizer = tokenizer
        self.long_enough = [each for each in tokens["train"] if len(each) >= sampler.passage_length[0]]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        rng = np.random.default_rng([self.seed, index])
        kind = self.order[index % len(self.order)]
        if kind == "long":
            return self.sampler.sample(_passage(self.long_enough, self.sampler.passage_length[1], rng), rng)
        if kind == "recall":
            return self.near.sample(
                recall_document(rng, self.tokenizer, self.length, self.tokens["train"]), rng
            )
        if kind == "book":
            return self.short.sample(_passage(self.tokens["train"], self.length, rng), rng)
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < self.length:
            parts.append(self.tokens["self"][rng.integers(len(self.tokens["self"]))])
        return self.short.sample(np.concatenate(parts)[: self.length], rng)


def _passage(texts: list[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    """A text by its length, from a random place."""
    lengths = np.array([len(text) for text in texts])
    text = texts[rng.choice(len(texts), p=lengths / lengths.sum())]
    start = rng.integers(0, max(len(text) - length, 0) + 1)
    return text[start : start + length]


def run(task: dict[str, Any], model_name: str, tokens: Tokens, keep: Path | None = None) -> dict[str, Any]:
    """Train and judge one setting; the model is left in ``keep``."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(task["seed"])
    checkpoint = find_checkpoint(model_name)
    tokenizer, original = load_tokenizer(checkpoint), load_config(checkpoint)
    untouched = task["interpolation"] == "untouched"
    config = original if untouched else extend_rope(original, TARGET, task["interpolation"], task["rope"])
    model = load_model(checkpoint, config, device=device)
    found: dict[str, Any] = {}
    if task["steps"] and not untouched:
        options = {key: task[key] for key in ("chunks", "content", "headroom")}
        sampler = make_sampler(task["sampler"], task["train_length"], TARGET, **options)
        rows = Mix(task, sampler, tokens, tokenizer)
        recipe = TrainingRecipe(
            steps=task["steps"],
            rows_per_step=len(rows.order),
            micro_batch=task["micro_batch"],
            learning_rate=task["learning_rate"],
            schedule=task["schedule"],
            compile=task["compile"],
            workers=task["workers"],
            logits_chunk=4096,
            save_every=10**6,
            report_to=(),
        )
        teacher = load_model(checkpoint, device=device, dtype=torch.bfloat16) if task["restore"] else None
        with tempfile.TemporaryDirectory() as folder:
            result = train(model, rows, recipe, Path(folder), seed=task["seed"], teacher=teacher)
        found |= {
            "train_seconds": round(result.seconds, 1),
            "tokens": result.tokens,
            "loss": [round(line["loss"], 3) for line in result.curve[:: max(task["steps"] // 10, 1)]],
            "tokens_per_second": round(result.tokens / result.seconds),
            "training_memory_gib": round(peak_memory_gib(), 1),
        }
        if keep is not None:
            export_checkpoint(model, tokenizer, keep, dtype=torch.bfloat16)
    started = time.perf_counter()
    found |= judge(model.eval(), tokenizer, task, tokens)
    return task | found | {"judge_seconds": round(time.perf_counter() - started, 1)}


def judge(model: Any, tokenizer: Any, task: dict[str, Any], tokens: Tokens) -> dict[str, Any]:
    """Retrieval and perplexity of novels by length, perplexity of other text."""
    if model.device.type == "cuda":
        model.to(torch.bfloat16)  # as it is exported
    reader = LocalReader(model, tokenizer)
    documents = [each[:TARGET] for each in tokens["dev"] if len(each) >= TARGET][: task["documents"]]
    found: dict[str, Any] = {"other": {}}
    scores = evaluate(Perplexity(documents=documents, lengths=LENGTHS), reader)
    for kind in sorted(set(tokens) - NOT_JUDGED):
        short = evaluate(Perplexity(documents=tokens[kind], lengths=[2048, 8192]), reader)
        found["other"][kind] = [round(each.value, 4) for each in short if each.task == "perplexity"]
    near = [  # the last bucket again, each token with 4,096 to 8,191 before it
        each[start : start + 8192]
        for each in documents
        for start in range(TARGET // 2 - 4096, TARGET - 8191, 4096)
    ]
    groups = (near[first : first + 8] for first in range(0, len(near), 8))
    losses = np.concatenate([each[-4096:] for group in groups for each in reader.losses(group)])
    found["last_bucket_8k"] = round(float(np.exp(losses.mean())), 4)
    if task["trials"]:
        passkey = Passkey(lengths=task["retrieval_lengths"], trials=task["trials"], seed=task["seed"])
        scores += evaluate(passkey, reader)

    def value(name: str) -> list[float]:
        return [round(each.value, 4) for each in scores if each.task == name and each.depth is None]

    by_depth = [each.value for each in scores if each.depth is not None and each.length == TARGET]
    return found | {
        "perplexity": value("perplexity"),
        "buckets": value("perplexity_bucket"),
        "retrieval": value("passkey"),
        "retrieval_at_depth": by_depth,
    }


def summary(result: dict[str, Any]) -> str:
    """Two lines: what differs from the defaults, then the scores."""
    told = " ".join(f"{key}={result[key]}" for key in DEFAULTS if result[key] != DEFAULTS[key])
    retrieval = " ".join(f"{100 * value:3.0f}" for value in result["retrieval"])
    buckets = " ".join(f"{value:.2f}" for value in result["buckets"])
    other = " ".join(f"{kind} {values}" for kind, values in result["other"].items())
    return (
        f"{told or 'defaults'} | {result.get('train_seconds', 0)}+{result['judge_seconds']} s "
        f"{result.get('tokens_per_second', 0)} tok/s {result.get('training_memory_gib', 0)} GiB\n"
        f"   passkey {retrieval} | buckets {buckets} (near {result['last_bucket_8k']:.2f}) | {other}"
    )


def main() -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--keep", type=Path, help="folder for checkpoints of settings with keep: true")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds; no setting is begun without time")
    options = parser.parse_args()
    exact_matmuls()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokens: Tokens = {}
    for file in options.text:
        with np.load(file) as arrays:
            for kind in (each for each in arrays if not each.endswith("_lengths")):
                tokens[kind] = np.split(arrays[kind], np.cumsum(arrays[f"{kind}_lengths"])[:-1])
    started, longest = time.perf_counter(), 0.0
    for changes in json.loads(options.grid.read_text(encoding="utf-8")):
        began = time.perf_counter()
        if began - started + longest > options.budget:
            print("out of time before", changes)
            continue
        task = DEFAULTS | changes
        keep = options.keep / str(task["keep"]) if options.keep and task["keep"] else None
        result = run(task, options.model, tokens, keep)
        longest = max(longest, time.perf_counter() - began)
        result["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
        result["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(summary(result), flush=True)


if __name__ == "__main__":
    main()
