"""LongPPL: perplexity over the tokens that need the long context (Fang et al. 2024, arXiv 2410.23771).

An evaluator reads every token twice: after all that stands before it, and after the last K tokens only. It is
a *key token* when the long context helps a lot and the token can be foretold at all (equation 5 there):

    log p(x | long) - log p(x | short) > 2      and      log p(x | long) > -2

LongPPL is exp of the judged model's mean loss over key tokens, given the whole text before each of them.

As the authors' code does (K = 4,096), K / 4 tokens share one short context, which so has K to 5/4 K - 1
tokens; and the choice is hard (0 or 1), not weighted by the gain. Two things differ from that code. Documents
are averaged in the logarithm (all key tokens count alike), not their perplexities. And a token of another
tokenizer is a key token when all its characters but blanks belong to key tokens of the evaluator, so that it
does not matter which of two tokens owns the blank between them.

Both choices are causal: the key tokens of the first L tokens of a text, and their losses, are the same
whatever follows. All lengths therefore come from one pass over the long text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from skipwise.errors import InputError, RunError
from skipwise.evals.perplexity import Documents, describe_documents, perplexity_score
from skipwise.evals.reader import Reader, Tokens, common_prefix, start_tokens
from skipwise.evals.run import Item, model_identity
from skipwise.scores import Score

ALPHA = 2.0
"""Nats that the long context must bring."""

BETA = -2.0
"""Log-probability that a key token must have after the long context."""

READ_BACK = 8
"""Tokens at the end of a document, cut anywhere, that may come out otherwise when its text is read again."""


@dataclass(frozen=True, kw_only=True)
class LongPPL:
    """At each of ``lengths``, over the documents (arrays of token ids) of at least that many tokens.

    Lengths that leave no room for key tokens, 5/4 ``short_length`` and less, are left out. Key tokens are
    chosen by ``evaluator``, None: by the judged model itself. Only scores of one evaluator compare: what a
    model itself finds hard to foretell from little is another set of tokens for every model.
    """

    documents: Documents
    lengths: Sequence[int]
    short_length: int = 4_096
    evaluator: Reader | None = None
    source: dict[str, Any] = field(default_factory=dict)
    """Where the documents come from, for the record."""
    name: str = "longppl"

    @property
    def stride(self) -> int:
        """Tokens that share a short context."""
        return max(self.short_length // 4, 1)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "lengths": sorted(self.lengths),
            "short_length": self.short_length,
            "stride": self.stride,
            "alpha": ALPHA,
            "beta": BETA,
            "evaluator": model_identity(self.evaluator.subject) if self.evaluator else "self",
            "documents": describe_documents(self.documents),
            **self.source,
        }

    def items(self, reader: Reader) -> list[Item]:  # noqa: ARG002
        """One a document. Raises InputError when no length, or no document, is long enough."""
        needed = self.short_length + self.stride + 1
        lengths = [length for length in self.lengths if length >= needed]
        if not lengths:
            raise InputError(
                f"LongPPL with a short context of {self.short_length} tokens needs lengths of at least "
                f"{needed}: evaluate longer lengths, or name a smaller --short-length"
            )
        found = [
            Item(str(number), min(len(document), max(lengths)))
            for number, document in enumerate(self.documents)
            if len(document) >= min(lengths)
        ]
        if not found:
            raise InputError(f"no document has {min(lengths)} tokens: evaluate shorter lengths")
        return found

    def measure(self, reader: Reader, items: Sequence[Item]) -> list[dict[str, list[float]]]:
        """Of each document, at every length it has: the sum of the losses of key tokens, and their number."""
        rows = [self.documents[int(each.key)][: each.length] for each in items]
        evaluator = self.evaluator or reader
        same = evaluator.subject.tokenizer == reader.subject.tokenizer
        chosen = [] if evaluator is reader else [self._chosen(evaluator, reader, row, same) for row in rows]
        losses = [np.concatenate([[0.0], each]) for each in reader.losses(rows)]
        if evaluator is reader:
            chosen = [self._key_tokens(reader, row, loss) for row, loss in zip(rows, losses, strict=True)]
        return [
            {
                str(length): [float(loss[:length][keys[:length]].sum()), float(keys[:length].sum())]
                for length in self.lengths
                if length <= len(keys)
            }
            for loss, keys in zip(losses, chosen, strict=True)
        ]

    def scores(self, model: str, results: dict[str, dict[str, list[float]]]) -> list[Score]:
        """One a length; its samples are documents, weighted by their key tokens (0: it has none).

        Raises RunError when no document has any.
        """
        found = []
        for length in sorted(self.lengths):
            sums = np.array([each[str(length)] for each in results.values() if str(length) in each])
            if not len(sums) or not sums[:, 1].any():
                continue
            means = sums[:, 0] / np.maximum(sums[:, 1], 1)
            found.append(
                perplexity_score(list(means), list(sums[:, 1]), model=model, task=self.name, length=length)
            )
        if not found:
            raise RunError(
                f"no key token in {len(results)} documents: none needs more than {self.short_length} tokens "
                "of context; evaluate other documents, or name an --evaluator"
            )
        return found

    def _chosen(self, evaluator: Reader, reader: Reader, row: Tokens, same: bool) -> NDArray[np.bool_]:
        """Which tokens of ``row`` another model chooses, in tokens of its own where they differ."""
        if same:
            self._check_room(evaluator, row)
            loss = np.concatenate([[0.0], evaluator.losses([row])[0]])
            return self._key_tokens(evaluator, row, loss)
        text, spans = spans_of(reader.tokenizer, row)
        start = start_tokens(evaluator.tokenizer)
        read = evaluator.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens = start + list(read["input_ids"])
        self._check_room(evaluator, tokens)
        loss = np.concatenate([[0.0], evaluator.losses([tokens])[0]])
        keys = self._key_tokens(evaluator, tokens, loss)[len(start) :]
        return covered(text, np.array(read["offset_mapping"])[keys], spans)

    def _check_room(self, evaluator: Reader, row: Tokens) -> None:
        window = evaluator.subject.window
        if window and len(row) > window:
            raise InputError(
                f"the evaluator {evaluator.subject.name} reads {window} tokens, not {len(row)}: name another "
                "--evaluator, or evaluate shorter lengths"
            )

    def _key_tokens(self, evaluator: Reader, row: Tokens, loss: NDArray[np.float64]) -> NDArray[np.bool_]:
        """``(T,)``: which tokens of a row of T are key tokens, given their losses after the long context."""
        found = np.zeros(len(row), dtype=bool)
        size = self.short_length + self.stride
        # the window that starts at 0 is the long context itself
        starts = list(range(self.stride, len(row) - self.short_length, self.stride))
        whole = [start for start in starts if start + size <= len(row)]
        at_once = evaluator.at_once(size)
        batches = [whole[first : first + at_once] for first in range(0, len(whole), at_once)]
        for batch in [*batches, *([start] for start in starts[len(whole) :])]:
            short = evaluator.losses([row[start : start + size] for start in batch], self.short_length)
            for start, each in zip(batch, short, strict=True):
                here = slice(start + self.short_length, start + self.short_length + len(each))
                found[here] = (each - loss[here] > ALPHA) & (loss[here] < -BETA)
        return found


def spans_of(tokenizer: PreTrainedTokenizerBase, row: Tokens) -> tuple[str, NDArray[np.int64]]:
    """The text of a row of T tokens and ``(T, 2)``: where each token begins and ends in it (0, 0: not there).

    Raises InputError for a tokenizer that does not say, or does not read its own text back.
    """
    tokens, start = [int(token) for token in row], start_tokens(tokenizer)
    first = len(start) if tokens[: len(start)] == start else 0
    text = str(tokenizer.decode(tokens[first:]))
    spans = np.zeros((len(tokens), 2), dtype=np.int64)
    if tokenizer.is_fast:
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        alike = common_prefix([tokens[first:], read["input_ids"]])
        if alike >= len(tokens) - first - READ_BACK:
            spans[first : first + alike] = read["offset_mapping"][:alike]
            return text, spans
    raise InputError(
        "the tokens of this model cannot be found in the text again: name an --evaluator with its tokenizer"
    )


def covered(text: str, chosen: NDArray[np.int64], spans: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of ``spans (T, 2)`` of a text lie in ``chosen (N, 2)`` of them but for blanks, and are not blank.

    >>> covered("an apple", np.array([[3, 8]]), np.array([[0, 2], [2, 5], [5, 8], [2, 3], [1, 5]])).tolist()
    [False, True, True, False, False]
    """
    inside = np.zeros(len(text), dtype=bool)
    for first, end in chosen:
        inside[first:end] = True
    visible = ~np.array([each.isspace() for each in text], dtype=bool)
    seen = np.concatenate([[0], np.cumsum(visible)])
    known = np.concatenate([[0], np.cumsum(visible & inside)])
    size = seen[spans[:, 1]] - seen[spans[:, 0]]
    found: NDArray[np.bool_] = (size > 0) & (known[spans[:, 1]] - known[spans[:, 0]] == size)
    return found
