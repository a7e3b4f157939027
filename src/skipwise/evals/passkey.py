"""Passkey retrieval: can the model repeat a key that stands anywhere in a prompt of a given length?

The test of Mohtashami and Jaggi 2023 (arXiv 2305.16300), as PoSE uses it: a task line, filler sentences, a
line with a five-digit key at a chosen depth, more filler, and a question that ends just before the key.
Prompts are built in tokens, so ``length`` counts the task line to the last token of the answer, exactly.
A trial succeeds when the greedy answer is the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skipwise.errors import InputError
from skipwise.evals.reader import Reader, encode, start_tokens
from skipwise.evals.run import Item
from skipwise.evals.shares import share_score
from skipwise.scores import Score

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
KEY_LINE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"


@dataclass(frozen=True, slots=True)
class Prompt:
    """``token_ids`` end with the answer, which is the last ``answer_length`` tokens."""

    token_ids: list[int]
    answer_length: int


class PromptBuilder:
    """Builds passkey prompts of exact token lengths for one tokenizer.

    ``filler`` is repeated as often as needed; by default the paper's sentences. ``task`` comes first.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, filler: str = FILLER, task: str = TASK + "\n"
    ) -> None:
        self.tokenizer = tokenizer
        self.start = start_tokens(tokenizer) + encode(tokenizer, task)
        self.filler = encode(tokenizer, filler + " ")

    def build(self, length: int, depth: float, key: int) -> Prompt:
        """The prompt of ``length`` tokens with ``key`` after the fraction ``depth`` of the filler.

        Raises InputError when ``length`` leaves no room for the fixed lines.
        """
        key_line = encode(self.tokenizer, "\n" + KEY_LINE.format(key=key) + "\n")
        question = encode(self.tokenizer, "\n" + QUESTION)
        with_answer = encode(self.tokenizer, "\n" + QUESTION + f" {key}")
        answer = with_answer[len(question) :]
        room = length - len(self.start) - len(key_line) - len(with_answer)
        if room < 0:
            raise InputError(
                f"a passkey prompt needs {length - room} tokens with this tokenizer, more than the length "
                f"{length}: evaluate longer lengths"
            )
        before = round(depth * room)
        filler = (self.filler * (room // len(self.filler) + 1))[:room]
        token_ids = self.start + filler[:before] + key_line + filler[before:] + with_answer
        return Prompt(token_ids, len(answer))


@dataclass(frozen=True, kw_only=True)
class Passkey:
    """``trials`` prompts of each length, a new key in each; the same seed gives every model the same.

    ``depth`` ``grid``: trials go through ``depths`` evenly spaced depths in turn, and there is a score for
    each; ``random``: uniform over the haystack, as in the paper. Raises InputError for any other.
    """

    lengths: Sequence[int]
    trials: int = 50
    seed: int = 0
    depth: str = "grid"
    depths: int = 10
    name: str = "passkey"

    def __post_init__(self) -> None:
        if self.depth not in ("grid", "random"):
            raise InputError(f"depth {self.depth!r}: must be grid or random")

    @property
    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        grid = {"depths": self.depths} if self.depth == "grid" else {}
        lengths = sorted(self.lengths)
        return {"lengths": lengths, "trials": self.trials, "seed": self.seed, "depth": self.depth, **grid}

    def items(self, reader: Reader) -> list[Item]:
        """Of each length, those with the longest filler before the key first: the next ones begin alike.

        Raises InputError when a length leaves no room for the fixed lines.
        """
        PromptBuilder(reader.tokenizer).build(min(self.lengths), 0.0, 99_999)
        return [
            item
            for length in sorted(self.lengths)
            for item in sorted(self.prompts(length), key=lambda each: -each.what[0])
        ]

    def prompts(self, length: int) -> list[Item]:
        """One a trial; ``what`` is its depth and key."""
        rng = np.random.default_rng([self.seed, length])
        return [
            Item(f"{length}/{number}", length, (depth, int(rng.integers(10_000, 100_000))))
            for number, depth in enumerate(self.places(length))
        ]

    def places(self, length: int) -> list[float]:
        """The depth of each trial."""
        if self.depth == "random":
            return [float(each) for each in np.random.default_rng([self.seed, length, 1]).random(self.trials)]
        grid = [float(each) for each in np.linspace(0.0, 1.0, min(self.depths, self.trials))]
        return [grid[trial % len(grid)] for trial in range(self.trials)]

    def measure(self, reader: Reader, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Of each trial: whether the key was found, and what the model said."""
        builder = PromptBuilder(reader.tokenizer)
        keys = [str(each.what[1]) for each in items]
        prompts = [builder.build(each.length, *each.what) for each in items]
        longest = max(each.answer_length for each in prompts)
        said = reader.generate([each.token_ids[: -each.answer_length] for each in prompts], longest)
        return [
            {"found": float(answer.strip().startswith(key)), "answer": answer}
            for answer, key in zip(said, keys, strict=True)
        ]

    def scores(self, model: str, results: dict[str, dict[str, Any]]) -> list[Score]:
        """The share of keys that were found, at each length, then by depth where depths form a grid."""
        found = []
        for length in sorted(self.lengths):
            trials = [results[f"{length}/{number}"]["found"] for number in range(self.trials)]
            found.append(share_score(trials, model=model, task=self.name, length=length))
            places = self.places(length)
            for depth in sorted(set(places)) if self.depth == "grid" else ():
                here = [trial for trial, place in zip(trials, places, strict=True) if place == depth]
                found.append(share_score(here, model=model, task=self.name, length=length, depth=depth))
        return found


@torch.inference_mode()
def share_found(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int, *, trials: int, seed: int
) -> float:
    """The share of keys that a model in training finds, however it is wrapped; nothing is changed.

    One forward pass a trial with the key appended, and no cache: greedy decoding gives the key if and only if
    each of its tokens is the most likely one after those before it.
    """
    task, builder, found = Passkey(lengths=[length], trials=trials, seed=seed), PromptBuilder(tokenizer), 0
    for item in task.prompts(length):
        prompt = builder.build(length, *item.what)
        tokens = torch.tensor([prompt.token_ids], device=model.device)
        logits = model(
            input_ids=tokens[:, :-1],
            attention_mask=torch.ones_like(tokens[:, :-1]),
            logits_to_keep=prompt.answer_length,
            use_cache=False,
        ).logits[0]
        found += bool((logits.argmax(-1) == tokens[0, -prompt.answer_length :]).all())
    return found / trials
