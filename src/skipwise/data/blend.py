"""Several kinds of text in one training, each with its share of the rows of every optimizer step.

The part that a row comes from is not drawn but counted out: a step has as many rows of each part as its share
comes to, and what whole numbers leave over goes to the parts that are most behind. So up to three parts are
never a whole row away from their shares of the run so far, and more parts hardly more.

Why several: Gao et al. 2024 (ProLong, arXiv 2410.02660) train long context on books and code with 40 % of
short text, without which short tasks suffer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from skipwise.data.mixture import Mixture
from skipwise.data.rows import PassageSource, Rows
from skipwise.data.skips import Contiguous, Row, Sampler

_SEED_STREAM = 4  # beside those of `skipwise.data.passages` and `skipwise.data.packing`


class Blend:
    """The rows of ``steps`` optimizer steps (a map-style dataset) from several parts, like `Rows` from one.

    Part k has the passages ``sources[k]``, the sampler ``samplers[k]`` and ``shares[k]`` of the rows; rows of
    one part lie next to each other within a step, in the order of the parts. Row i is a pure function of
    (seed, i), for any number of steps. With one part, these are the rows of `Rows`.

    ``taught``: the numbers of the parts whose rows are learned from the untouched model.

    Raises ValueError for samplers whose rows would not fit into one batch, and for taught rows that
    skip or have the target length.
    """

    def __init__(
        self,
        sources: Sequence[PassageSource],
        samplers: Sequence[Sampler],
        shares: Sequence[Fraction],
        *,
        steps: int,
        rows_per_step: int,
        seed: int,
        taught: Collection[int] = (),
    ) -> None:
        if any(type(samplers[part]) is not Contiguous for part in taught):  # full-length rows are so as well
            raise ValueError("rows that the untouched model teaches must be contiguous: it knows no others")
        self.taught = frozenset(taught)
        self.sampler, self.seed, self.rows_per_step = together(samplers, shares), seed, rows_per_step
        self._before = counted_out(shares, rows_per_step, steps)
        self.parts = tuple(
            Rows(source, sampler, count=int(count), seed=part_seed(seed, part))
            for part, (source, sampler, count) in enumerate(
                zip(sources, samplers, self._before[-1], strict=True)
            )
        )

    def __len__(self) -> int:
        return (len(self._before) - 1) * self.rows_per_step

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        step, place = divmod(index, self.rows_per_step)
        before, after = self._before[step : step + 2]
        last = (after - before).cumsum()  # in the step, the row after the last one of each part
        part = int(np.searchsorted(last, place, side="right"))
        row = self.parts[part][int(after[part] - last[part]) + place]
        return replace(row, taught=True) if part in self.taught else row


def counted_out(shares: Sequence[Fraction], rows_per_step: int, steps: int) -> NDArray[np.int64]:
    """How many rows of each part come before each step, int64, shape ``(steps + 1, parts)``.

    ``shares`` are positive and sum to 1. Each step has ``rows_per_step * share`` rows of a part, rounded down
    or up.
    """
    unit = math.lcm(*(share.denominator for share in shares))
    exact = [int(share * rows_per_step * unit) for share in shares]  # rows in a step, in 1/unit of a row
    before = [[0] * len(shares)]
    for step in range(1, steps + 1):
        given = [rows + each // unit for rows, each in zip(before[-1], exact, strict=True)]
        behind = [step * each - unit * rows for rows, each in zip(given, exact, strict=True)]
        left = step * rows_per_step - sum(given)
        for part in sorted(range(len(shares)), key=lambda part: -behind[part])[:left]:
            given[part] += 1
        before.append(given)
    return np.array(before, dtype=np.int64)


def together(samplers: Sequence[Sampler], shares: Sequence[Fraction]) -> Sampler:
    """All rows as of one sampler, for titles and coverage: a `Mixture`, unless all parts have the same."""
    if len(set(samplers)) == 1:
        return samplers[0]
    weights: dict[Sampler, float] = {}
    for sampler, share in zip(samplers, shares, strict=True):
        mixed = sampler if isinstance(sampler, Mixture) else Mixture((sampler,), (1.0,))
        for each, weight in zip(mixed.samplers, mixed.weights, strict=True):
            weights[each] = weights.get(each, 0.0) + float(share) * weight
    return Mixture(tuple(weights), tuple(weights.values()))


def part_seed(seed: int, part: int) -> int:
    """The seed of one part's passages and rows: the run's for the first, others' own, so none share draws."""
    if part == 0:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(_SEED_STREAM, part)).generate_state(1, np.uint64)[0])
