"""Short text that the untouched model writes itself: conversations and pages, as it knows them.

    python benchmarks/smollm2/selftext.py OUT.npz --model FOLDER_OR_GGUF [--samples 3072] [--tokens 512]

No data set is needed to keep what a model can do in its own window: it is asked to write. Half of the
samples open with its chat template, so that it makes up a question and answers it (Xu et al. 2024, Magpie,
arXiv 2406.08464); half with the end-of-text token, after which pretraining text began. Half of each are drawn
at temperature 1, half at 0.7. Written: ``self``, all ids after one another, and ``self_lengths``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from skipwise.environment import exact_matmuls
from skipwise.models.load import find_checkpoint, load_model, load_tokenizer

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
OPENINGS = (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n", "<|endoftext|>")
TEMPERATURES = (1.0, 0.7)


def write(model: Any, tokenizer: Any, samples: int, tokens: int) -> list[np.ndarray]:
    """``samples`` texts of up to ``tokens`` ids each, opening included."""
    found = []
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for opening in OPENINGS:
        ids = tokenizer(opening, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
        count = samples // (len(OPENINGS) * len(TEMPERATURES))
        for temperature in TEMPERATURES:
            # A conversation goes on until it is long enough: the next question follows.
            rows = model.generate(
                ids.repeat(count, 1),
                attention_mask=torch.ones_like(ids).repeat(count, 1),
                generation_config=transformers.GenerationConfig(
                    **{"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0},
                    **{"max_new_tokens": tokens - ids.shape[1], "eos_token_id": end, "pad_token_id": end},
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
    parser.add_argument("--samples", type=int, default=3072)
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
    found = write(model, load_tokenizer(checkpoint), options.samples, options.tokens)
    seconds = time.perf_counter() - started
    np.savez_compressed(options.out, self=np.concatenate(found), self_lengths=[len(each) for each in found])
    total = sum(map(len, found))
    print(f"{len(found)} texts, {total} tokens, {seconds:.0f} s, {total / seconds:.0f} tokens/s")


if __name__ == "__main__":
    main()
