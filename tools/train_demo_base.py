"""Train the small base model that `skipwise demo` extends, tokenizer included.

    python tools/train_demo_base.py src/skipwise/demo/demo-base --library /path/to/python3.11/Lib

Text: the library sources of one CPython without the held-out modules, and passkey prompts of at most the
window. The model has a window of 256 tokens and never sees a longer row. Minutes on a GPU.

The learning rate stays constant to the end, as in a checkpoint from the middle of a pretraining: in models
annealed to zero, the short training of the demo cost 8 to 12 % of perplexity below 256 with PoSE and with the
contiguous control alike (benchmarks/demo_recipe). Part of what the demo's trainings win is this annealing;
the control shows how much.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from skipwise.config import TrainingRecipe
from skipwise.data.passages import Passages, tokenize_documents
from skipwise.data.rows import Rows
from skipwise.data.skips import Contiguous
from skipwise.demo import corpus
from skipwise.evals.local import LocalReader
from skipwise.evals.passkey import FILLER, KEY_LINE, QUESTION, TASK, Passkey
from skipwise.evals.perplexity import Perplexity
from skipwise.evals.run import evaluate
from skipwise.scores import Score
from skipwise.train.engine import train

WINDOW = 256
SHOWN = ("passkey", "perplexity", "perplexity_last_quarter")


def main() -> None:
    """Train, judge and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--library", type=Path, help="another CPython's Lib folder (default: the running one's)"
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=128, help="rows in a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--schedule", default="constant_with_warmup", help="or cosine")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--theta", type=float, default=1_000.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    library = list(corpus.library_documents(options.library, tests=True))
    tokenizer = train_tokenizer(library, options.vocabulary)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(base_config(options)).to(device)
    recipe = TrainingRecipe(
        steps=options.steps,
        rows_per_step=options.rows,
        micro_batch=options.rows,
        learning_rate=options.learning_rate,
        schedule=options.schedule,
        warmup_steps=200,
        weight_decay=0.1,
        save_every=options.steps,
        workers=4 if device == "cuda" else 0,
    )
    with tempfile.TemporaryDirectory() as scratch:
        passages = HalfPasskey(library, tokenizer, Path(scratch), options.seed)
        count = options.steps * options.rows
        rows = Rows(passages, Contiguous(WINDOW, WINDOW), count=count, seed=options.seed)
        result = train(model, rows, recipe, Path(scratch) / "run", seed=options.seed, title="demo base")
    options.output.mkdir(parents=True, exist_ok=True)
    model.config.use_cache = True
    model.to(torch.float32).save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    report = {
        "options": {
            key: str(value) for key, value in vars(options).items() if key not in ("output", "library")
        },
        "text": {
            "source": "library of one CPython with its tests, without the held-out modules; passkey prompts",
            "library_documents": len(library),
            "library_sha256": hashlib.sha256("".join(library).encode()).hexdigest(),
        },
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "passages_per_epoch": len(rows.passages),
        "seconds": round(result.seconds, 1),
        "last_loss": result.curve[-1]["loss"],
        "scores": [
            score.model_dump(exclude_defaults=True, exclude={"samples"})
            for score in judge(model, tokenizer, options)
            if score.task in SHOWN and score.depth is None
        ],
    }
    (options.output / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for score in report["scores"]:
        print(score["task"], score["length"], round(score["value"], 3))


def train_tokenizer(library: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, digits one by one, learned from the library and the passkey lines."""
    lines = [TASK, FILLER, KEY_LINE, QUESTION]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*library, *(lines * 500)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )


def base_config(options: argparse.Namespace) -> LlamaConfig:
    """A Llama of a few million parameters with a window of `WINDOW` tokens."""
    return LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=-(-options.hidden * 8 // 3 // 64) * 64,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": options.theta},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


class HalfPasskey:
    """Passages of the window: library text and passkey prompts in turn, each prompt new.

    A prompt takes from half the window to all of it, and library text fills the rest.
    """

    def __init__(
        self, library: list[str], tokenizer: PreTrainedTokenizerFast, scratch: Path, seed: int
    ) -> None:
        self.tokenizer = tokenizer
        self.library = "".join(library)
        dataset = Dataset.from_dict({"text": library, "source": ["library"] * len(library)})
        documents = tokenize_documents(dataset, tokenizer, cache_dir=scratch)
        self.passages = Passages(documents, min_length=WINDOW, max_length=WINDOW, seed=seed)

    def __len__(self) -> int:
        return 2 * len(self.passages)

    def draw(self, epoch: int, example: int, rng: np.random.Generator) -> np.ndarray:
        """A library passage for even examples, a prompt for odd ones."""
        passage = self.passages.draw(epoch, example // 2, rng)
        if example % 2 == 0:
            return passage
        length = int(rng.integers(WINDOW // 2, WINDOW, endpoint=True))
        prompt = corpus.passkey_tokens(self.tokenizer, self.library, length, rng)
        return np.concatenate([np.array(prompt, dtype=np.int32), passage[length:]])


def judge(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace
) -> list[Score]:
    """Retrieval and perplexity at the window and beyond it."""
    model.eval()
    lengths = [WINDOW * 2**i for i in range(5)]
    held_out = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in corpus.held_out_documents(options.library)
    ]
    reader = LocalReader(model, tokenizer)
    passkey = Passkey(lengths=lengths, trials=100, seed=options.seed)
    return evaluate(passkey, reader) + evaluate(Perplexity(documents=held_out, lengths=lengths), reader)


if __name__ == "__main__":
    main()
