"""Real text as a haystack: any number of its words from the start, over again when it ends, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from skipwise.errors import InputError

LONGEST = 50
"""Words after which a sentence ends even without a full stop, so that a depth means the same in any text."""


class Essay:
    """The words of ``text``. ``count_each`` says how many tokens each of some texts has."""

    def __init__(self, text: str, count_each: Callable[[list[str]], Sequence[int]] | None = None) -> None:
        self.text = text
        self.words = self.text.split()
        if not self.words:
            raise InputError("the text for the haystacks of ruler is empty: name a file with some text")
        self.ends = _sentence_ends(self.words)
        unique = sorted(set(self.words))
        tokens = count_each([" " + word for word in unique]) if count_each else map(len, unique)
        cost = dict(zip(unique, tokens, strict=True))
        self._cost = np.cumsum([0, *(max(1, cost[word]) for word in self.words)])

    def sentences(self, size: int) -> NDArray[np.int64]:
        """Where the sentences of the first ``size`` words begin, and ``size``: int64 ``(sentences + 1,)``."""
        whole = np.arange(size // len(self.words) + 1)[:, None] * len(self.words)
        ends = (whole + self.ends).ravel()
        return np.concatenate([[0], ends[ends < size], [size]])

    def part(self, start: int, stop: int) -> str:
        """Words ``start`` .. ``stop`` of the text and its repetitions, single spaces between them."""
        count = len(self.words)
        if stop <= count:
            return " ".join(islice(self.words, start, stop))
        return " ".join([self.words[place % count] for place in range(start, stop)])

    def cost(self, size: int) -> float:
        """About the tokens of the first ``size`` words."""
        times, rest = divmod(size, len(self.words))
        return float(times * self._cost[-1] + self._cost[rest])


def _sentence_ends(words: Sequence[str]) -> NDArray[np.int64]:
    """The number of words up to the end of each sentence: after . ! or ? and before no small letter."""
    ends, begun = [], 0
    for place, (word, following) in enumerate(zip(words, [*words[1:], "A"], strict=True), 1):
        stops = word.rstrip("\"'”’)]")[-1:] in (".", "!", "?") and not following[0].islower()
        if stops or place - begun == LONGEST:
            ends.append(place)
            begun = place
    if begun < len(words):
        ends.append(len(words))
    return np.array(ends, dtype=np.int64)
