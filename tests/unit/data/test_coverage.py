"""Coverage: closed forms and Monte Carlo against enumeration of every row a sampler can draw."""

from dataclasses import dataclass

import numpy as np
import pytest
from enumeration import pose_rows, probabilities, random_rows, two_chunk_rows

from skipwise.data.balanced import Balanced
from skipwise.data.chat import Turns
from skipwise.data.coverage import Coverage, coverage
from skipwise.data.cream import Cream
from skipwise.data.intervals import draw_intervals
from skipwise.data.mixture import Mixture
from skipwise.data.skips import Contiguous, FullLength, PoSE, RandPos

SIGMAS = 6
"""Distance from the mean, in stated standard errors, that fails. By Hoeffding's inequality a correct Monte
Carlo estimate goes beyond with probability below 2 exp(-18) = 3e-8 for each distance."""


class DrawnAlone(PoSE):
    """Another type with the same rows: drawn one by one, with `sample`."""


@dataclass(frozen=True)
class OfferedSkips(PoSE):
    """Two chunks whose last skip follows a law that is not uniform, drawn one by one or from the law."""

    law: tuple[float, ...] = ()

    def skip_probabilities(self):
        return np.array(self.law)


@pytest.mark.parametrize(
    ("train", "target"), [(2, 2), (2, 3), (2, 17), (3, 7), (5, 5), (5, 6), (7, 9), (7, 31), (9, 13), (11, 37)]
)
def test_two_chunks_exactly(train, target):
    found = coverage(PoSE(train, target))
    assert found.exact
    np.testing.assert_array_equal(found.error, np.zeros(target - 1))
    truth = probabilities(pose_rows(train, target, 2), target)
    np.testing.assert_allclose(found.probability, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("train", "law"),
    [(5, (0.5, 0, 0, 0.1, 0.4)), (4, (0, 0, 1.0)), (7, (0.125,) * 8), (2, (0.3, 0, 0, 0, 0, 0, 0.7))],
)
def test_any_law_of_the_skip_exactly(train, law):
    sampler = OfferedSkips(train, train + len(law) - 1, law=law)
    found, truth = coverage(sampler), probabilities(two_chunk_rows(train, law), sampler.target_length)
    assert found.exact
    np.testing.assert_allclose(found.probability, truth, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.probability == 0, truth == 0)  # never is never, not 1e-17


@pytest.mark.parametrize(
    ("count", "length"), [(2, 2), (2, 3), (1, 9), (2, 9), (3, 7), (4, 11), (6, 13), (8, 15), (12, 13), (5, 9)]
)
def test_random_positions_exactly(count, length):
    found = coverage(RandPos(count, length))
    assert found.exact
    truth = probabilities(random_rows(count, length), length)
    np.testing.assert_allclose(found.probability, truth, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.probability == 0, truth == 0)


def test_random_positions_of_real_sizes():
    # Far apart, pairs are disjoint: Lt - 1 has one of them, Lt - 2 has two.
    k, n = 2048, 16384
    one = k * (k - 1) / (n * (n - 1))
    two = 2 * one - one * (k - 2) * (k - 3) / ((n - 2) * (n - 3))
    found = coverage(RandPos(k, n)).probability
    assert found[-2:] == pytest.approx([two, one], abs=1e-12)
    assert (np.diff(found[n // 2 :]) < 1e-12).all()
    # With these, hundreds of distances are neither rare nor sure; 200 rows leave an error of 0.035 at most.
    sampler, rng = RandPos(211, 9001), np.random.default_rng(5)
    drawn = np.mean(
        [hits_of(sampler.sample(np.zeros(211), rng).position_ids, 9001) for _ in range(200)], axis=0
    )
    assert np.abs(drawn - coverage(sampler).probability).max() < SIGMAS * 0.5 / np.sqrt(200)


def test_two_random_positions_of_a_million():
    # The largest distance has the probability 2e-12: no digit may be lost in the powers of n.
    n = 2**20
    found = coverage(RandPos(2, n)).probability
    np.testing.assert_allclose(found, 2 * (n - np.arange(1, n)) / (n * (n - 1)), rtol=0, atol=1e-14)


def hits_of(positions, target):
    hits = np.zeros(target, dtype=bool)
    hits[np.abs(positions[:, None] - positions[None])] = True
    return hits[1:]


def test_mixtures_are_weighted_sums():
    parts = (PoSE(7, 23), Contiguous(7, 23), RandPos(7, 23))
    found = coverage(Mixture(parts, (0.5, 0.3, 0.2)))
    assert found.exact
    expected = sum(w * coverage(part).probability for w, part in zip((0.5, 0.3, 0.2), parts, strict=True))
    np.testing.assert_allclose(found.probability, expected, rtol=0, atol=1e-15)
    # A part that reaches less far, and one whose coverage is an estimate.
    mixed = coverage(Mixture((PoSE(7, 23, 3), PoSE(7, 9)), (0.25, 0.75)), draws=100)
    alone = coverage(PoSE(7, 23, 3), draws=100)
    near = np.append(coverage(PoSE(7, 9)).probability, np.zeros(14))
    np.testing.assert_allclose(mixed.probability, 0.25 * alone.probability + 0.75 * near, rtol=0, atol=1e-15)
    np.testing.assert_allclose(mixed.error, 0.25 * alone.error, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("sampler", "rows"),
    [
        (PoSE(7, 19, 3), lambda: pose_rows(7, 19, 3)),
        (PoSE(5, 9, 5), lambda: pose_rows(5, 9, 5)),
        (DrawnAlone(5, 9, 4), lambda: pose_rows(5, 9, 4)),
    ],
    ids=["pose-3", "pose-5", "drawn-alone"],
)
def test_monte_carlo_within_its_stated_error(sampler, rows):
    draws = 4_000
    found, truth = coverage(sampler, draws=draws, seed=3), probabilities(rows(), sampler.target_length)
    off = np.abs(found.probability - truth)
    assert not found.exact
    assert off.max() > 0  # it is Monte Carlo: exact agreement would mean the test compares nothing
    # Where the truth is 0 or 1 no row differs; the stated error is then one part in the number of draws.
    assert (off <= SIGMAS * found.error).all()
    assert (found.error > 0).all()
    assert found.error.max() <= 0.5 / np.sqrt(draws)
    expected = np.sqrt(truth * (1 - truth) / draws)
    np.testing.assert_allclose(found.error, expected, rtol=0.1, atol=2 / draws)


@pytest.mark.parametrize(
    "sampler",
    [
        PoSE(7, 31),
        PoSE(7, 31, 1),
        Balanced(7, 31),
        FullLength(7, 31),
        Contiguous(7, 31),
        RandPos(7, 31),
        Mixture((PoSE(7, 31), Contiguous(7, 31), RandPos(7, 20)), (0.5, 0.3, 0.2)),
    ],
)
def test_drawn_intervals_agree_with_the_closed_forms(sampler):
    rows = 4_000
    row, low, high = draw_intervals(sampler, rows, np.random.default_rng(7))
    assert (np.diff(row) >= 0).all()
    assert ((low >= 1) & (low <= high) & (high < 31)).all()
    hits = np.zeros((rows, 32), dtype=np.int64)
    np.add.at(hits, (row, low), 1)
    np.add.at(hits, (row, high + 1), -1)
    hits = np.cumsum(hits, axis=1)[:, 1:31]
    assert set(np.unique(hits)) <= {0, 1}  # disjoint within a row
    off = np.abs(hits.mean(axis=0) - coverage(sampler).probability)
    assert off.max() <= SIGMAS * 0.5 / np.sqrt(rows)


@pytest.mark.parametrize(
    "sampler",
    [
        DrawnAlone(37, 301, 4, "contiguous"),
        DrawnAlone(11, 13, 11, "contiguous"),
        DrawnAlone(97, 301, 80, "contiguous"),
        Cream(37, 301),
        RandPos(37, 301),
    ],
)
def test_one_drawn_row_exactly(sampler):
    # Intervals and, for many chunks, the autocorrelation: without noise, against the row's own positions.
    passage = np.zeros(sampler.passage_length[1], dtype=np.int32)
    for seed in range(20):
        row = sampler.sample(passage, np.random.default_rng(seed))
        _, low, high = draw_intervals(sampler, 1, np.random.default_rng(seed))
        found = np.concatenate([np.arange(a, b + 1) for a, b in zip(low, high, strict=True)])
        np.testing.assert_array_equal(found, np.flatnonzero(hits_of(row.position_ids, 301)) + 1)


def test_rows_of_unequal_numbers_of_chunks_keep_their_numbers():
    class Either(Contiguous):
        def sample(self, token_ids, rng):
            return (PoSE(5, 9) if rng.random() < 0.5 else Contiguous(5, 9)).sample(token_ids, rng)

    sampler = Either(5, 9)
    assert not coverage(sampler, draws=100).exact  # a subclass is not taken for its parent
    row, low, high = draw_intervals(sampler, 30, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    for number in range(30):
        hits = np.flatnonzero(hits_of(sampler.sample(np.zeros(5), rng).position_ids, 9)) + 1
        mine = [np.arange(a, b + 1) for a, b in zip(low[row == number], high[row == number], strict=True)]
        np.testing.assert_array_equal(np.concatenate(mine), hits)


def test_the_figures_of_two_chunks_from_2k_to_16k():
    found = coverage(PoSE(2048, 16384)).probability
    assert found.shape == (16383,)
    # Monte Carlo figures of the paper's own code; the exact ones are 0.9995, 0.5529 and 0.0268.
    assert [found[d - 1] for d in (1024, 1536, 16000)] == pytest.approx([0.999, 0.555, 0.027], abs=3e-3)
    # By hand: only equal chunks (1 of 2,047 lengths) miss 1,024 inside, and 1,024 of 14,337 skips reach it.
    assert found[1023] == pytest.approx(1 - (1 / 2047) * (1 - 1024 / 14337), abs=1e-12)
    assert (found[:1023] == 1).all()  # one of the two chunks has 1,024 tokens or more
    assert found[-1] == pytest.approx(1 / 14337, rel=1e-9)  # only the largest skip reaches 16,383


def test_three_chunks_reach_far_distances_more_often():
    # The second skip starts from the first, so it lies high: at 16,000 N = 3 covers five times as often.
    found = coverage(PoSE(2048, 16384, 3), draws=1_500, seed=1).probability
    assert (found[:682] == 1).all()  # one of the three chunks has 683 tokens or more
    assert found[15999] > 2 * 0.027
    np.testing.assert_array_equal(found, coverage(PoSE(2048, 16384, 3), draws=1_500, seed=1).probability)
    assert (found != coverage(PoSE(2048, 16384, 3), draws=1_500, seed=2).probability).any()


@pytest.mark.parametrize(
    ("sampler", "reach"),
    [
        (Contiguous(7, 23), 7),
        (PoSE(7, 23, 1), 7),
        (FullLength(7, 23), 23),
        (Contiguous(1, 3), 1),
        (RandPos(23, 23), 23),
        (PoSE(7, 7, 3), 7),
        (Cream(7, 7), 7),
    ],
)
def test_without_skips_it_is_a_step(sampler, reach):
    found = coverage(sampler)
    assert found.exact
    assert found.probability.dtype == np.float64
    np.testing.assert_array_equal(found.probability, np.arange(1, sampler.target_length) < reach)


@pytest.mark.parametrize("sampler", [PoSE(1, 1, 1), RandPos(1, 1), Contiguous(1, 1), FullLength(1, 1)])
def test_one_token_has_no_distance(sampler):
    found = coverage(sampler)
    assert found.probability.shape == found.error.shape == (0,)
    assert found.exact


@pytest.mark.parametrize("target", [8, 31])
def test_rows_that_depend_on_the_text_are_refused(target):
    turns = Turns(8, target, turn_starts=[1])
    for sampler in (turns, Mixture((PoSE(8, target), turns), (0.5, 0.5))):
        with pytest.raises(ValueError, match=r"Turns.*must not depend on the text"):
            coverage(sampler)


def test_a_result_is_immutable():
    found = coverage(PoSE(3, 5))
    assert isinstance(found, Coverage)
    with pytest.raises(AttributeError):
        found.error = found.probability
