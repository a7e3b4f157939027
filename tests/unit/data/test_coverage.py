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


@pytest.mark.parametrize(
    "sampler", [PoSE(37, 301, 4, "contiguous"), PoSE(11, 13, 11, "contiguous"), RandPos(37, 301)]
)
def test_one_drawn_row_exactly(sampler):
    # With one draw the mean is that row's coverage, so intervals and spectrum are compared without noise.
    passage = np.zeros(sampler.passage_length[1], dtype=np.int32)
    for seed in range(20):
        row = sampler.sample(passage, np.random.default_rng(seed))
        np.testing.assert_array_equal(
            coverage(sampler, draws=1, seed=seed), covered_fast(row.position_ids, sampler.target_length)
        )


def test_the_figures_of_two_chunks_from_2k_to_16k():
    found = coverage(PoSE(2048, 16384))
    assert found.shape == (16383,)
    # Monte Carlo figures of the paper's own code; the exact ones are 0.9995, 0.5529 and 0.0268.
    assert [found[d - 1] for d in (1024, 1536, 16000)] == pytest.approx([0.999, 0.555, 0.027], abs=3e-3)
    # By hand: only equal chunks (1 of 2,047 lengths) miss 1,024 inside, and 1,024 of 14,337 skips reach it.
    assert found[1023] == pytest.approx(1 - (1 / 2047) * (1 - 1024 / 14337), abs=1e-12)
    assert (found[:1023] == 1).all()  # one of the two chunks has 1,024 tokens or more
    assert found[-1] == pytest.approx(1 / 14337, abs=1e-12)  # only the largest skip reaches 16,383


def test_three_chunks_reach_far_distances_more_often():
    # The second skip starts from the first, so it lies high: at 16,000 N = 3 covers five times as often.
    found = coverage(PoSE(2048, 16384, 3), draws=400, seed=1)
    assert (found[:682] == 1).all()  # one of the three chunks has 683 tokens or more
    assert found[15999] > 2 * 0.027
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
