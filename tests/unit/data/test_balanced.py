"""Balanced rows: flat coverage, against enumeration of every row and linear programmes over all laws."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from distributions import assert_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from skipwise.data.balanced import Balanced, _last_skips
from skipwise.data.skips import PoSE, example_rng


def three_chunk_rows(train, target):
    """Every (u_1, u_2), and the probability that PoSE's chunk lengths then cover each distance from 1 on."""
    largest = target - train
    pairs = [(first, last) for last in range(largest + 1) for first in range(last + 1)]
    first, last = np.array(pairs).T
    distance = np.arange(1, target)[:, None]
    covers = np.zeros((target - 1, len(pairs)))
    for l0 in range(1, train - 1):
        for l1 in range(1, train - l0):
            l2 = train - l0 - l1
            starts = (np.zeros_like(first), first + l0, last + l0 + l1)
            ends = (starts[0] + l0 - 1, starts[1] + l1 - 1, starts[2] + l2 - 1)
            seen = distance < max(l0, l1, l2)
            for i, j in ((0, 1), (1, 2), (0, 2)):
                seen = seen | ((distance >= starts[j] - ends[i]) & (distance <= ends[j] - starts[i]))
            covers += seen / (train - 2) / (train - l0 - 1)
    return first, last, covers


def law_of_last(train, target):
    """What the sampler draws u_2 from, where a cell is a token: probabilities of 0 .. Lt - Lc."""
    cell, below = _last_skips(train, target)
    assert cell == 1
    return np.diff(below, prepend=0)[::-1]


def best_floor(covers, train, near_at_least):
    """The largest c such that some law of the columns covers every distance >= ``train`` with it."""
    far, near, rows = covers[train - 1 :], covers[: train - 1], covers.shape[1]
    found = linprog(
        np.append(np.zeros(rows), -1.0),
        A_ub=np.block([[-far, np.ones((len(far), 1))], [-near, np.zeros((len(near), 1))]]),
        b_ub=np.append(np.zeros(len(far)), -near_at_least),
        A_eq=np.append(np.ones(rows), 0.0)[None],
        b_eq=[1.0],
    )
    assert found.success
    return -found.fun


@given(st.integers(2, 41), st.integers(0, 300))
@settings(deadline=None)
def test_two_chunks_cover_far_distances_exactly_alike(train, more):
    sampler = Balanced(train, train + more)
    law = sampler.skip_probabilities()
    assert law.shape == (more + 1,)
    assert law.min() >= -1e-12
    assert law.sum() == pytest.approx(1, abs=1e-12)
    window = train - 1
    across = [law[max(d - window, 0) : d].sum() for d in range(train, train + more)]
    np.testing.assert_allclose(across, window / (train + more - 1), atol=1e-12)


@pytest.mark.parametrize(("train", "target"), [(4, 13), (5, 21), (6, 19), (7, 40), (9, 60)])
def test_the_optimum_stated_for_two_chunks(train, target):
    skips, distance = np.arange(target - train + 1), np.arange(1, target)[:, None]
    covers = ((distance > skips) & (distance < skips + train)).astype(float)
    optimum = best_floor(covers, train, np.zeros(train - 1))
    assert optimum == pytest.approx(1 / math.ceil((target - train) / (train - 1)), abs=1e-9)
    assert (train - 1) / (target - 1) <= optimum + 1e-12


@pytest.mark.parametrize(("train", "target"), [(6, 24), (8, 57), (11, 88), (16, 128)])
def test_three_chunks_are_close_to_the_best_law(train, target):
    first, last, covers = three_chunk_rows(train, target)
    law = law_of_last(train, target)
    covered = covers @ (law[last] / (last + 1))
    far, near = covered[train - 1 :], covered[: train - 1]
    assert far.max() / far.min() < (1.1 if target < 5 * train else 1.03)
    best = best_floor(covers, train, near - 1e-9)
    assert 0.91 * best < far.min() <= best + 1e-9
    unbounded = best_floor(covers, train, np.zeros(train - 1))
    assert unbounded <= (2 * train - 3) / (target - train) + 1e-9
    # PoSE's law of the same rows is nowhere near: the test can tell the two apart.
    pose = covers @ (1 / (target - train + 1) / (target - train - first + 1))
    assert pose[train - 1 :].min() < 0.5 * far.min()
    assert (near >= pose[: train - 1] - 0.06).all()


def test_three_chunks_in_cells_stay_flat():
    # 300 tokens are more than the cells of the law: skips are spread within a cell. 40,000 rows give each
    # probability near 0.2 to 0.002; the band is ten times that, about a law that is flat to some percent.
    train, target, rows = 300, 3_001, 40_000
    sampler, rng = Balanced(train, target, 3, "contiguous"), np.random.default_rng(3)
    hits, passage = np.zeros(target + 1), np.zeros(train, dtype=np.int32)
    for _ in range(rows):
        chunks = sampler.sample(passage, rng).chunks
        starts = np.cumsum(chunks.lengths) - chunks.lengths + chunks.skips
        ends = starts + chunks.lengths - 1
        reached = 0
        for low, high in sorted(
            (starts[j] - ends[i], ends[j] - starts[i]) for i, j in ((0, 1), (1, 2), (0, 2))
        ):
            if high > reached:
                hits[max(low, reached + 1)] += 1
                hits[high + 1] -= 1
                reached = high
    covered = np.cumsum(hits)[train:target] / rows
    assert covered.min() > 0.175
    assert covered.max() < 0.225
    assert covered[-1] == pytest.approx(covered.mean(), rel=0.1)


@pytest.mark.parametrize(("train", "target"), [(4, 17), (5, 13), (2, 5)])
def test_two_chunks_are_drawn_from_their_law(train, target):
    sampler = Balanced(train, target)
    drawn = [
        (int(chunks.lengths[0]), int(chunks.skips[1]))
        for chunks in (
            sampler.sample(np.arange(train), example_rng(5, 1, example)).chunks for example in range(6_000)
        )
    ]
    skips = sampler.skip_probabilities()
    assert_distribution(
        drawn,
        {
            (length, skip): skips[skip] / (train - 1)
            for length, skip in itertools.product(range(1, train), np.flatnonzero(skips).tolist())
        },
    )


def test_three_chunks_are_drawn_from_their_law():
    train, target = 5, 12
    sampler, law = Balanced(train, target, 3), law_of_last(5, 12)
    drawn = []
    for example in range(30_000):
        chunks = sampler.sample(np.arange(train), example_rng(7, 0, example)).chunks
        drawn.append((*chunks.lengths.tolist(), *chunks.skips[1:].tolist()))
    expected = {}
    for l0, l1 in itertools.product(range(1, train), repeat=2):
        for last in np.flatnonzero(law).tolist() if l0 + l1 < train else ():
            for first in range(last + 1):
                chance = law[last] / (last + 1) / (train - 2) / (train - l0 - 1)
                expected[l0, l1, train - l0 - l1, first, last] = chance
    assert_distribution(drawn, expected)


@given(st.integers(3, 200), st.integers(0, 500), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_skips_within_a_cell_stay_in_range(train, more, seed):
    sampler, rng = Balanced(train, train + more, 3), np.random.default_rng(seed)
    for _ in range(20):
        skips = sampler.sample(np.arange(train), rng).chunks.skips
        assert skips[0] == 0
        assert 0 <= skips[1] <= skips[2] <= more


def test_chunk_lengths_and_text_are_those_of_pose():
    for chunks, content in ((2, "uniform"), (3, "aligned"), (3, "contiguous")):
        left, right = (kind(7, 31, chunks, content) for kind in (Balanced, PoSE))
        assert left.passage_length == right.passage_length
        assert left.row_length == right.row_length
        lengths = [
            Counter(
                tuple(sampler.sample(np.arange(31), example_rng(1, 0, i)).chunks.lengths.tolist())
                for i in range(50)
            )
            for sampler in (left, right)
        ]
        assert lengths[0] == lengths[1]  # the lengths are drawn first, from the same stream


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Balanced(8, 32, 1), "chunks = 1: must be 2 or 3 for balanced skips"),
        (lambda: Balanced(8, 32, 4), "chunks = 4: must be 2 or 3 for balanced skips"),
        (lambda: Balanced(2, 32, 3), "chunks = 3: must be from 1 to train_length = 2"),
        (lambda: Balanced(0, 32), "train_length = 0: must be at least 1 token"),
        (lambda: Balanced(8, 7), "target_length = 7: must be at least train_length = 8 tokens"),
        (
            lambda: Balanced(8, 32, 3).skip_probabilities(),
            "chunks = 3: only the skips of two chunks have a closed form",
        ),
    ],
)
def test_errors_name_field_value_and_rule(make, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 -- the whole message is compared
        make()
    assert str(error.value) == words
