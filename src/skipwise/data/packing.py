"""Documents of any length, joined into a stream and cut into passages: none is dropped, nothing is padded.

For text whose documents are shorter than a row: instructions, conversations, short pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from skipwise.data.passages import Ids, Indices, TokenizedDocuments
from skipwise.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ORDER_STREAM = 3  # beside those of `skipwise.data.passages`


class Packed:
    """Passages of ``length`` tokens from documents that follow each other, the token ``end`` after each.

    One pass over the documents is in an order of its own, drawn from (seed, pass) alone, and the next follows
    without a seam: passage k of a run is the tokens ``k * length`` to ``(k + 1) * length - 1`` of an endless
    stream. A document may begin in one passage and go on in the next. As in ordinary pretraining, nothing
    marks where a document ends but the token ``end``: positions run through the row, attention reaches back
    into the documents before, and the first token of a document is predicted from ``end``.

    ``len(packed)`` passages make an epoch: those of one pass, rounded up. Documents stay memory-mapped: of a
    pass only the order and where each document ends are held (16 bytes a document).
    """

    def __init__(self, documents: TokenizedDocuments, *, length: int, end: int, seed: int) -> None:
        if length < 1:
            raise InputError(f"packed passages need length ({length}) of at least 1 token")
        self.length, self.end, self.seed = length, end, seed
        self._documents = documents
        self.tokens = documents.total_tokens + len(documents)  # of one pass
        self._pass: tuple[int, Indices, Indices] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pass": None}  # quicker to draw again than to send

    def __len__(self) -> int:
        return -(-self.tokens // self.length)

    def draw(self, epoch: int, example: int, rng: np.random.Generator) -> Ids:  # noqa: ARG002
        """Passage ``example`` of ``epoch``, int32, shape ``(length,)``; nothing is drawn from ``rng``.

        Raises IndexError outside 0 <= example < len(self).
        """
        if not 0 <= example < len(self):
            raise IndexError(f"example {example} of an epoch of {len(self)}")
        number, place = divmod((epoch * len(self) + example) * self.length, self.tokens)
        passage, filled = np.empty(self.length, dtype=np.int32), 0
        while True:
            order, ends = self._order(number)
            visit = int(np.searchsorted(ends, place, side="right"))
            read = place - int(ends[visit - 1] if visit else 0)  # tokens of the first document
            for document in order[visit:]:
                ids = self._documents[document][read : read + self.length - filled]
                passage[filled : filled + len(ids)] = ids
                filled += len(ids)
                if filled == self.length:
                    return passage
                passage[filled] = self.end
                filled, read = filled + 1, 0
                if filled == self.length:
                    return passage
            number, place = number + 1, 0

    def _order(self, number: int) -> tuple[Indices, Indices]:
        """The documents of one pass in their order, and the place in the pass at which each has ended."""
        if self._pass is None or self._pass[0] != number:
            sequence = np.random.SeedSequence(self.seed, spawn_key=(_ORDER_STREAM, number))
            order = np.random.Generator(np.random.Philox(sequence)).permutation(len(self._documents))
            self._pass = number, order, np.cumsum(self._documents.lengths[order] + 1)
        return self._pass[1:]


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that goes between packed documents; InputError for a tokenizer that has none."""
    if tokenizer.eos_token_id is None:
        raise InputError(
            "pack: the tokenizer has no end-of-text token to put between documents: give it an eos_token, or "
            "leave pack out"
        )
    return int(tokenizer.eos_token_id)
