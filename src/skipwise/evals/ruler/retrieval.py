"""Needles in a haystack (RULER section 3.1): sentences with a key and a value, and questions for keys.

Rules of `scripts/data/synthetic/niah.py`. In noise and among other needles every needle is a line of its own
at a random line; in real text it stands between two sentences, at one of 40 depths from 0 to 100 %, no two
needles at the same depth. Units of size: lines, or words.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from skipwise.evals.ruler.essay import Essay
from skipwise.evals.ruler.recipe import Draft, Recipe
from skipwise.evals.ruler.tasks import Kind, Needles
from skipwise.evals.ruler.templates import MANY_NEEDLES, NEEDLE, NOISE, ONE_NEEDLE
from skipwise.evals.ruler.words import Words

DEPTHS = np.round(np.linspace(0, 100, 40)).astype(int)
"""Percent of the sentences."""


def needle_recipe(
    needles: Needles, rng: np.random.Generator, words: Words, essay: Callable[[], Essay]
) -> Recipe:
    """Prompts with ``needles`` in their haystack.

    No key is hidden twice, and no value, be it in the text or among the distracting needles.
    """
    text = essay() if needles.haystack == "essay" else None
    taken: set[str] = set()

    def draw_new(kind: Kind) -> str:
        new = words.draw_new(kind, rng, taken, text.text if text else "")
        taken.add(new)
        return new

    values = {
        draw_new(needles.key): [draw_new(needles.value) for _ in range(needles.values)]
        for _ in range(needles.keys)
    }
    hidden = [_needle(needles, key, value) for key in values for value in values[key]]
    hidden = [hidden[place] for place in rng.permutation(len(hidden))]
    asked = list(values)[: needles.queries]  # in no order that the text has
    answers = tuple(value for key in asked for value in values[key])
    seed = int(rng.integers(2**62))
    distractors: list[str] = []  # more of them as larger sizes are built

    def build(size: int) -> Draft:
        places = np.random.default_rng([seed, size])
        if text:
            return _ask(needles, asked, answers, _in_text(hidden, text, size, places))
        if needles.haystack == "noise":
            lines = [NOISE] * size
        else:
            while len(distractors) < size:
                distractors.append(_needle(needles, draw_new(needles.key), draw_new(needles.value)))
            lines = distractors[:size]
        return _ask(needles, asked, answers, _in_lines(hidden, lines, places))

    return Recipe(len(hidden), build, weight=text.cost if text else float)


def _needle(needles: Needles, key: str, value: str) -> str:
    return NEEDLE.format(kind=needles.value, key=key, value=value)


def _in_lines(hidden: list[str], lines: list[str], rng: np.random.Generator) -> str:
    """Each needle before a line of its own."""
    lines = list(lines)
    places = sorted(rng.choice(len(lines), len(hidden), replace=False), reverse=True)
    for place, needle in zip(places, hidden, strict=True):
        lines.insert(place, needle)
    return "\n".join(lines)


def _in_text(hidden: list[str], essay: Essay, size: int, rng: np.random.Generator) -> str:
    """Each needle between two sentences, at a depth of its own."""
    starts = essay.sentences(size)
    depths = np.sort(rng.choice(DEPTHS, len(hidden), replace=False))
    cuts = [0, *(int(starts[(len(starts) - 1) * depth // 100]) for depth in depths), size]
    parts = [essay.part(*ends) for ends in pairwise(cuts)]
    pieces = [piece for pair in zip(parts, hidden, strict=False) for piece in pair] + parts[-1:]
    return " ".join(piece for piece in pieces if piece)


def _ask(needles: Needles, asked: list[str], answers: tuple[str, ...], context: str) -> Draft:
    if len(answers) == 1:
        template, kind = ONE_NEEDLE, needles.value.removesuffix("s")
    else:
        template, kind = MANY_NEEDLES, needles.value
    query = ", ".join(asked[:-1]) + ", and " + asked[-1] if len(asked) > 1 else asked[0]
    return Draft(
        template.prompt.format(kind=kind, context=context, query=query),
        template.prefix.format(kind=kind, query=query),
        answers,
    )
