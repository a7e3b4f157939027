"""What the model answers to six short requests before and after training, side by side in Markdown.

    python benchmarks/smollm2/prompts.py BEFORE AFTER OUT.md [--names untouched trained]

BEFORE, AFTER: checkpoint folders or GGUF files. Each request stands alone in the model's chat format; answers
are greedy, of up to 120 tokens. Six answers show whether the model still follows, they measure nothing.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from skipwise.environment import default_device, exact_matmuls
from skipwise.models.load import find_checkpoint, load_model, load_tokenizer

PROMPTS = {
    "question": "Why do leaves change colour in autumn? Answer in two or three sentences.",
    "rewriting": "Rewrite this politely: Send me the report now, you are late again.",
    "a list": "List five things to pack for a weekend in the mountains.",
    "arithmetic": "A box holds 12 eggs. How many eggs are in 7 boxes? Show the calculation.",
    "code": "Write a Python function that returns the largest even number in a list, or None.",
    "advice": "I have a job interview tomorrow and I am nervous. What can I do this evening?",
}
"""Kind -> request."""
MARKDOWN = str.maketrans({each: f"\\{each}" for each in "\\`*_#|[]~$"})


def answers(name: str, tokens: int) -> list[str]:
    """The greedy answer of a checkpoint to each of the prompts."""
    checkpoint = find_checkpoint(name)
    device = default_device()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model, tokenizer = load_model(checkpoint, dtype=dtype, device=device).eval(), load_tokenizer(checkpoint)
    return [answer(model, tokenizer, prompt, tokens) for prompt in PROMPTS.values()]


def answer(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """Up to ``tokens`` tokens, to the end of the turn; an ellipsis where the turn goes on."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")  # of a turn
    asked = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
    said = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=transformers.GenerationConfig(
            do_sample=False, max_new_tokens=tokens, eos_token_id=end, pad_token_id=end
        ),
    )[0, ids.shape[1] :].tolist()
    written = tokenizer.decode(said, skip_special_tokens=True).strip()
    return written if end in said else f"{written} …"


def page(names: Sequence[str], said: Sequence[Sequence[str]], tokens: int) -> str:
    """Markdown: a table for each prompt, a column for each checkpoint."""
    parts = [
        "# The same requests before and after",
        f"Made by `prompts.py`: chat format, greedy, up to {tokens} tokens (… where it would go on).",
    ]
    for (kind, prompt), both in zip(PROMPTS.items(), zip(*said, strict=True), strict=True):
        alike = "\n\nBoth answers are the same." if len(set(both)) == 1 else ""
        rows = [names, ["---"] * len(names), [cell(each) for each in both]]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"## {kind.capitalize()}\n\n{prompt}\n\n{table}{alike}")
    return "\n\n".join(parts) + "\n"


def cell(text: str) -> str:
    """An answer as it was written, in one cell of a table."""
    lines = html.escape(text, quote=False).translate(MARKDOWN).splitlines()
    indented = [line.replace("\t", "    ") for line in lines]
    spaces = [len(line) - len(line.lstrip(" ")) for line in indented]
    return "<br>".join("&nbsp;" * count + line[count:] for line, count in zip(indented, spaces, strict=True))


def main() -> None:
    """Ask both and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("out", type=Path)
    parser.add_argument("--names", nargs=2, default=["before", "after"])
    parser.add_argument("--tokens", type=int, default=120)
    options = parser.parse_args()
    exact_matmuls()
    transformers.utils.logging.disable_progress_bar()
    said = [answers(each, options.tokens) for each in (options.before, options.after)]
    options.out.write_text(page(options.names, said, options.tokens), encoding="utf-8")


if __name__ == "__main__":
    main()
