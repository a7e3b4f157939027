"""Common and frequent words (RULER section 3.3): which words of a long list occur most often?

Rules of `scripts/data/synthetic/common_words_extraction.py` and `freq_words_extraction.py`. Common words:
ten words occur 30 times each, all others 3 times (6 and 1 where the length is below 4096 tokens, or the
tokenizer needs too many), in a numbered list after a solved example. Unit of size: a different word.
Frequent words: invented words of six letters, of which the one at rank k occurs ``size / (k ** 2 *
zeta(2))`` times, rounded down; rank 1 is a row of dots, ranks 2 to 4 are the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from skipwise.evals.ruler.recipe import Draft, Recipe
from skipwise.evals.ruler.templates import CODED_WORDS, COMMON_WORDS
from skipwise.evals.ruler.words import Words

COMMON = 10
_ZETA_2 = math.pi**2 / 6


@dataclass(frozen=True, slots=True)
class _Form:
    """How often common and other words occur in the list, and in the example of so many words."""

    common: int
    others: int
    example_words: int
    example_common: int
    example_others: int


_LONG, _SHORT = _Form(30, 3, 40, 10, 3), _Form(6, 1, 20, 3, 1)
_LONG_FROM = 4096
"""Tokens of a length."""
_MOST = 0.9
"""Of a length: where the least prompt of the long form has more tokens than this, the short form is taken."""
_WORD_TOKENS = 3
"""About, the number before a word left out."""
_MARGIN = 0.8
"""Of the tokens of an entry: words differ."""


def common_words_recipe(
    length: int, rng: np.random.Generator, words: Words, count: Callable[[str], int]
) -> Recipe:
    """Prompts with a word list of two frequencies; ``count`` says how many tokens a text has."""
    if length >= _LONG_FROM:
        recipe = _common_words(_LONG, length, rng, words, count)
        if count(recipe.build(recipe.smallest).body) <= _MOST * length:
            return recipe
    return _common_words(_SHORT, length, rng, words, count)


def _common_words(
    form: _Form, length: int, rng: np.random.Generator, words: Words, count: Callable[[str], int]
) -> Recipe:
    shown = _draw(words.at_least(form.example_words), rng)[: form.example_words]
    listed = _repeat(shown, form.example_common, form.example_others, rng)
    example = COMMON_WORDS.prompt.format(context=_numbered(listed))
    before = f"{example}{COMMON_WORDS.prefix} {_numbered(shown[:COMMON])}\n"
    # More words than fit: later entries have more tokens, as their numbers are longer. All words of the list
    # are drawn from one pool, so that invented ones are as often common as others.
    tokens = _MARGIN * count(_numbered(listed)) / len(listed)
    order = _draw(words.at_least(COMMON + 1 + int(length / (form.others * tokens))), rng)
    seed = int(rng.integers(2**62))

    def build(size: int) -> Draft:
        listed = _repeat(order[:size], form.common, form.others, np.random.default_rng([seed, size]))
        body = before + COMMON_WORDS.prompt.format(context=_numbered(listed))
        return Draft(body, COMMON_WORDS.prefix, tuple(order[:COMMON]))

    def weight(size: int) -> float:
        entries = COMMON * form.common + (size - COMMON) * form.others
        digits = sum(entries + 1 - 10**place for place in range(len(str(entries))))
        return float(digits + _WORD_TOKENS * entries)

    return Recipe(COMMON + 1, build, largest=len(order), weight=weight)


def _draw(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """All of them, in random order."""
    return [words[place] for place in rng.permutation(len(words))]


def _repeat(words: Sequence[str], common: int, others: int, rng: np.random.Generator) -> list[str]:
    """The first ten words ``common`` times and the rest ``others`` times, in random order."""
    repeated = [*words[:COMMON]] * common + [*words[COMMON:]] * others
    return _draw(repeated, rng)


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def coded_words_recipe(length: int, rng: np.random.Generator) -> Recipe:
    """Prompts with invented words, as many different ones as 1/50 of the length (at least five)."""
    coded: dict[str, None] = {"...": None}  # in order, none twice
    while len(coded) < max(length // 50, 5):
        coded["".join(chr(ord("a") + letter) for letter in rng.integers(26, size=6))] = None
    ranked = list(coded)
    share = 1 / (np.arange(1, len(ranked) + 1) ** 2 * _ZETA_2)
    seed = int(rng.integers(2**62))

    def build(size: int) -> Draft:
        listed = np.repeat(np.arange(len(ranked)), (size * share).astype(int))
        np.random.default_rng([seed, size]).shuffle(listed)
        context = " ".join(ranked[rank] for rank in listed)
        return Draft(CODED_WORDS.prompt.format(context=context), CODED_WORDS.prefix, tuple(ranked[1:4]))

    def weight(size: int) -> float:
        dots, *counts = (size * share).astype(int)
        return float(dots + _WORD_TOKENS * sum(counts) + size / 1000)  # the last term: never flat

    # From here on the last of the answers occurs more often than the word after it.
    return Recipe(math.ceil(1 / (share[3] - share[4])), build, weight=weight)
