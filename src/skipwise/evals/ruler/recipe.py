"""A prompt whose haystack can have any size, and the largest size that a number of tokens allows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Draft:
    """A question of some size: what the user says, the begun answer, and all that should be in its rest."""

    body: str
    prefix: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """``build(size)`` gives the same draft every time, and the same question for every size.

    The unit of size is the task's own: a line of noise, a word of text, a needle, a document.
    """

    smallest: int
    build: Callable[[int], Draft]
    largest: int | None = None
    """None: any size can be built."""
    weight: Callable[[int], float] = float
    """About proportional to the tokens of a haystack of some size: it only makes the search short."""


def largest_size(recipe: Recipe, count: Callable[[int], int], budget: int) -> int:
    """A size that fits into ``budget`` tokens while the next one does not, or `Recipe.largest`.

    ``count(size)`` are the tokens of a size; the smallest size must fit. As counting is slow, each next size
    is predicted from the last two. The first guess takes the fixed text for haystack, which makes it far too
    small, so that only a few texts of the full length are counted. Sizes that fit are counted in rising
    order.
    """
    low = recipe.smallest
    used = count(low)
    high = 1 + (recipe.largest or low + 2 * budget)  # low fits; high does not, or cannot be built
    scale = used / recipe.weight(low)
    while high - low > 1:
        target = recipe.weight(low) + (budget - used) / scale
        guess = max(low + bisect_right(range(low + 1, high), target, key=recipe.weight), low + 1)
        tokens = count(guess)
        if tokens > used:
            scale = (tokens - used) / (recipe.weight(guess) - recipe.weight(low))
        if tokens <= budget:
            low, used = guess, tokens
        else:
            high = guess
    return low
