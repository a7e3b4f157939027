"""A task, a length, a seed and a number -> one prompt of RULER, as token ids, with its answers.

Prompt and answer together have at most ``length`` tokens, and one unit of the haystack more (a line, a word,
a document) would be too long. The same arguments give the same prompt on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from skipwise.errors import InputError
from skipwise.evals.reader import encode, start_tokens
from skipwise.evals.ruler.aggregation import coded_words_recipe, common_words_recipe
from skipwise.evals.ruler.essay import Essay
from skipwise.evals.ruler.questions import question_recipe, read_hotpotqa, read_squad
from skipwise.evals.ruler.recipe import Draft, Recipe, largest_size
from skipwise.evals.ruler.retrieval import needle_recipe
from skipwise.evals.ruler.tasks import TASKS
from skipwise.evals.ruler.tracing import chain_recipe
from skipwise.evals.ruler.words import Words


@dataclass(frozen=True, slots=True)
class RulerSample:
    """One prompt. ``token_ids`` are all that a model sees: ``prompt`` after the tokenizer's start tokens."""

    prompt: str
    answer_prefix: str
    """The end of ``prompt``: the begun answer, which the model goes on with."""
    token_ids: list[int]
    answers: tuple[str, ...]
    """What its continuation is searched for."""
    new_tokens: int
    """Tokens that it may have at most."""


class Generator:
    """Makes RULER's prompts for one ``tokenizer`` from local text.

    ``essay`` (one text, or documents) is the haystack of real text, and the source of words. ``squad`` and
    ``hotpotqa`` are the files of qa_1 and qa_2 (see `questions`). With ``chat``, the prompt is what the user
    says in the tokenizer's chat template, and the answer prefix follows the generation prompt.

    Raises InputError for files that cannot be read, and for a tokenizer without a chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        essay: str | Sequence[str],
        *,
        squad: str | Path | None = None,
        hotpotqa: str | Path | None = None,
        chat: bool = False,
    ) -> None:
        if chat and not tokenizer.chat_template:
            raise InputError("the tokenizer has no chat template: evaluate ruler without chat")
        self.tokenizer, self.chat = tokenizer, chat
        self._text = essay if isinstance(essay, str) else " ".join(essay)
        self._start = [] if chat else start_tokens(tokenizer)
        self._questions = {}
        if squad is not None:
            self._questions["qa_1"] = read_squad(squad)
        if hotpotqa is not None:
            self._questions["qa_2"] = read_hotpotqa(hotpotqa)

    @property
    def skipped(self) -> dict[str, str]:
        """The tasks that cannot be made, by name, each with a line that says what is missing."""
        files = {"qa_1": "SQuAD's dev-v2.0.json", "qa_2": "HotpotQA's hotpot_dev_distractor_v1.json"}
        return {
            task: f"{task} needs a file that is not part of the package: give the path of {file}"
            for task, file in files.items()
            if task not in self._questions
        }

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that can be made, in the benchmark's order."""
        return tuple(task for task in TASKS if task not in self.skipped)

    def sample(self, task: str, length: int, seed: int, index: int) -> RulerSample:
        """Sample ``index`` (from 0) of a ``task`` at ``length`` tokens of prompt and answer.

        Raises InputError for an unknown task, one that lacks its file, and a length without room for it.
        """
        if task not in TASKS:
            raise InputError(f"no ruler task is called {task}: choose from {', '.join(TASKS)}")
        if task in self.skipped:
            raise InputError(self.skipped[task])
        rng = np.random.default_rng([seed, list(TASKS).index(task), length, index])
        recipe = self._recipe(task, length, index, rng)
        fitting: RulerSample | None = None

        def count(size: int) -> int:
            nonlocal fitting
            sample = self._sample(recipe.build(size), TASKS[task].new_tokens)
            tokens = len(sample.token_ids) + sample.new_tokens
            if tokens <= length:
                fitting = sample
            return tokens

        least = count(recipe.smallest)
        if fitting is None:
            raise InputError(
                f"ruler's {task} needs {least} tokens with this tokenizer, more than the length {length}: "
                "evaluate longer lengths"
            )
        largest_size(recipe, count, length)
        return fitting

    def _recipe(self, task: str, length: int, index: int, rng: np.random.Generator) -> Recipe:
        needles = TASKS[task].needles
        if needles:
            return needle_recipe(needles, rng, self._words, lambda: self._essay)
        if task == "vt":
            return chain_recipe(length, rng, self._count)
        if task == "cwe":
            return common_words_recipe(length, rng, self._words, self._count)
        if task == "fwe":
            return coded_words_recipe(length, rng)
        return question_recipe(self._questions[task], index, rng)

    def _sample(self, draft: Draft, new_tokens: int) -> RulerSample:
        body = draft.body
        if self.chat:
            turn = [{"role": "user", "content": body}]
            body = str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        prompt = body + draft.prefix
        token_ids = self._start + encode(self.tokenizer, prompt)
        return RulerSample(prompt, draft.prefix, token_ids, draft.answers, new_tokens)

    def _count(self, text: str) -> int:
        return len(encode(self.tokenizer, text))

    @cached_property
    def _words(self) -> Words:
        return Words(self._text)

    @cached_property
    def _essay(self) -> Essay:
        def count_each(texts: list[str]) -> list[int]:
            return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

        return Essay(self._text, count_each)
