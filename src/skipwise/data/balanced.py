"""Rows that show every relative distance beyond the train length equally often.

PoSE starves the far distances: from 2k to 16k with N = 2 one row in forty covers distance 16,000. `Balanced`
keeps PoSE's chunk lengths, so that inside its chunks a row shows the pre-trained distances exactly as often
as PoSE's, and changes the law of the skips alone.

The distances that two chunks cover together form a *window*. Only a row whose last skip is the largest,
S = Lt - Lc, covers Lt - 1, and its window reaches so and so far down; there the windows of smaller skips have
to begin, and so on down to the train length. Flat coverage is a tiling of the distances by windows.

N = 2. All windows are W = Lc - 1 wide, whatever the chunk lengths, so the tiling is fixed: skips S, S - W,
S - 2W, ..., each with probability W / (Lt - 1), and skip 0 with what is left. Each distance from Lc to Lt - 1
is then covered with probability W / (Lt - 1) = 1 / (S / W + 1). No law whatever gives all of them more than
1 / ceil(S / W), since no row covers two of the distances Lt - 1, Lt - 1 - W, Lt - 1 - 2W, ...; a law that
reaches it gives nothing to the tile within the train length.

N = 3. A row covers three windows of random widths, two *near* ones (chunks 0 and 1, chunks 1 and 2) and a
*far* one (chunks 0 and 2). For Lt / Lc without bound, coverage is flat when u_1 is uniform up to u_2 and
u_2 / S has the density 3x^2: two near windows and the far one add up to 2 * (integral of 3s from x to 1)
+ 3x^2 = 3 for every x. For a finite target `_last_skips` solves for the law of u_2; u_1 stays uniform.
No law gives all far distances more than (2 Lc - 3) / (Lt - Lc), the distances of three windows over the
number of far ones. ``benchmarks/balanced`` has linear programmes over all laws and how close this one is.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from skipwise.data.skips import PoSE

_CELLS = 128
"""Cells into which a longer train length is divided to solve for the law of the last skip."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Balanced(PoSE):
    """PoSE rows of two or three chunks whose skips make the coverage of far distances flat.

    Chunk lengths and text are PoSE's. Raises ValueError for other numbers of chunks.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunks not in (2, 3):
            raise ValueError(f"chunks = {self.chunks}: must be 2 or 3 for balanced skips")

    def skip_probabilities(self) -> Floats:
        """Probability of each skip of the last of two chunks, shape ``(Lt - Lc + 1,)``."""
        if self.chunks != 2:
            raise ValueError(f"chunks = {self.chunks}: only the skips of two chunks have a closed form")
        largest, window = self.target_length - self.train_length, self.train_length - 1
        probabilities = np.zeros(largest + 1)
        probabilities[largest::-window] = window / (self.target_length - 1)
        probabilities[0] += 1 - probabilities.sum()
        return probabilities

    def _skips(self, rng: np.random.Generator) -> NDArray[np.int64]:
        largest = self.target_length - self.train_length
        if self.chunks == 2:
            # A distance from the far end, drawn uniformly, and the window that holds it.
            window = self.train_length - 1
            windows = int(rng.integers(self.target_length - 1)) // window
            return np.array([0, max(largest - windows * window, 0)])
        cell, below = _last_skips(self.train_length, self.target_length)
        at = bisect_right(below, rng.random())
        last = max(largest - math.ceil((at - rng.random()) * cell), 0) if at else largest
        return np.array([0, rng.integers(last, endpoint=True), last])


@lru_cache(maxsize=8)
def _last_skips(train_length: int, target_length: int) -> tuple[float, list[float]]:
    """Law of u_2 for N = 3: the width of a cell in tokens, and cumulative probabilities.

    Entry 0 belongs to u_2 = S alone, entry z to the skips from S - z to S - z + 1 cells.

    The law Q is such that ``sum_s Q(s) P(a row with u_2 = s covers d)`` is 1 for every ``d = s' + Lc - 1``,
    before Q is scaled to a probability. No window of skip s reaches beyond ``s + Lc - 1``, and the far one
    always ends there: the system is triangular with ones on its diagonal, solved skip by skip from the far
    end. (What would come out below 0, for small Lt / Lc, is 0. Overlaps of all three windows are ignored.)
    """
    row = min(train_length, _CELLS)
    cell = train_length / row
    largest = math.ceil((target_length - train_length) / cell)
    near_whole, near, far, both = _window_laws(row)
    law = np.zeros(largest + 1)
    per_skip = np.zeros(largest + 1)  # Q(s) / (s + 1), the probability of one pair of skips
    above = np.zeros(largest + 2)  # above[s] is the sum of per_skip from s on
    for s in range(largest, -1, -1):
        distance = s + row - 1
        top = min(largest, distance - 1)  # up to here windows begin or end at the distance, or cut it
        covered = float(per_skip[s + 1 : top + 1] @ near[: top - s] + law[s + 1 : top + 1] @ far[: top - s])
        if distance <= largest:
            covered += float(above[distance]) * near_whole
        low, high = max(s + 1, 2 * (distance - row) + 1), min(largest, 2 * distance)
        if low <= high:
            overlaps = both[2 * distance - high : 2 * distance - low + 1][::-1]
            covered -= float(per_skip[low : high + 1] @ overlaps)
        law[s] = max(1.0 - covered, 0.0)
        per_skip[s] = law[s] / (s + 1)
        above[s] = above[s + 1] + per_skip[s]
    below = np.cumsum(law[::-1])
    return cell, (below / below[-1]).tolist()


def _window_laws(row: int) -> tuple[float, Floats, Floats, Floats]:
    """What `_last_skips` needs of the windows of a row of ``row`` cells, averaged over PoSE's chunk lengths.

    The near windows are ``u_1 + 1 .. u_1 + a`` and ``u_2 - u_1 + 1 .. u_2 - u_1 + b``, the far one ends at
    ``u_2 + Lc - 1`` and is c wide. For distance d and u_2 = s, the expected number of u_1 that put d into

    - a near window (counted twice if in both), s >= d: ``near_whole``;
    - a near window but not the far one, s = d - Lc + 1 + j: ``near[j - 1]``, j = 1 .. Lc - 2;
    - both near windows, 2 d - s = k: ``both[k]``, k = 0 .. 2 Lc - 1;

    and ``far[j - 1]`` is the probability that d lies in the far window, s = d - Lc + 1 + j.
    """
    l0, l1 = np.array([(i, j) for i in range(1, row - 1) for j in range(1, row - i)]).T
    chance = 1 / ((row - 2) * (row - l0 - 1))
    a, b, c = l0 + l1 - 1, row - l0 - 1, row - l1 - 1
    past = np.arange(row - 3, -1, -1)[:, None]  # d - 1 - s, for j = 1 .. Lc - 2
    near = np.where(l1 > past, np.maximum(a - past, 0) + np.maximum(b - past, 0), 0)
    far = c > np.arange(1, row - 1)[:, None]
    twice = np.arange(2 * row)[:, None]
    both = np.minimum(-1, b - twice) - np.maximum(-a, 1 - twice) + 1
    return float(chance @ (a + b)), near @ chance, far @ chance, np.maximum(both, 0) @ chance
