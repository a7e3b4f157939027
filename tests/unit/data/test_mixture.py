"""Mixtures: the shares of the samplers, and that each of them does what it does alone."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from distributions import assert_distribution, passage_of
from hypothesis import given, settings
from hypothesis import strategies as st

from skipwise.data.cream import Cream
from skipwise.data.mixture import Mixture
from skipwise.data.skips import Contiguous, FullLength, PoSE, RandPos, example_rng

KINDS = st.sampled_from([PoSE, RandPos, Contiguous, Cream])


@st.composite
def mixtures(draw):
    train = draw(st.integers(3, 31))
    parts = draw(st.lists(st.tuples(KINDS, st.integers(0, 47), st.integers(1, 9)), min_size=1, max_size=4))
    weights = np.array([weight for *_, weight in parts], dtype=np.float64)
    samplers = [kind(train, train + more) for kind, more, _ in parts]
    return Mixture(samplers, (weights / weights.sum()).tolist())


@given(mixtures(), st.integers(0, 23), st.integers(0, 2**32))
@settings(deadline=None)
def test_every_row(mixture, more, seed):
    assert mixture.target_length == max(each.target_length for each in mixture.samplers)
    passage = passage_of(mixture.passage_length[0] + more)
    row, again = (mixture.sample(passage, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(row.position_ids, again.position_ids)
    np.testing.assert_array_equal(row.token_ids, again.token_ids)
    assert row.position_ids.shape == row.token_ids.shape == (mixture.row_length,)
    assert row.position_ids[0] >= 0
    assert row.position_ids[-1] < mixture.target_length
    assert (np.diff(row.position_ids) >= 1).all()
    index, lengths = np.arange(mixture.row_length), row.chunks.lengths
    np.testing.assert_array_equal(row.position_ids, index + np.repeat(row.chunks.skips, lengths))
    np.testing.assert_array_equal(row.token_ids, index + np.repeat(row.chunks.text_skips, lengths))
    assert (np.diff(row.token_ids) >= 1).all()


@pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3), (0.9, 0.07, 0.03)])
def test_samplers_are_drawn_with_their_weights_and_unchanged(weights):
    # Told apart by their number of chunks; and the skips of the PoSE rows are still uniform: what chooses the
    # sampler must not tell what it then draws.
    mixture = Mixture((PoSE(7, 16, 2), Contiguous(7, 16), Cream(7, 40)), weights)
    passage = passage_of(40)
    rows = [mixture.sample(passage, example_rng(3, 1, number)) for number in range(12_000)]
    share = dict(zip((2, 1, 3), weights, strict=True))
    assert_distribution([len(row.chunks.lengths) for row in rows], share)
    skips = [int(row.chunks.skips[1]) for row in rows if len(row.chunks.lengths) == 2]
    assert_distribution(skips, dict.fromkeys(range(10), 0.1))


def test_a_sampler_sees_no_more_of_a_passage_than_alone():
    mixture = Mixture((PoSE(5, 9, 2, "uniform"), PoSE(5, 40, 3, "aligned")), (0.5, 0.5))
    assert mixture.passage_length == (40, 40)
    rng = np.random.default_rng(0)
    rows = [mixture.sample(passage_of(53), rng) for _ in range(400)]
    last = {(len(row.chunks.lengths), int(row.token_ids[-1])) for row in rows}
    assert max(last) == (3, 39)
    assert max(token for count, token in last if count == 2) == 8


def test_what_it_asks_of_passages():
    # The shortest that suits all, the longest that any can use.
    assert Mixture([Contiguous(7, 30), Cream(7, 23)], [0.5, 0.5]).passage_length == (7, 23)
    assert Mixture([PoSE(7, 11, 2, "aligned"), Cream(7, 23)], [0.5, 0.5]).passage_length == (11, 23)
    assert Mixture([RandPos(7, 30), Contiguous(7, 23)], [0.5, 0.5]).passage_length == (7, 7)


def test_a_passage_too_short_for_one_is_refused_whichever_is_drawn():
    mixture = Mixture((Contiguous(5, 9), PoSE(5, 9, 2, "aligned")), (0.99, 0.01))
    with pytest.raises(ValueError, match="token_ids has 8 tokens: this sampler needs at least 9"):
        mixture.sample(passage_of(8), np.random.default_rng(0))


class Highest:
    """A generator at the largest number below 1."""

    def random(self):
        return np.nextafter(1, 0)


def test_weights_that_sum_to_a_little_less_than_1_leave_no_gap():
    mixture = Mixture([Contiguous(3, 8)] * 3, [1 / 3, 1 / 3, 1 / 3 - 9e-10])
    assert mixture.sample(passage_of(3), Highest()).position_ids.tolist() == [0, 1, 2]


def test_it_cannot_be_changed():
    samplers, weights = [PoSE(5, 9), Contiguous(5, 9)], [0.75, 0.25]
    mixture = Mixture(samplers, weights)
    samplers.clear()
    weights.clear()
    assert mixture == Mixture((PoSE(5, 9), Contiguous(5, 9)), (0.75, 0.25))
    assert hash(mixture) == hash(Mixture((PoSE(5, 9), Contiguous(5, 9)), (0.75, 0.25)))
    with pytest.raises(FrozenInstanceError):
        mixture.weights = (0.5, 0.5)


PAIR = (PoSE(13, 37), Contiguous(13, 37))


@pytest.mark.parametrize(
    ("samplers", "weights", "words"),
    [
        ((), (), "samplers = (): must be at least one"),
        (PAIR, (1.0,), "weights = (1.0,): must be one for each of 2 samplers"),
        (PAIR, (1.0, 0.0), "weights = (1.0, 0.0): must be finite and larger than 0"),
        (PAIR, (1.5, -0.5), "weights = (1.5, -0.5): must be finite and larger than 0"),
        (PAIR, (0.5, float("nan")), "weights = (0.5, nan): must be finite and larger than 0"),
        (PAIR, (0.5, float("inf")), "weights = (0.5, inf): must be finite and larger than 0"),
        (PAIR, (0.8, 0.3), "weights = (0.8, 0.3): must sum to 1, not 1.1"),
        (PAIR, (0.5, 0.499999), "weights = (0.5, 0.499999): must sum to 1, not 0.999999"),
        (
            (PoSE(13, 37), FullLength(13, 37)),
            (0.5, 0.5),
            "samplers = PoSE of 13, FullLength of 37 tokens a row: must have one row length",
        ),
    ],
)
def test_errors_name_field_value_and_rule(samplers, weights, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 -- the whole message is compared
        Mixture(samplers, weights)
    assert str(error.value) == words
