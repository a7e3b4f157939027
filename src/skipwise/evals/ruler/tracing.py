"""Variable tracking (RULER section 3.2): which variables hold a value that was handed on?

Rules of `scripts/data/synthetic/variable_tracking.py` with one chain of four hops: ``VAR A = 12345`` and
four times ``VAR B = VAR A``, in this order, each a line of its own between lines of noise. A solved example
of at most 500 tokens stands before it, with names of three letters instead of five. Unit of size: a line of
noise.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from skipwise.evals.ruler.recipe import Draft, Recipe, largest_size
from skipwise.evals.ruler.templates import NOISE, VARIABLES

HOPS = 4
EXAMPLE_TOKENS = 500
EXAMPLE_SHARE = 4
"""The example has at most this part of a length: shorter than RULER's where that is below 2000 tokens."""


def chain_recipe(length: int, rng: np.random.Generator, count: Callable[[str], int]) -> Recipe:
    """Prompts with one chain after an example; ``count`` says how many tokens a text has."""
    values = rng.permutation(np.arange(10_000, 99_999))[:2]  # the example's is never the one asked for
    example = _chain_recipe(3, int(values[0]), rng)

    def example_tokens(size: int) -> int:
        draft = example.build(size)
        return count(draft.body + draft.prefix)

    room = max(min(EXAMPLE_TOKENS, length // EXAMPLE_SHARE), example_tokens(example.smallest))
    solved = example.build(largest_size(example, example_tokens, room))
    before = f"{solved.body}{solved.prefix} {' '.join(solved.answers)}\n\n"
    question = _chain_recipe(5, int(values[1]), rng)

    def build(size: int) -> Draft:
        draft = question.build(size)
        return Draft(before + draft.body, draft.prefix, draft.answers)

    return Recipe(question.smallest, build)


def _chain_recipe(letters: int, value: int, rng: np.random.Generator) -> Recipe:
    names: dict[str, None] = {}  # in order, none twice
    while len(names) < HOPS + 1:
        names["".join(chr(ord("A") + letter) for letter in rng.integers(26, size=letters))] = None
    answers = tuple(names)
    chain = [f"VAR {answers[0]} = {value}"]
    # The space at the end is RULER's.
    chain += [f"VAR {later} = VAR {name} " for name, later in pairwise(answers)]
    seed = int(rng.integers(2**62))

    def build(size: int) -> Draft:
        places = np.random.default_rng([seed, size]).choice(size, len(chain), replace=False)
        lines = [NOISE] * size
        for place, line in zip(sorted(places, reverse=True), reversed(chain), strict=True):
            lines.insert(place, line)
        return Draft(
            VARIABLES.prompt.format(context="\n".join(lines), query=value),
            VARIABLES.prefix.format(count=len(answers), query=value),
            answers,
        )

    return Recipe(len(chain), build)
