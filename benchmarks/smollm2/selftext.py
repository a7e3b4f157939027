"""Short text that the untouched model writes itself: conversations and pages, as it knows them.

    python benchmarks/smollm2/selftext.py OUT.npz --model FOLDER_OR_GGUF [--samples 6144] [--tokens 512]

No data set is needed to keep what a model can do in its own window: it is asked to write. Half of the
samples open with its chat template, so that it makes up a question and answers it (Xu et al. 2024, Magpie,
arXiv 2406.08464); half with the end-of-text token, after which pretraining text began, and one random token
of the vocabulary, so that pages begin in as many ways as there are (Liu et al. 2023, LLM-QAT, arXiv
2305.17888, appendix). Every other one is drawn at temperature 1, the others at 0.7. Written: ``self``, all
ids after one another, and ``self_lengths``; or, to a name that ends in .jsonl, the texts, one a line.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from skipwise.environment import exact_matmuls
from skipwise.models.load import find_checkpoint, load_model, load_tokenizer

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHAT = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
END = "<|endoftext|>"


class Temperatures(transformers.LogitsProcessor):
    """1 for every other row of a batch, 0.7 for the rest."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Scores ``(rows, vocabulary)``, divided."""
        scores[1::2] /= 0.7
        return scores


def write(model: Any, tokenizer: Any, samples: int, tokens: int) -> list[np.ndarray]:
    """``samples`` texts of up to ``tokens`` ids each, opening included."""
    found, end = [], tokenizer.convert_tokens_to_ids(END)
    chat = torch.tensor(tokenizer(CHAT, add_special_tokens=False).input_ids).repeat(samples // 2, 1)
    first = torch.randint(len(tokenizer.all_special_ids), len(tokenizer), (samples // 2, 1))
    for opening in (chat, torch.cat([torch.full_like(first, end), first], dim=1)):
        # A conversation goes on until it is long enough: the next question follows.
        rows = model.generate(
            opening.to(model.device),
            attention_mask=torch.ones_like(opening).to(model.device),
            logits_processor=transformers.LogitsProcessorList([Temperatures()]),
            generation_config=transformers.GenerationConfig(
                **{"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0},
                **{"max_new_tokens": tokens - opening.shape[1], "eos_token_id": end, "pad_token_id": end},
            ),
        ).cpu()
        for row in rows.numpy():
            ends = np.flatnonzero(row[1:] == end)
            found.append(row[: ends[0] + 1 if len(ends) else None].astype(np.uint16))
    return [each for each in found if len(each) > 32]


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--samples", type=int, default=6144)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    exact_matmuls()
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    checkpoint = find_checkpoint(options.model)
    model = load_model(checkpoint, dtype=dtype, device=device).eval()
    started = time.perf_counter()
    tokenizer = load_tokenizer(checkpoint)
    found = write(model, tokenizer, options.samples, options.tokens)
    seconds = time.perf_counter() - started
    if options.out.suffix == ".jsonl":
        lines = (json.dumps({"text": tokenizer.decode(each)}) + "\n" for each in found)
        options.out.write_text("".join(lines), encoding="utf-8")
    else:
        lengths = [len(each) for each in found]
        np.savez_compressed(options.out, self=np.concatenate(found), self_lengths=lengths)
    total = sum(map(len, found))
    print(f"{len(found)} texts, {total} tokens, {seconds:.0f} s, {total / seconds:.0f} tokens/s")


if __name__ == "__main__":
    main()
