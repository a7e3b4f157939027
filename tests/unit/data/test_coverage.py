"""Coverage: closed forms and Monte Carlo against enumeration of every row a sampler can draw."""

import itertools

import numpy as np
import pytest

from skipwise.data.coverage import coverage
from skipwise.data.skips import Contiguous, FullLength, PoSE, RandPos

SIGMAS = 6
"""Distance from the mean, in stated standard errors, that fails. By Hoeffding's inequality a correct Monte
Carlo estimate goes beyond with probability below 2 exp(-18) = 3e-8 for each distance."""


def covered(positions, target):
    """1.0 at ``d - 1`` where some pair of positions is d apart."""
    pairs = {abs(a - b) for a, b in itertools.combinations(positions, 2)}
    return np.array([float(d in pairs) for d in range(1, target)])


def pose_by_enumeration(train, target, count):
    """Every choice of lengths and skips, weighted by the probability that the paper gives it."""
    total = np.zeros(target - 1)
    for lengths, p_lengths in choose_lengths(train, count):
        for skips, p_skips in choose_skips(target - train, count):
            positions = np.arange(train) + np.repeat(skips, lengths)
            total += p_lengths * p_skips * covered(positions.tolist(), target)
    return total


def choose_lengths(left, count):
    if count == 1:
        yield (left,), 1.0
        return
    choices = left - (count - 1)
    for first in range(1, choices + 1):
        for rest, p in choose_lengths(left - first, count - 1):
            yield (first, *rest), p / choices


def choose_skips(largest, count, skips=(0,), p=1.0):
    if len(skips) == count:
        yield skips, p
        return
    for nxt in range(skips[-1], largest + 1):
        yield from choose_skips(largest, count, (*skips, nxt), p / (largest - skips[-1] + 1))


@pytest.mark.parametrize(
    ("train", "target"), [(2, 2), (2, 3), (2, 17), (3, 7), (5, 5), (5, 6), (7, 9), (7, 31), (9, 13), (11, 37)]
)
def test_two_chunks_exactly(train, target):
    np.testing.assert_allclose(
        coverage(PoSE(train, target)), pose_by_enumeration(train, target, 2), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("sampler", "truth"),
    [
        (PoSE(7, 19, 3), lambda: pose_by_enumeration(7, 19, 3)),
        (PoSE(5, 9, 5), lambda: pose_by_enumeration(5, 9, 5)),
        (
            RandPos(4, 11),
            lambda: np.mean([covered(c, 11) for c in itertools.combinations(range(11), 4)], axis=0),
        ),
    ],
    ids=["pose-3", "pose-5", "randpos"],
)
def test_monte_carlo_within_its_stated_error(sampler, truth):
    draws = 4_000
    off = np.abs(coverage(sampler, draws=draws, seed=3) - truth())
    assert off.max() <= SIGMAS * 0.5 / np.sqrt(draws)
    assert off.max() > 0  # it is Monte Carlo: exact agreement would mean the test compares nothing


def test_two_chunks_against_drawn_rows():
    sampler, draws = PoSE(37, 301), 2_000
    rng = np.random.default_rng(2)
    passage = np.zeros(301, dtype=np.int32)
    found = np.mean(
        [covered_fast(sampler.sample(passage, rng).position_ids, 301) for _ in range(draws)], axis=0
    )
    assert np.abs(found - coverage(sampler)).max() <= SIGMAS * 0.5 / np.sqrt(draws)


def covered_fast(positions, target):
    return np.isin(np.arange(1, target), positions[:, None] - positions[None])


def test_the_figures_of_the_paper_setting():
    found = coverage(PoSE(2048, 16384))
    assert found.shape == (16383,)
    assert [round(found[d - 1], 3) for d in (1024, 1536, 16000)] == [0.999, 0.555, 0.027]
    assert (found[:1023] == 1).all()  # one of the two chunks has 1,024 tokens or more
    assert found[-1] == pytest.approx(1 / 14337)  # only the largest skip reaches 16,383


def test_monte_carlo_sees_the_same_figures():
    # The interval arithmetic of N >= 3 at the paper's size, where N = 3 covers 16,000 more rarely than N = 2.
    found = coverage(PoSE(2048, 16384, 3), draws=400, seed=1)
    assert found.shape == (16383,)
    assert found[:600].min() == 1  # of three chunks one has 683 tokens or more
    assert found[15999] <= 0.1
    np.testing.assert_array_equal(found, coverage(PoSE(2048, 16384, 3), draws=400, seed=1))


@pytest.mark.parametrize(
    ("sampler", "reach"),
    [
        (Contiguous(7, 23), 7),
        (PoSE(7, 23, 1), 7),
        (FullLength(7, 23), 23),
        (Contiguous(1, 3), 1),
        (RandPos(23, 23), 23),
        (PoSE(7, 7, 3), 7),
    ],
)
def test_without_skips_it_is_a_step(sampler, reach):
    found = coverage(sampler)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.arange(1, sampler.target_length) < reach)


@pytest.mark.parametrize("sampler", [PoSE(1, 1, 1), RandPos(1, 1), Contiguous(1, 1), FullLength(1, 1)])
def test_one_token_has_no_distance(sampler):
    assert coverage(sampler).shape == (0,)
