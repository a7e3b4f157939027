"""CREAM: a head, a tail and a middle chunk, so that the middle of the context is taught as well as its ends.

Source: Wu et al., "An Efficient Recipe for Long Context Extension via Middle-Focused Positional Encoding",
NeurIPS 2024, arXiv 2406.07138. Four things differ from the authors' code: the coin is tossed for every
example (theirs: once for 3,000), the Gaussian is truncated (theirs piles the cut-off tails up at the end
points, then rounds down), its width grows with the target (theirs: 3, whatever alpha), no text comes twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from skipwise.data.skips import Chunks, Row, check_lengths, check_passage, make_row


@dataclass(frozen=True)
class Cream:
    """Rows of three chunks: H tokens at the first positions, H at the last, the other M in between.

    A coin decides H for every row: ``floor(Lc / 3)`` ("relativity": many distances between chunks) or
    ``floor(4 Lt / Lc)``, but never more than that ("continuity": a long unbroken middle). The position e of
    the middle's last token follows a *reach* r, a Gaussian truncated to [Lc, Lt] with mean ``(Lc + Lt) / 2``
    and deviation ``3 Lt / 16``: ``e ~ U{floor(H + (M - 1) r / Lc) .. ceil(r) - H - 1}``. In the paper's terms
    alpha = Lt / Lc and x = 2 r / Lc, of mean 1 + alpha; sigma = 3 alpha / 8 is their 3 at alpha = 8. The
    bounds are rounded outwards: so the range is never empty, and the middle can touch head and tail.

    Text: the head is the passage's beginning, the tail the end of its first Lt tokens, the middle is from
    where its positions point to, or just before the tail. Raises ValueError for lengths that make no sense.
    """

    train_length: int
    target_length: int

    def __post_init__(self) -> None:
        if self.train_length < 3:
            raise ValueError(
                f"train_length = {self.train_length}: must be at least 3 tokens, one for each chunk"
            )
        check_lengths(self.train_length, self.target_length)

    @property
    def row_length(self) -> int:
        """Tokens in every row: the train length."""
        return self.train_length

    @property
    def passage_length(self) -> tuple[int, int]:
        """The text is spread over up to Lt tokens."""
        return self.train_length, self.target_length

    def sample(self, token_ids: NDArray[np.integer], rng: np.random.Generator) -> Row:
        """One row from a passage ``token_ids`` of shape ``(Lx,)``."""
        check_passage(token_ids, self.train_length)
        ends = self._ends(rng)
        middle = self.train_length - 2 * ends
        middle_skip = self._middle_end(ends, rng) - (middle - 1) - ends
        text_skip = min(len(token_ids), self.target_length) - self.train_length
        lengths = np.array([ends, middle, ends])
        skips = np.array([0, middle_skip, self.target_length - self.train_length])
        text_skips = np.array([0, min(middle_skip, text_skip), text_skip])
        return make_row(token_ids, Chunks(lengths, skips, text_skips))

    def _ends(self, rng: np.random.Generator) -> int:
        """H, the tokens of the head and of the tail."""
        relativity = self.train_length // 3
        continuity = min(4 * self.target_length // self.train_length, relativity)
        return relativity if rng.random() < 0.5 else continuity

    def _middle_end(self, ends: int, rng: np.random.Generator) -> int:
        """e, the position of the middle's last token."""
        reach = self._reach(rng)
        middle = self.train_length - 2 * ends
        low = ends + floor((middle - 1) * reach / self.train_length)
        return int(rng.integers(low, ceil(reach) - ends - 1, endpoint=True))

    def _reach(self, rng: np.random.Generator) -> float:
        """One draw of r: the inverse CDF at a point between the CDF's values at both ends."""
        nearest, farthest = self.train_length, self.target_length
        gaussian = NormalDist((nearest + farthest) / 2, 3 * farthest / 16)
        below = gaussian.cdf(nearest)
        inside = gaussian.cdf(farthest) - below
        reach = gaussian.inv_cdf(below + inside * rng.random())
        return min(max(reach, nearest), farthest)  # rounding
