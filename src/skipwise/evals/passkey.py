"""Passkey retrieval: can the model repeat a key that stands anywhere in a prompt of a given length?

The test of Mohtashami and Jaggi 2023 (arXiv 2305.16300), as PoSE uses it: a task line, filler sentences, a
line with a five-digit key at a chosen depth, more filler, and a question that ends just before the key.
Prompts are built in tokens, so ``length`` counts the task line to the last token of the answer, exactly.

A trial succeeds when greedy decoding gives the key. Greedy decoding gives it if and only if, with the key
appended, every one of its tokens is the most likely next token; so one forward pass a trial decides, and
nothing has to be generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skipwise.errors import InputError
from skipwise.evals.scores import Score

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
        self.start = _start_tokens(tokenizer) + self._encode(task)
        self.filler = self._encode(filler + " ")

    def build(self, length: int, depth: float, key: int) -> Prompt:
        """The prompt of ``length`` tokens with ``key`` after the fraction ``depth`` of the filler.

        Raises InputError when ``length`` leaves no room for the fixed lines.
        """
        key_line = self._encode("\n" + KEY_LINE.format(key=key) + "\n")
        question = self._encode("\n" + QUESTION)
        with_answer = self._encode("\n" + QUESTION + f" {key}")
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

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def passkey_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    *,
    name: str,
    trials: int,
    seed: int,
    depths: int = 10,
) -> list[Score]:
    """Retrieval of ``model`` at every length: the mean over trials, and by depth.

    Trials go through ``depths`` evenly spaced depths in turn, with a new key each. The same seed gives the
    same prompts for every model.
    """
    builder = PromptBuilder(tokenizer)
    scores: list[Score] = []
    for length in lengths:
        grid = np.linspace(0.0, 1.0, min(depths, trials))
        placed = [float(grid[trial % len(grid)]) for trial in range(trials)]
        rng = np.random.default_rng([seed, length])
        prompts = [builder.build(length, depth, int(rng.integers(10_000, 100_000))) for depth in placed]
        found = np.array([_found(model, prompt) for prompt in prompts], dtype=np.float64)
        scores.append(_retrieval(name, "retrieval", length, found))
        for depth in grid:
            here = found[np.array(placed) == depth]
            scores.append({**_retrieval(name, "retrieval_at_depth", length, here), "depth": float(depth)})
    return scores


@torch.inference_mode()
def _found(model: PreTrainedModel, prompt: Prompt) -> bool:
    """True when every answer token is the most likely one after the tokens before it."""
    token_ids = torch.tensor([prompt.token_ids], device=model.device)
    answer = token_ids[0, -prompt.answer_length :]
    logits = model(
        input_ids=token_ids[:, :-1],
        attention_mask=torch.ones_like(token_ids[:, :-1]),
        logits_to_keep=prompt.answer_length,
        use_cache=False,
    ).logits[0]
    return bool((logits.argmax(-1) == answer).all())


def _retrieval(name: str, task: str, length: int, found: np.ndarray) -> Score:
    value = float(found.mean())
    n = len(found)
    stderr = float(np.sqrt(value * (1 - value) / n))
    return {"model": name, "task": task, "length": length, "value": value, "n": n, "stderr": stderr}


def _start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before every text (a BOS token, or nothing)."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    with_special = tokenizer("a")["input_ids"]
    return list(with_special[: with_special.index(plain[0])])
