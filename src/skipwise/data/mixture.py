"""Several samplers as one: every row is drawn from one of them, chosen with its weight.

For example 80 % PoSE rows and 20 % contiguous ones, which keep the short-range ability of the model.
"""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from skipwise.data.skips import Row, Sampler, check_passage


@dataclass(frozen=True)
class Mixture:
    """Each row comes from ``samplers[k]`` with probability ``weights[k]``; rows all have one length.

    A sampler is shown no more of a passage than it could use alone. Raises ValueError for weights that are
    not positive or do not sum to 1, and for samplers whose rows would not fit into one batch.
    """

    samplers: tuple[Sampler, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "samplers", tuple(self.samplers))
        object.__setattr__(self, "weights", tuple(self.weights))
        if not self.samplers:
            raise ValueError("samplers = (): must be at least one")
        if len(self.weights) != len(self.samplers):
            raise ValueError(
                f"weights = {self.weights}: must be one for each of {len(self.samplers)} samplers"
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"weights = {self.weights}: must be finite and larger than 0")
        if not math.isclose(math.fsum(self.weights), 1, rel_tol=0, abs_tol=1e-9):
            raise ValueError(f"weights = {self.weights}: must sum to 1, not {math.fsum(self.weights):.10g}")
        if len({sampler.row_length for sampler in self.samplers}) > 1:
            rows = ", ".join(f"{type(each).__name__} of {each.row_length}" for each in self.samplers)
            raise ValueError(f"samplers = {rows} tokens a row: must have one row length")

    @property
    def row_length(self) -> int:
        """Tokens in every row, the same for all samplers."""
        return self.samplers[0].row_length

    @property
    def target_length(self) -> int:
        """The largest of the samplers'."""
        return max(sampler.target_length for sampler in self.samplers)

    @property
    def passage_length(self) -> tuple[int, int]:
        """What the most demanding sampler needs, and the most that any can use."""
        shortest, longest = zip(*(sampler.passage_length for sampler in self.samplers), strict=True)
        return max(shortest), max(longest)

    def sample(self, token_ids: NDArray[np.integer], rng: np.random.Generator) -> Row:
        """One row of one sampler from a passage ``token_ids`` of shape ``(Lx,)``."""
        check_passage(token_ids, self.passage_length[0])
        bounds = list(accumulate(self.weights[:-1]))  # the last sampler takes what is left, rounding included
        sampler = self.samplers[bisect(bounds, rng.random())]
        return sampler.sample(token_ids[: sampler.passage_length[1]], rng)
