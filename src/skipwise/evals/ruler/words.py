"""Words, numbers and identifiers for keys, values and word lists, without a dictionary to download.

RULER takes English words from the package wonderwords; here they are the words of the local text, and where
it has too few of them, invented ones of three syllables.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Container
from itertools import islice

import numpy as np

from skipwise.evals.ruler.tasks import Kind

_WORD = re.compile(r"(?<![\w'’-])[a-z]{4,12}(?![\w'’-])")
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_STEP = 100_003
"""Has no factor in common with the number of invented words, so that multiples of it meet all of them."""

KEY_WORDS = 2000
"""Keys are pairs of at least so many words."""


class Words:
    """The words of ``text``: 4 to 12 small Latin letters, nothing attached to them."""

    def __init__(self, text: str) -> None:
        self.known = sorted(set(_WORD.findall(text)))
        self._for_keys = self.at_least(KEY_WORDS)

    def at_least(self, size: int) -> list[str]:
        """All known words, and as many invented ones as make them ``size`` (at most 343 000 are invented)."""
        missing = max(0, size - len(self.known))
        known = set(self.known) if missing else set()
        words = (invented(number) for number in range(len(_SYLLABLES) ** 3))
        return self.known + list(islice((word for word in words if word not in known), missing))

    def draw(self, kind: Kind, rng: np.random.Generator) -> str:
        """Two words with a hyphen, seven digits, or a random UUID."""
        if kind == "words":
            first, second = rng.integers(len(self._for_keys), size=2)
            return f"{self._for_keys[first]}-{self._for_keys[second]}"
        if kind == "numbers":
            return str(rng.integers(10**6, 10**7))
        return str(uuid.UUID(bytes=rng.bytes(16), version=4))

    def draw_new(self, kind: Kind, rng: np.random.Generator, *taken: Container[str]) -> str:
        """Such a one that is in none of ``taken`` (sets, or texts)."""
        while True:
            drawn = self.draw(kind, rng)
            if not any(drawn in each for each in taken):
                return drawn


def invented(number: int) -> str:
    """The word of three syllables with this number, neighbours being unlike."""
    rest = number * _STEP % len(_SYLLABLES) ** 3
    word = ""
    for _ in range(3):
        rest, syllable = divmod(rest, len(_SYLLABLES))
        word += _SYLLABLES[syllable]
    return word
