"""Conversations: rows that are cut only where a turn begins, and the tokens of them that are answers.

A chat model is extended on what it is used for: whole conversations, each a row of its own, cut into chunks
between two turns (`Turns`), and learned only where the assistant speaks (`Answers`, for the collator). With a
tokenizer of the ChatML family::

    ids = tokenizer.convert_tokens_to_ids
    sampler = Turns(2_048, 16_384, turn_starts=[ids("<|im_start|>")])
    opening = tokenizer.encode("<|im_start|>assistant\\n", add_special_tokens=False)
    collate = SkipCollator(tokenizer.pad_token_id, Answers(opening, [ids("<|im_end|>")]))
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from skipwise.data.skips import Chunks, Row, check_lengths, check_passage, increasing_skips, make_row


@dataclass(frozen=True)
class Turns:
    """PoSE rows of conversations: every chunk but the first begins with a turn.

    A row is the first ``min(len, Lc)`` tokens of one conversation. Its possible borders are the tokens in
    ``turn_starts``, row index 0 apart; of a run of them, as where a turn opens with two special tokens, only
    the first counts. It has ``min(chunks, borders + 1)`` chunks, every set of that many borders alike likely,
    and skips as in `PoSE`, up to what a row of its own length ``L`` leaves: ``u_0 = 0``,
    ``u_i ~ U{u_(i-1) .. Lt - L}``. A conversation of one turn is a contiguous row.

    What the model sees: inside a turn every distance is as in the chat itself. From a border on, all that
    was said before lies ``u_i - u_(i-1)`` tokens further back, as if turns that the row does not show had
    been between. So an answer learns to use what was said far away, and no sentence is torn apart.

    A special token before the first turn (``<s>``) is best listed too, or it can become a chunk of its own.
    Raises ValueError for lengths that make no sense and for no turn starts.
    """

    train_length: int
    target_length: int
    chunks: int = 2
    turn_starts: Collection[int] = field(kw_only=True)

    def __post_init__(self) -> None:
        check_lengths(self.train_length, self.target_length)
        if not 1 <= self.chunks <= self.train_length:
            raise ValueError(f"chunks = {self.chunks}: must be from 1 to train_length = {self.train_length}")
        object.__setattr__(self, "turn_starts", _id_set("turn_starts", self.turn_starts))

    @property
    def row_length(self) -> int:
        """Tokens in the longest rows: the train length. Shorter conversations are shorter rows."""
        return self.train_length

    @property
    def passage_length(self) -> tuple[int, int]:
        """Any conversation, read from its first token (``Passages(..., from_start=True)``)."""
        return 1, self.train_length

    def sample(self, token_ids: NDArray[np.integer], rng: np.random.Generator) -> Row:
        """One row from a conversation ``token_ids`` of shape ``(any,)``."""
        check_passage(token_ids, self.passage_length[0])
        text = token_ids[: self.train_length]
        lengths = np.diff(self._borders(text, rng), prepend=0, append=len(text))
        skips = increasing_skips(len(lengths), self.target_length - len(text), rng)
        return make_row(text, Chunks(lengths, skips, np.zeros_like(skips)))

    def _borders(self, text: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.int64]:
        starts = _one_of(text, self.turn_starts)
        possible = np.flatnonzero(starts[1:] & ~starts[:-1]) + 1
        count = min(self.chunks - 1, len(possible))
        return np.sort(rng.choice(possible, count, replace=False, shuffle=False))


@dataclass(frozen=True)
class Answers:
    """Which tokens of a row are learned: what follows ``start``, up to and with the next of ``ends``.

    ``start`` is the sequence of token ids that opens an answer, ``ends`` are ids each of which closes it; the
    closing token is learned too, or the model would never stop. Take ``start`` from a tokenized conversation
    where the text alone may be tokenized otherwise than inside one, and leave off a last newline that the
    tokenizer might merge with the answer.

    A batch without any answer has no loss (0 / 0). With long prompts, leave out what has none in sight::

        seen = [i for i in range(len(documents)) if answers.mask(documents[i][:train_length]).any()]
        documents = documents.select(seen)

    Raises ValueError for an empty ``start`` or ``ends``.
    """

    start: Sequence[int]
    ends: Collection[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", _ids("start", self.start))
        object.__setattr__(self, "ends", _id_set("ends", self.ends))

    def mask(self, token_ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        """True for the tokens of answers: shape ``(row_length,)``, like ``token_ids``.

        An answer that the row's end cuts off counts as far as it goes. ``start`` inside an answer is part of
        it, and an end outside of answers means nothing.
        """
        size = len(token_ids)
        begins = self._begins(token_ids)
        ends = np.flatnonzero(_one_of(token_ids, self.ends))
        stops = np.append(ends + 1, size)[np.searchsorted(ends, begins)]  # one past the next end
        edges = np.bincount(begins, minlength=size + 1) - np.bincount(stops, minlength=size + 1)
        return np.asarray(edges[:-1].cumsum() > 0)

    def _begins(self, token_ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Indices just after each ``start``: the first token of every answer."""
        found = np.flatnonzero(token_ids[: -len(self.start)] == self.start[0])
        for offset, token in enumerate(self.start[1:], 1):
            found = found[token_ids[found + offset] == token]
        return found + len(self.start)


def _one_of(token_ids: NDArray[np.integer], ids: Collection[int]) -> NDArray[np.bool_]:
    return reduce(np.logical_or, (token_ids == each for each in ids))


def _ids(name: str, values: Collection[int]) -> tuple[int, ...]:
    try:
        ids = tuple(operator.index(each) for each in values)
    except TypeError:  # a number, a string, None for a token that the vocabulary lacks
        ids = ()
    if not ids or min(ids) < 0:
        raise ValueError(f"{name} = {values!r}: must be token ids, at least one")
    return ids


def _id_set(name: str, values: Collection[int]) -> tuple[int, ...]:
    return tuple(sorted(set(_ids(name, values))))
