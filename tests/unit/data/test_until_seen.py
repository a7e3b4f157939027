"""Examples until every distance is seen: against the Markov chain of tiny samplers, and coupon collectors."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from enumeration import covered, pose_rows, random_rows, two_chunk_rows
from scipy.stats import binom

from skipwise.data.balanced import Balanced
from skipwise.data.chat import Turns
from skipwise.data.coverage import coverage
from skipwise.data.mixture import Mixture
from skipwise.data.skips import Contiguous, FullLength, PoSE, RandPos
from skipwise.data.until_seen import _bounds, examples_until_seen

SIGMAS = 5
"""Distance from the truth, in stated standard errors, that fails: about 1 in a million for 400 runs."""


class DrawnAlone(PoSE):
    """Another type with the same rows: no closed form, drawn one by one."""


def expected_rows(rows, target, times):
    """Mean rows until all distances were seen, solved on the chain of how often each was seen so far."""
    steps = Counter()
    for positions, p in rows:
        steps[tuple(covered(positions, target).astype(int))] += p

    @cache
    def from_here(seen):
        if min(seen) == times:
            return 0.0
        stay, onward = 0.0, 1.0
        for row, p in steps.items():
            then = tuple(min(a + b, times) for a, b in zip(seen, row, strict=True))
            if then == seen:
                stay += p
            else:
                onward += p * from_here(then)
        return onward / (1 - stay)

    return from_here((0,) * (target - 1))


def mixed_rows():
    yield from ((positions, 0.6 * p) for positions, p in pose_rows(4, 7, 2))
    yield list(range(4)), 0.4


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize(
    ("sampler", "rows"),
    [
        (PoSE(3, 6), lambda: pose_rows(3, 6, 2)),
        (PoSE(5, 9), lambda: pose_rows(5, 9, 2)),
        (PoSE(5, 8, 3), lambda: pose_rows(5, 8, 3)),
        (DrawnAlone(3, 6), lambda: pose_rows(3, 6, 2)),
        (RandPos(3, 6), lambda: random_rows(3, 6)),
        (Balanced(3, 8), lambda: two_chunk_rows(3, Balanced(3, 8).skip_probabilities())),
        (Mixture((PoSE(4, 7), Contiguous(4, 7)), (0.6, 0.4)), mixed_rows),
        (FullLength(3, 6), lambda: [(range(6), 1.0)]),
    ],
    ids=["pose", "pose-5", "pose-3-chunks", "alone", "randpos", "balanced", "mixture", "full-length"],
)
def test_against_the_exact_mean_of_tiny_samplers(sampler, rows, times):
    truth = expected_rows(rows(), sampler.target_length, times)
    found = examples_until_seen(sampler, times, seed=4)
    assert found.mean is not None
    assert abs(found.mean - truth) <= SIGMAS * found.error + 1e-9
    assert found.error <= 0.1 * truth
    if not coverage(sampler).exact:
        assert found.lower is found.upper is None
    else:
        assert found.lower <= truth + 1e-9
        assert found.upper >= truth - 1e-9
        assert found.upper < 3 * truth


def test_the_rarest_distance_is_no_source_of_error():
    # One row in 1,793 reaches the largest distance and shows the 255 next to it; by then the others are seen.
    found = examples_until_seen(PoSE(257, 2049))
    assert found.runs > 100
    assert found.lower == pytest.approx(1793)
    assert found.mean == pytest.approx(1793, rel=1e-3)
    assert found.error < 1e-3 * 1793  # the spread of T over these runs would leave an error of 5 to 10 %


@pytest.mark.parametrize("coupons", [2, 9])
def test_windows_side_by_side_are_coupons(coupons):
    @dataclass(frozen=True)
    class Windows(PoSE):
        def skip_probabilities(self):
            law = np.zeros(self.target_length - self.train_length + 1)
            law[:: self.train_length - 1] = 1 / coupons
            return law

    # Of n equally likely windows all are seen after n (1 + 1/2 + .. + 1/n) rows; the first also by chunks.
    sampler = Windows(37, 37 + (coupons - 1) * 36)
    found = examples_until_seen(sampler, seed=1)
    far = coupons * sum(1 / i for i in range(1, coupons + 1))
    near = coupons * sum(1 / i for i in range(1, coupons))  # all but the first window, at the least
    assert near - SIGMAS * found.error <= found.mean <= far + SIGMAS * found.error
    assert found.lower == pytest.approx(coupons)


@pytest.mark.parametrize("times", [1, 2, 7])
@pytest.mark.parametrize("share", [(0.5, 0.25, 0.01, 0.0101), (1.0, 0.3), (0.02,) * 500, (1e-3, 1.0, 0.999)])
def test_the_upper_bound_is_the_union_bound(share, times):
    share = np.array(share)
    lower, upper = _bounds(share, times)
    rows = np.arange(200 * times + math.ceil(40 * times / share.min()))
    missing = sum(binom.cdf(times - 1, rows, p) for p in share)
    union = np.minimum(missing, 1).sum()
    assert lower == pytest.approx(times / share.min())
    assert union * (1 - 1e-9) <= upper <= union * 1.001  # rounded probabilities, in the safe direction


def test_sure_and_impossible():
    for sampler in (Contiguous(3, 7), PoSE(3, 7, 1), Contiguous(1, 2)):
        found = examples_until_seen(sampler)
        assert (found.lower, found.upper, found.mean, found.error) == (math.inf, math.inf, None, None)
    found = examples_until_seen(Contiguous(7, 7), times=4)
    assert (found.lower, found.upper, found.mean, found.error) == (4, 4, 4, 0)
    found = examples_until_seen(FullLength(1, 1))
    assert (found.lower, found.upper, found.mean, found.error) == (0, 0, 0, 0)


def test_the_budget_of_rows_is_kept():
    class Counting(PoSE):
        drawn = 0

        def sample(self, token_ids, rng):
            Counting.drawn += 1
            return super().sample(token_ids, rng)

    sampler = Counting(5, 9, 3)
    found = coverage(sampler, draws=500)
    for rows in (0, 500, 20_000, 100_000):
        Counting.drawn = 0
        result = examples_until_seen(sampler, found=found, rows=rows)
        assert (
            Counting.drawn * 50 <= rows + 50 * 100
        )  # a row drawn alone counts as 50; a block of at most 100
        assert (result.mean is None) == (rows <= 500)
        assert result.runs == 0 if result.mean is None else result.runs >= 5
        # Only the bounds are left, where there are any.
        exact = examples_until_seen(PoSE(5, 9), rows=min(rows, 50))
        assert exact.mean is None
        assert exact.lower < exact.upper


def test_runs_that_outlast_the_budget_give_no_estimate():
    # The coverage says that every distance is common, the rows never show the far ones.
    common = SimpleNamespace(probability=np.full(8, 0.5), error=np.zeros(8), exact=True)
    result = examples_until_seen(Contiguous(3, 9), found=common, rows=5_000)
    assert (result.mean, result.error, result.runs) == (None, None, 0)
    # No run is long, but all of them together are.
    common.probability = np.full(8, 0.999)
    assert examples_until_seen(PoSE(5, 9), found=common, rows=600).mean is None
    assert examples_until_seen(PoSE(5, 9), found=common, rows=60_000).runs == 400


def test_the_seed_decides():
    first = examples_until_seen(PoSE(5, 31, 3), seed=1)
    assert first == examples_until_seen(PoSE(5, 31, 3), seed=1)
    assert first != examples_until_seen(PoSE(5, 31, 3), seed=2)


def test_bad_input():
    with pytest.raises(ValueError, match="times = 0: must be at least 1"):
        examples_until_seen(PoSE(3, 5), 0)
    with pytest.raises(ValueError, match="must not depend on the text"):
        examples_until_seen(Turns(8, 31, turn_starts=[1]))
