"""CREAM: what every row must satisfy, and that head, middle and tail follow the stated distribution."""

from dataclasses import FrozenInstanceError
from math import ceil, floor

import numpy as np
import pytest
from distributions import assert_distribution, passage_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import truncnorm

from skipwise.data.cream import Cream
from skipwise.data.skips import Contiguous, example_rng

SIZES = st.tuples(st.integers(3, 41), st.one_of(st.just(0), st.integers(0, 67), st.integers(0, 3_001)))


def faces(sampler):
    """H on both faces of the coin, as in the paper."""
    train, target = sampler.train_length, sampler.target_length
    return train // 3, min(train // 3, floor(4 * target / train))


@given(SIZES, st.integers(0, 23), st.integers(0, 2**32), st.sampled_from([np.int32, np.int64, np.uint16]))
@example((3, 0), 0, 0, np.int32)
@example((3, 1), 1, 0, np.int32)
@example((41, 1), 0, 5, np.int32)
@settings(deadline=None)
def test_every_row(sizes, more, seed, dtype):
    train, target = sizes[0], sum(sizes)
    sampler = Cream(train, target)
    assert (sampler.row_length, sampler.target_length, sampler.passage_length) == (
        train,
        target,
        (train, target),
    )
    length = train + more * target // 17  # from the train length to beyond the target
    passage = passage_of(length, dtype)
    row = sampler.sample(passage, np.random.default_rng(seed))
    lengths, skips, text_skips = row.chunks.lengths, row.chunks.skips, row.chunks.text_skips
    assert lengths.dtype == skips.dtype == text_skips.dtype == row.position_ids.dtype == np.int64
    assert lengths.shape == skips.shape == text_skips.shape == (3,)
    ends, middle, tail = lengths.tolist()
    assert ends == tail
    assert ends in faces(sampler)
    assert middle >= 1
    assert ends + middle + tail == train

    positions = row.position_ids
    assert positions.shape == (train,)
    np.testing.assert_array_equal(positions[:ends], np.arange(ends))
    np.testing.assert_array_equal(positions[-ends:], np.arange(target - ends, target))
    np.testing.assert_array_equal(np.diff(positions[ends:-ends]), 1)
    assert (np.diff(positions) >= 1).all()
    np.testing.assert_array_equal(positions, np.arange(train) + np.repeat(skips, lengths))

    end_of_text = min(length, target)
    source = row.token_ids.astype(np.int64)  # a token is its index in the passage
    np.testing.assert_array_equal(source, np.arange(train) + np.repeat(text_skips, lengths))
    np.testing.assert_array_equal(source[:ends], np.arange(ends))
    np.testing.assert_array_equal(source[-ends:], np.arange(end_of_text - ends, end_of_text))
    assert source[ends] == min(positions[ends], end_of_text - ends - middle)
    assert (np.diff(source) >= 1).all()
    assert row.token_ids.dtype == dtype
    assert not np.shares_memory(row.token_ids, passage)
    np.testing.assert_array_equal(passage, passage_of(length, dtype))


@given(st.integers(3, 50), st.integers(0, 2**32))
@settings(deadline=None)
def test_without_room_it_is_the_contiguous_control(train, seed):
    row = Cream(train, train).sample(passage_of(train + 7), np.random.default_rng(seed))
    control = Contiguous(train, train).sample(passage_of(train + 7), np.random.default_rng(seed))
    np.testing.assert_array_equal(row.position_ids, control.position_ids)
    np.testing.assert_array_equal(row.token_ids, control.token_ids)


@given(SIZES, st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_only_the_generator_decides(sizes, seed):
    sampler, passage = Cream(sizes[0], sum(sizes)), passage_of(sum(sizes))
    rows = [sampler.sample(passage, np.random.default_rng(seed)) for _ in range(2)]
    np.testing.assert_array_equal(rows[0].position_ids, rows[1].position_ids)
    np.testing.assert_array_equal(rows[0].token_ids, rows[1].token_ids)


def middle_ends(train, target, ends):
    """Exact probabilities of the middle's last position, in the paper's terms.

    Between two neighbouring x at which a bound of the uniform range steps, the range stands still.
    """
    alpha, middle = target / train, train - 2 * ends
    x = truncnorm(*((b - 1 - alpha) / (3 * alpha / 8) for b in (2, 2 * alpha)), 1 + alpha, 3 * alpha / 8)
    steps = {2 * k / train for k in range(train, target + 1)}
    steps |= {2 * k / (middle - 1) for k in range(middle - 1, target) if middle > 1}
    steps = np.array(sorted(step for step in steps if 2 <= step <= 2 * alpha))
    found = dict.fromkeys(range(target), 0.0)
    for middle_of_piece, p in zip((steps[1:] + steps[:-1]) / 2, np.diff(x.cdf(steps)), strict=True):
        last = ceil(middle_of_piece * train / 2) - ends - 1
        first = floor(ends + (middle - 1) * middle_of_piece / 2)
        for end in range(first, last + 1):
            found[end] += p / (last - first + 1)
    return {end: p for end, p in found.items() if p > 1e-15}  # less is rounding where two steps meet


@pytest.mark.parametrize(
    ("train", "target"),
    [(25, 38), (60, 121), (7, 56), (100, 800), (5, 6)],
    ids=["alpha 1.52", "alpha 2.02", "alpha 8, one H", "alpha 8", "one skip"],
)
def test_coin_and_middle_are_as_stated(train, target):
    # The joint distribution: the coin's two faces, and on each the exact one of the middle's last token. A
    # Gaussian that is clipped instead of truncated reaches positions that have probability 0 here. Each row
    # has its own generator, so a dependence between neighbouring examples' streams shows as well.
    sampler, passage = Cream(train, target), passage_of(train)
    draws = []
    for number in range(20_000):
        chunks = sampler.sample(passage, example_rng(5, 1, number)).chunks
        ends, middle, _ = chunks.lengths.tolist()
        draws.append((ends, int(chunks.skips[1]) + ends + middle - 1))
    expected = {}
    for ends in faces(sampler):
        for last, p in middle_ends(train, target, ends).items():
            expected[ends, last] = expected.get((ends, last), 0) + p / 2
    assert_distribution(draws, expected)


@pytest.mark.parametrize(("train", "target"), [(16, 128), (2048, 16_384), (30, 31)])
def test_the_gaussian_is_truncated_not_clipped(train, target):
    # x in bins of 4 %, with one of 0.1 % at each end: there the cut-off tails would pile up (1 % each at
    # alpha 8). And no two of so many draws are equal: x is not rounded.
    sampler, rng, alpha = Cream(train, target), np.random.default_rng(4), target / train
    draws = np.array([sampler._reach(rng) * 2 / train for _ in range(20_000)])
    assert draws.min() > 2
    assert draws.max() < 2 * alpha
    assert len(set(draws.tolist())) == len(draws)
    x = truncnorm(*((b - 1 - alpha) / (3 * alpha / 8) for b in (2, 2 * alpha)), 1 + alpha, 3 * alpha / 8)
    shares = np.array([0, 0.001, *np.linspace(0.04, 0.96, 24), 0.999, 1])
    cells = np.searchsorted(shares, x.cdf(draws)) - 1
    assert_distribution(cells.tolist(), dict(enumerate(np.diff(shares))))


def test_it_cannot_be_changed():
    sampler = Cream(5, 9)
    with pytest.raises(FrozenInstanceError):
        sampler.train_length = 4
    assert sampler == Cream(5, 9)
    assert hash(sampler) == hash(Cream(5, 9))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cream(0, 8), "train_length = 0: must be at least 3 tokens, one for each chunk"),
        (lambda: Cream(2, 8), "train_length = 2: must be at least 3 tokens, one for each chunk"),
        (lambda: Cream(9, 8), "target_length = 8: must be at least train_length = 9 tokens"),
        (
            lambda: Cream(7, 9).sample(passage_of(6), np.random.default_rng(0)),
            "token_ids has 6 tokens: this sampler needs at least 7",
        ),
    ],
)
def test_errors_name_field_value_and_rule(make, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 -- the whole message is compared
        make()
    assert str(error.value) == words
