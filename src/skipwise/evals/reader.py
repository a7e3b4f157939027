"""What every evaluation needs of a model, whether its weights lie here or behind a server.

Texts come as token ids, so that a length means the same number of tokens everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from skipwise.scores import Subject

Tokens = Sequence[int] | NDArray[np.integer]


class Reader(Protocol):
    """A model under evaluation."""

    subject: Subject
    tokenizer: PreTrainedTokenizerBase

    def at_once(self, length: int) -> int:
        """How many rows of ``length`` tokens to hand over in one call."""

    def losses(self, rows: Sequence[Tokens], first: int = 1) -> list[NDArray[np.float64]]:
        """The loss of tokens ``first`` .. end of each row (nats), given all tokens before them in the row.

        ``rows``: token ids, rows of one length T; out: as many float64 arrays ``(T - first,)``. ``first`` is
        at least 1: nothing predicts the first token.
        """

    def generate(self, prompts: Sequence[Tokens], new_tokens: int) -> list[str]:
        """The most likely next tokens of each prompt (greedy), as text without special tokens.

        At most ``new_tokens``, fewer where the model ends its answer. Prompts need not have one length.
        """


def common_prefix(rows: Sequence[Tokens]) -> int:
    """How many tokens at the start are the same in all rows."""
    return sum(1 for _ in itertools.takewhile(lambda each: len(set(each)) == 1, zip(*rows, strict=False)))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """``text`` as token ids, nothing added before or after."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # of any length


def start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before every text (a BOS token, or nothing)."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    with_special = tokenizer("a")["input_ids"]
    return list(with_special[: with_special.index(plain[0])])
