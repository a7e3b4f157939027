"""Perplexity by position and at every window, from one forward pass a document; and over a sliding window.

Perplexity is exp of the mean loss over scored tokens (not over windows or documents).

**By position.** A causal model's prediction at position t depends on tokens 0 .. t only, so the losses of the
first L tokens of one long pass are the losses of a pass over just those L tokens: every window shorter than
the pass comes for free. This tells how well a model reads at every distance from the start.

**Sliding window** (Press et al. 2021, arXiv 2108.12409, section 2; the figures of the PoSE paper). A window
of L tokens moves over the document by a stride S, and only the tokens that no window before it scored count:
all of the first window, the last S of each other one. Every scored token but those of the first window so
has at least L - S tokens before it. This tells how well a model of window L reads a text of any length.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipwise.errors import InputError
from skipwise.evals.reader import Reader
from skipwise.evals.run import Item, fingerprint
from skipwise.scores import Score

Documents = Sequence[NDArray[np.integer]]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """By position, over the first tokens of ``documents`` (arrays of token ids).

    For each of ``lengths`` L: task ``perplexity`` over tokens 1 .. L - 1, ``perplexity_last_quarter`` over
    tokens 3L/4 .. L - 1, and ``perplexity_bucket`` over consecutive buckets of positions, doubling in size.
    Each length uses the documents of at least that many tokens, and is left out when there is none.
    """

    documents: Documents
    lengths: Sequence[int]
    source: dict[str, Any] = field(default_factory=dict)
    """Where the documents come from, for the record."""
    name: str = "perplexity"

    @property
    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "lengths": sorted(self.lengths),
            "documents": describe_documents(self.documents),
            **self.source,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the scores should know."""
        return _unreached(self.documents, self.lengths)

    def items(self, reader: Reader) -> list[Item]:  # noqa: ARG002
        """One a document. Raises InputError where none has the tokens of any length."""
        if min(self.lengths) < 2:
            raise InputError("a length of 1 has no token to score: evaluate longer lengths")
        _check_long_enough(self.documents, self.lengths)
        return [
            Item(str(number), min(len(document), max(self.lengths)))
            for number, document in enumerate(self.documents)
            if len(document) >= min(self.lengths)
        ]

    def measure(self, reader: Reader, items: Sequence[Item]) -> list[dict[str, float]]:
        """Of each document: the sum of its losses from token 1 up to each edge that it reaches."""
        length = items[0].length
        losses = reader.losses([self.documents[int(each.key)][:length] for each in items])
        found = []
        for each in losses:
            sums = np.concatenate(
                [[0.0, 0.0], np.cumsum(each)]
            )  # up to, but not with, the token of the index
            found.append({str(edge): float(sums[edge]) for edge in self._edges() if 1 <= edge <= length})
        return found

    def scores(self, model: str, results: dict[str, dict[str, float]]) -> list[Score]:
        """Each length's perplexity and that of its last quarter, then the buckets."""
        found = []
        for length in sorted(self.lengths):
            found.append(self._score(model, "perplexity", 1, length, results))
            found.append(self._score(model, "perplexity_last_quarter", 3 * length // 4, length, results))
        buckets = _bucket_edges(self.lengths)
        for start, end in itertools.pairwise(buckets):
            found.append(self._score(model, "perplexity_bucket", max(start, 1), end, results, start))
        return [score for score in found if score.n]

    def _edges(self) -> list[int]:
        quarters = [3 * length // 4 for length in self.lengths]
        return sorted({1, *self.lengths, *quarters, *_bucket_edges(self.lengths)})

    def _score(
        self,
        model: str,
        task: str,
        first: int,
        end: int,
        results: dict[str, dict[str, float]],
        start: int | None = None,
    ) -> Score:
        """Over the tokens first .. end - 1 of the documents that have them all."""
        reached = [sums for sums in results.values() if str(end) in sums]
        means = [(sums[str(end)] - sums[str(first)]) / (end - first) for sums in reached]
        return perplexity_score(means, [1.0] * len(means), model=model, task=task, length=end, start=start)


@dataclass(frozen=True, kw_only=True)
class SlidingPerplexity:
    """Over a window of each of ``lengths`` tokens that moves by ``stride`` over whole ``documents``.

    Each length uses the documents of at least that many tokens, and is left out when there is none.
    """

    documents: Documents
    lengths: Sequence[int]
    stride: int
    source: dict[str, Any] = field(default_factory=dict)
    name: str = "sliding_perplexity"

    @property
    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "lengths": sorted(self.lengths),
            "stride": self.stride,
            "documents": describe_documents(self.documents),
            **self.source,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the scores should know."""
        return _unreached(self.documents, self.lengths)

    def items(self, reader: Reader) -> list[Item]:  # noqa: ARG002
        """One a window. Raises InputError for a stride as long as a window: a token would lack context."""
        longest = min(self.lengths) - 1
        if not 1 <= self.stride <= longest:
            raise InputError(
                f"a stride of {self.stride} does not fit windows of {longest + 1} tokens: choose 1 to "
                f"{longest}"
            )
        _check_long_enough(self.documents, self.lengths)
        found = [
            Item(f"{length}/{number}/{start}", end - start, (number, start, first))
            for length in sorted(self.lengths)
            for number, document in enumerate(self.documents)
            if len(document) >= length  # else no window is full
            for start, end, first in windows(len(document), length, self.stride)
        ]
        return sorted(found, key=lambda each: (each.length, each.what[2]))  # alike in what passes the head

    def measure(self, reader: Reader, items: Sequence[Item]) -> list[list[float]]:
        """Of each window: the sum of the losses of the tokens it scores, and their number."""
        first = min(
            each.what[2] for each in items
        )  # windows that score more do so in one call with the others
        rows = [
            self.documents[number][start : start + each.length]
            for each in items
            for number, start, _ in [each.what]
        ]
        losses = reader.losses(rows, first)
        scored = [loss[each.what[2] - first :] for loss, each in zip(losses, items, strict=True)]
        return [[float(each.sum()), float(len(each))] for each in scored]

    def scores(self, model: str, results: dict[str, list[float]]) -> list[Score]:
        """One a length; its samples are documents, weighted by their scored tokens."""
        found = []
        for length in sorted(self.lengths):
            sums = np.zeros((len(self.documents), 2))
            for key, result in results.items():
                window, number, _ = map(int, key.split("/"))
                if window == length:
                    sums[number] += result
            sums = sums[sums[:, 1] > 0]
            if not len(sums):
                continue
            means = list(sums[:, 0] / sums[:, 1])
            found.append(
                perplexity_score(means, list(sums[:, 1]), model=model, task=self.name, length=length)
            )
        return found


def windows(tokens: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, end, first scored token counted from the start) of each window over ``tokens`` tokens.

    >>> windows(10, 4, 3)
    [(0, 4, 1), (3, 7, 1), (6, 10, 1)]
    >>> windows(9, 4, 2)
    [(0, 4, 1), (2, 6, 2), (4, 8, 2), (5, 9, 3)]
    """
    found = [(0, min(length, tokens), 1)]
    while found[-1][1] < tokens:
        scored = found[-1][1]
        end = min(scored + stride, tokens)
        found.append((end - length, end, scored - (end - length)))
    return found if tokens > 1 else []


def perplexity_score(
    means: Sequence[float],
    weights: Sequence[float],
    *,
    model: str,
    task: str,
    length: int,
    start: int | None = None,
) -> Score:
    """exp of the weighted mean of the documents' mean losses (nats), with its standard error.

    Documents are the independent units. The error is that of a weighted mean over them (a ratio of two sums,
    linearised); exp's derivative carries it over to the perplexity.
    """
    values, weight = np.array(means, dtype=np.float64), np.array(weights, dtype=np.float64)
    count = len(values)
    mean = float(np.average(values, weights=weight)) if count else float("nan")
    error = 0.0
    if count > 1:
        spread = weight * (values - mean) / weight.mean()
        error = float(np.sqrt((spread**2).sum() / (count * (count - 1))))
    value = float(np.exp(mean))
    even = bool(count) and bool((weight == weight[0]).all())
    return Score(
        model=model,
        task=task,
        length=length,
        value=value,
        n=count,
        stderr=value * error,
        start=start,
        samples=tuple(float(each) for each in values),
        weights=() if even else tuple(float(each) for each in weight),
    )


def describe_documents(documents: Documents) -> dict[str, Any]:
    """What tells documents apart, for the settings of a task."""
    text = ",".join(str(np.asarray(document).tolist()) for document in documents)
    return {"count": len(documents), "tokens": sum(map(len, documents)), "hash": fingerprint(text)}


def _check_long_enough(documents: Documents, lengths: Sequence[int]) -> None:
    """Raise InputError where nothing can be scored."""
    if max(map(len, documents), default=0) < min(lengths):
        raise InputError(f"no document has {min(lengths)} tokens: evaluate shorter lengths")


def _unreached(documents: Documents, lengths: Sequence[int]) -> tuple[str, ...]:
    longest = max(map(len, documents), default=0)
    missing = ", ".join(f"{length:,}" for length in sorted(lengths) if length > longest)
    told = f"No document is long enough for {missing} tokens (the longest has {longest:,}): no score there."
    return (told,) if missing else ()


def _bucket_edges(lengths: Sequence[int]) -> list[int]:
    """0, then doublings that end at the largest length and begin near a quarter of the smallest."""
    edges = [max(lengths)]
    while edges[0] // 2 >= max(min(lengths) // 4, 2):  # token 0 is not scored: a bucket of it alone is empty
        edges.insert(0, edges[0] // 2)
    return [0, *edges]
