"""How many examples it takes until every relative distance has been seen k times: bounds and an estimate.

A coupon collector's problem in which a row covers many distances at once, and not independently: its mean
has no closed form. The bounds need no independence; the estimate collects rows until nothing is missing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from skipwise.data.coverage import Coverage, coverage
from skipwise.data.intervals import MANY_CHUNKS, Floats, Ints, draw_intervals, drawn_at_once
from skipwise.data.mixture import Mixture
from skipwise.data.skips import PoSE, RandPos, Sampler

_FEWEST_RUNS, _MOST_RUNS = 5, 400
_MOST_DISTANCES = 40_000_000
"""Distances looked at in the first block of rows of all runs together: about a second."""


@dataclass(frozen=True, slots=True)
class UntilSeen:
    """The mean number of examples until every distance has been seen k times.

    ``lower`` and ``upper`` are bounds on it: both infinite if some distance is never seen, both None if the
    coverage is itself an estimate. ``mean`` is the estimate from ``runs`` simulated runs and ``error`` its
    standard error; None if the budget of rows was too small.
    """

    lower: float | None
    upper: float | None
    mean: float | None
    error: float | None
    runs: int


def examples_until_seen(
    sampler: Sampler, times: int = 1, *, found: Coverage | None = None, rows: int = 2_000_000, seed: int = 0
) -> UntilSeen:
    """Bound and simulate the examples it takes until every distance has been seen ``times`` times.

    ``found`` is the sampler's `coverage`, if it is at hand. The bounds, with T_d the examples until distance
    d has been seen k times (``E[T_d] = k / p_d``):

    - lower: ``max over d of k / p_d``, the longest wait for one distance;
    - upper: ``m + sum over d of E[max(T_d - m, 0)]``, which holds for every m, at the best m. (It is the
      union bound ``sum over n of min(1, sum over d of P(T_d > n))`` in closed form, p_d rounded down by less
      than 0.07 %.)

    The estimate is the mean of up to 400 runs that take ``rows`` rows at most together, a row that is costly
    to draw or to read counting as several. Where the bounds are known, only the rows that a run took after
    the rarest distance had been seen are averaged, and added to the exact wait for that one: the same mean
    with less chance in it.

    Raises ValueError for ``times`` below 1 and for a sampler whose rows depend on the text.
    """
    if times < 1:
        raise ValueError(f"times = {times}: must be at least 1")
    found = coverage(sampler, seed=seed) if found is None else found
    if not len(found.probability):
        return UntilSeen(0.0, 0.0, 0.0, 0.0, 0)
    share = np.minimum(found.probability + found.error, 1.0)  # never 0 for want of draws
    lower, upper = _bounds(share, times)
    bounds: tuple[float | None, float | None] = (lower, upper) if found.exact else (None, None)
    if found.exact and lower == upper < math.inf:
        return UntilSeen(*bounds, lower, 0.0, 0)
    # Room for three times the mean: to leave out runs that went on for too long would bias the estimate.
    budget = rows // _cost(sampler)
    runs = int(min(_MOST_RUNS, _MOST_DISTANCES / len(share), budget / (3 * upper)))
    took = _simulate(sampler, times, runs, budget, share, seed) if runs >= _FEWEST_RUNS else None
    if took is None:
        return UntilSeen(*bounds, None, None, 0)
    start, taken = (lower, took[:, 1]) if found.exact else (0.0, took[:, 0])
    error = float(taken.std(ddof=1)) / math.sqrt(runs)
    return UntilSeen(*bounds, start + float(taken.mean()), error, runs)


def _bounds(share: Floats, times: int) -> tuple[float, float]:
    rarest = float(share.min())
    if rarest == 0:
        return math.inf, math.inf
    lower = times / rarest
    rounded = np.exp2(np.floor(np.log2(share) * 1024) / 1024)
    values, counts = np.unique(rounded[rounded < 1], return_counts=True)
    if not len(values):
        return lower, float(times)
    enough = times
    while _waits(values, counts, times, enough)[0] > 1:
        enough *= 2
    best = range(times, enough + 1)
    m = best[bisect_left(best, True, key=lambda m: _waits(values, counts, times, m)[0] <= 1)]
    return lower, m + _waits(values, counts, times, m)[1]


def _waits(share: Floats, counts: Ints, times: int, m: int) -> tuple[float, float]:
    """Sums over all distances: of P(T_d > m), and of E[max(T_d - m, 0)].

    After m rows a distance has been seen i times with the binomial probability; k - i are then to come.
    """
    unseen, wait, log_ways = np.zeros_like(share), np.zeros_like(share), 0.0
    for i in range(times):
        chance = np.exp(log_ways + i * np.log(share) + (m - i) * np.log1p(-share))
        unseen += chance
        wait += chance * (times - i) / share
        log_ways += math.log((m - i) / (i + 1))
    return float(counts @ unseen), float(counts @ wait)


def _cost(sampler: Sampler) -> int:
    """About how many rows drawn at once one row of this sampler costs."""
    if isinstance(sampler, Mixture):
        return max(map(_cost, sampler.samplers))
    if isinstance(sampler, RandPos) or (isinstance(sampler, PoSE) and sampler.chunks > MANY_CHUNKS):
        return 50 + sampler.target_length // 16
    return 1 if drawn_at_once(sampler) else 50


def _simulate(
    sampler: Sampler, times: int, runs: int, budget: int, share: Floats, seed: int
) -> Floats | None:
    """Rows of each run: all of them, and those after the rarest distance was done; shape ``(runs, 2)``.

    None if the budget is spent before the last run has ended.
    """
    rng = np.random.default_rng(seed)
    rarest = int(np.argmin(share)) + 1
    block = max(4, int(times / share.min() / 4))
    took = []
    for _ in range(runs):
        run = _run(sampler, times, budget, block, rarest, rng)
        if run is None:
            return None
        took.append(run)
        budget -= run[0]
    return np.array(took, dtype=np.float64)


def _run(
    sampler: Sampler, times: int, budget: int, block: int, rarest: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Draw ever larger blocks of rows until no distance is missing; only the missing ones are counted."""
    missing = np.arange(1, sampler.target_length)
    needed = np.full(len(missing), times)
    with_rarest: list[int] = []
    done = 0
    while done < budget:
        row, low, high = draw_intervals(sampler, block, rng)
        with_rarest += (done + 1 + row[(low <= rarest) & (rarest <= high)]).tolist()
        first, last = np.searchsorted(missing, low), np.searchsorted(missing, high, side="right")
        hits = _hits(first, last, len(missing))
        if (hits >= needed).all():
            done += _last_row(row, first, last, needed)
            return done, done - with_rarest[times - 1]
        left = hits < needed
        missing, needed = missing[left], (needed - hits)[left]
        done, block = done + block, block + block // 2
    return None


def _hits(first: Ints, last: Ints, size: int) -> Ints:
    """How many of the ranges ``first .. last - 1`` hold each of 0 .. size - 1."""
    edges = np.bincount(first, minlength=size + 1) - np.bincount(last, minlength=size + 1)
    return np.asarray(np.cumsum(edges)[:-1])


def _last_row(row: Ints, first: Ints, last: Ints, needed: Ints) -> int:
    """How many rows of a block it takes to hit everything as often as needed; all of them do."""

    def enough(rows: int) -> bool:
        part = np.searchsorted(row, rows)
        return bool((_hits(first[:part], last[:part], len(needed)) >= needed).all())

    return 1 + bisect_left(range(1, int(row[-1]) + 2), True, key=enough)
