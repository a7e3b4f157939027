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
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from recall import recall_document
from transformers import PreTrainedModel

from skipwise import make_sampler
from skipwise.config import TrainingRecipe
from skipwise.data.blend import Blend
from skipwise.data.packing import Packed
from skipwise.data.passages import Passages, TokenizedDocuments
from skipwise.data.rows import PassageSource
from skipwise.data.skips import Sampler
from skipwise.environment import default_device, exact_matmuls, peak_memory_gib
from skipwise.errors import SkipwiseError
from skipwise.evals.local import LocalReader
from skipwise.evals.passkey import Passkey
from skipwise.evals.perplexity import Perplexity
from skipwise.evals.ruler import Ruler
from skipwise.evals.run import evaluate
from skipwise.export.checkpoint import export_checkpoint
from skipwise.models.load import Checkpoint, find_checkpoint, load_config, load_model, load_tokenizer
from skipwise.pipeline.base import sharpened
from skipwise.rope import extend_rope
from skipwise.scores import Score
from skipwise.train.engine import train
from skipwise.train.selection import train_only

END = "<|endoftext|>"
DEFAULTS: dict[str, Any] = {
    "target": 131_072,
    "interpolation": "abf",
    "rope": {"rope_theta": 4e6},
    "sampler": "pose",
    "chunks": 2,
    "content": "uniform",
    "headroom": 8192,
    "train_length": 8192,
    "mix": {"long": 5, "recall": 1, "self": 1, "book": 1},
    "taught": ["self", "book", "library"],
    "only": [],
    "steps": 150,
    "step_tokens": 65_536,
    "micro_tokens": 32_768,
    "learning_rate": 8e-4,
    "schedule": "cosine",
    "warmup": 10,
    "compile": True,
    "workers": 2,
    "seed": 0,
    "documents": 4,
    "trials": 10,
    "retrieval_lengths": [2048, 16384, 65536, 131_072],
    "ruler_samples": 0,
    "ruler_lengths": [8192, 131_072],
    "keep": False,
}
"""Settings of one run.

rope: options of the interpolation, as in a recipe. mix: the shares of the kinds of rows, of which those in
``taught`` are learned from the untouched model.
only: the parts whose weights are trained; empty: all. step_tokens, micro_tokens: in an optimizer step,
and in one forward pass. documents: dev novels to judge on. keep: name of the checkpoint to leave.
"""

RULER = ("niah_single_2", "niah_multikey_1", "niah_multivalue")
NOT_JUDGED = {"train", "dev", "library", "self", "other"}
"""Text that is not `other.py`'s: what is trained on, the novels to judge on, an older set."""

Tokens = dict[str, list[np.ndarray]]


class Recall:
    """Documents that state facts and ask for them, made as they are wanted."""

    def __init__(self, tokens: Tokens, tokenizer: Any, length: int) -> None:
        self.tokens, self.tokenizer, self.length = tokens, tokenizer, length

    def __len__(self) -> int:
        return 1_000_000

    def draw(self, epoch: int, example: int, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG002
        """One document."""
        return recall_document(rng, self.tokenizer, self.length, self.tokens["train"])


def rows_of(task: dict[str, Any], tokens: Tokens, tokenizer: Any) -> Blend:
    """The rows of one training: passages of novels (long) and recall documents with the setting's sampler;
    contiguous rows of text that the untouched model wrote (self), of novels (book) and of code (library)."""
    length, seed = task["train_length"], task["seed"]
    options = {key: task[key] for key in ("chunks", "headroom")}
    far = make_sampler(task["sampler"], length, task["target"], content=task["content"], **options)
    near = make_sampler(task["sampler"], length, task["target"], content="contiguous", **options)
    short = make_sampler("contiguous", length, task["target"])
    documents = {kind: TokenizedDocuments.from_ids(tokens[kind]) for kind in ("train", "library", "self")}

    def passages(kind: str, sampler: Sampler) -> Passages:
        shortest, longest = sampler.passage_length
        return Passages(documents[kind], min_length=shortest, max_length=longest, seed=seed)

    def packed(kind: str) -> Packed:
        return Packed(documents[kind], length=length, end=tokenizer.convert_tokens_to_ids(END), seed=seed)

    kinds: dict[str, tuple[Callable[[], PassageSource], Sampler]] = {
        "long": (lambda: passages("train", far), far),
        "recall": (lambda: Recall(tokens, tokenizer, near.passage_length[0]), near),
        "self": (lambda: packed("self"), short),
        "book": (lambda: passages("train", short), short),
        "library": (lambda: packed("library"), short),
    }
    mix = {kind: Fraction(str(share)) for kind, share in task["mix"].items()}
    return Blend(
        [kinds[kind][0]() for kind in mix],
        [kinds[kind][1] for kind in mix],
        [share / sum(mix.values()) for share in mix.values()],
        steps=task["steps"],
        rows_per_step=task["step_tokens"] // length,
        seed=seed,
        taught=[number for number, kind in enumerate(mix) if kind in task["taught"]],
    )


def read_tokens(files: list[Path]) -> Tokens:
    """The documents of every kind in ``files``."""
    tokens: Tokens = {}
    for file in files:
        with np.load(file) as arrays:
            for kind in (each for each in arrays if not each.endswith("_lengths")):
                tokens[kind] = np.split(arrays[kind], np.cumsum(arrays[f"{kind}_lengths"])[:-1])
    return tokens


def opened(task: dict[str, Any], checkpoint: Checkpoint) -> PreTrainedModel:
    """The model to train, extended."""
    config = load_config(checkpoint)
    if task["interpolation"] != "untouched":
        config = extend_rope(config, task["target"], task["interpolation"], task["rope"])
    model = load_model(checkpoint, config, device=default_device())
    sharpened(model, task["interpolation"], task["rope"])
    train_only(model, task["only"])
    return model


def run(task: dict[str, Any], model_name: str, tokens: Tokens, keep: Path | None = None) -> dict[str, Any]:
    """Train and judge one setting; the model is left in ``keep``."""
    torch.manual_seed(task["seed"])
    checkpoint = find_checkpoint(model_name)
    tokenizer, model = load_tokenizer(checkpoint), opened(task, checkpoint)
    found: dict[str, Any] = {}
    if task["steps"]:
        rows = rows_of(task, tokens, tokenizer)
        recipe = TrainingRecipe(
            steps=task["steps"],
            rows_per_step=rows.rows_per_step,
            micro_batch=min(max(task["micro_tokens"] // task["train_length"], 1), rows.rows_per_step),
            learning_rate=task["learning_rate"],
            schedule=task["schedule"],
            warmup_steps=min(task["warmup"], task["steps"] // 2),
            compile=task["compile"],
            workers=task["workers"],
            logits_chunk=4096,
            save_every=10**6,
            report_to=(),
        )
        half = torch.bfloat16 if model.device.type == "cuda" else torch.float32
        teacher = load_model(checkpoint, device=default_device(), dtype=half) if rows.taught else None
        with tempfile.TemporaryDirectory() as folder:
            result = train(model, rows, recipe, Path(folder), seed=task["seed"], teacher=teacher)
        losses = [line["loss"] for line in result.curve]
        found |= {
            "train_seconds": round(result.seconds, 1),
            "tokens": result.tokens,
            "tokens_per_second": round(result.tokens / result.seconds),
            "loss": [round(float(np.mean(part)), 3) for part in np.array_split(losses, min(10, len(losses)))],
            "training_memory_gib": round(peak_memory_gib(), 1),
        }
        if keep is not None:
            export_checkpoint(model, tokenizer, keep, dtype=torch.bfloat16)
    started = time.perf_counter()
    found |= judge(model.eval(), tokenizer, task, tokens)
    return task | found | {"judge_seconds": round(time.perf_counter() - started, 1)}


def judge(model: PreTrainedModel, tokenizer: Any, task: dict[str, Any], tokens: Tokens) -> dict[str, Any]:
    """Retrieval and perplexity of novels by length, perplexity of other text; in bfloat16 on a GPU."""
    if model.device.type == "cuda":
        model.to(torch.bfloat16)  # as it is exported
    reader, target = LocalReader(model, tokenizer), task["target"]
    lengths = [length for length in (2048 * 2**i for i in range(20)) if length <= target]
    lengths = [length for length in lengths if length <= max(map(len, tokens["dev"]))]
    documents = [each for each in tokens["dev"] if len(each) >= lengths[-1]][: task["documents"]]
    found: dict[str, Any] = {"other": {}}
    scores: list[Score] = []
    scores += evaluate(Perplexity(documents=documents, lengths=lengths), reader)
    found["last_bucket_8k"] = near_perplexity(reader, documents, lengths[-1])
    for kind in sorted(set(tokens) - NOT_JUDGED):
        short = evaluate(Perplexity(documents=tokens[kind], lengths=[2048, 8192]), reader)
        found["other"][kind] = [round(each.value, 4) for each in short if each.task == "perplexity"]
    if task["trials"]:
        lengths = [length for length in task["retrieval_lengths"] if length <= target]
        scores += evaluate(Passkey(lengths=lengths, trials=task["trials"], seed=task["seed"]), reader)
    if task["ruler_samples"]:
        novel = tokenizer.decode(tokens["dev"][-1])
        lengths, samples = task["ruler_lengths"], task["ruler_samples"]
        asked = evaluate(Ruler(lengths=lengths, texts=[novel], tasks=RULER, samples=samples), reader)
        found["ruler"] = {
            str(length): {
                each.subtask: each.value for each in asked if each.subtask and each.length == length
            }
            for length in lengths
        }

    def values(name: str) -> list[float]:
        return [round(each.value, 4) for each in scores if each.task == name and each.depth is None]

    by_depth = [each.value for each in scores if each.depth is not None and each.length == target]
    return found | {
        "perplexity": values("perplexity"),
        "buckets": values("perplexity_bucket"),
        "retrieval": values("passkey"),
        "retrieval_at_depth": by_depth,
    }


def near_perplexity(reader: LocalReader, documents: list[np.ndarray], end: int) -> float:
    """Of the tokens of the last bucket up to ``end``, each read with the 4,096 to 8,191 before it only."""
    starts = range(end // 2 - 4096, end - 8191, 4096)
    rows = [each[start : start + 8192] for each in documents for start in starts]
    losses = [
        each[-4096:] for first in range(0, len(rows), 8) for each in reader.losses(rows[first : first + 8])
    ]
    return round(float(np.exp(np.concatenate(losses).mean())), 4)


def summary(result: dict[str, Any]) -> str:
    """Two lines: what differs from the defaults, then the scores."""
    told = " ".join(f"{key}={result[key]}" for key in DEFAULTS if result[key] != DEFAULTS[key])
    told = told if len(told) < 300 else told[:300] + " ..."
    retrieval = " ".join(f"{100 * value:3.0f}" for value in result["retrieval"])
    buckets = " ".join(f"{value:.2f}" for value in result["buckets"])
    other = " ".join(f"{kind} {values}" for kind, values in result["other"].items())
    return (
        f"{told or 'defaults'} | {result.get('train_seconds', 0)}+{result['judge_seconds']} s "
        f"{result.get('tokens_per_second', 0)} tok/s {result.get('training_memory_gib', 0)} GiB\n"
        f"   passkey {retrieval} | buckets {buckets} (near {result.get('last_bucket_8k', 0):.2f}) | {other}"
        f"{result.get('ruler', '')}"
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
    tokens = read_tokens(options.text)
    started, longest = time.perf_counter(), 0.0
    for changes in json.loads(options.grid.read_text(encoding="utf-8")):
        began = time.perf_counter()
        if began - started + longest > options.budget:
            print("out of time before", changes)
            continue
        task = DEFAULTS | changes
        keep = options.keep / str(task["keep"]) if options.keep and task["keep"] else None
        try:
            result = run(task, options.model, tokens, keep)
        except (RuntimeError, ValueError, TypeError, LookupError, SkipwiseError) as error:
            result = task | {"error": f"{type(error).__name__}: {error}"}
        longest = max(longest, time.perf_counter() - began)
        result["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
        result["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(result.get("error") or summary(result), flush=True)


if __name__ == "__main__":
    main()
