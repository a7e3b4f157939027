"""The method: what every row must satisfy, and that lengths and skips follow the paper's distributions."""

import itertools
import pickle
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
from distributions import assert_distribution, passage_of
from hypothesis import given, settings
from hypothesis import strategies as st

from skipwise.data.balanced import Balanced
from skipwise.data.cream import Cream
from skipwise.data.mixture import Mixture
from skipwise.data.samplers import SAMPLERS
from skipwise.data.skips import Contiguous, FullLength, PoSE, RandPos, Row, example_rng

CONTENTS = ("uniform", "contiguous", "aligned")
INTEGERS = (np.int32, np.int64, np.uint16)
ONE_OF_EACH = [kind(5, 9) for kind in SAMPLERS.values()]
ONE_OF_EACH.append(Mixture((PoSE(5, 9), Contiguous(5, 9)), (0.8, 0.2)))


@st.composite
def pose_cases(draw, max_chunks=None):
    train = draw(st.integers(1, 41))
    target = train + draw(st.integers(0, 67))
    chunks = draw(st.integers(1, min(train, max_chunks or train)))
    sampler = PoSE(train, target, chunks, draw(st.sampled_from(CONTENTS)))
    length = sampler.passage_length[0] + draw(st.integers(0, 23))
    return sampler, length, draw(st.integers(0, 2**32)), draw(st.sampled_from(INTEGERS))


def one_sampler(draw, kind, train, target):
    if kind is Mixture:
        kinds = [PoSE, RandPos, Contiguous] + [Cream] * (train >= 3)
        parts = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4))
        return Mixture(
            tuple(one_sampler(draw, part, train, target) for part in parts), (1 / len(parts),) * len(parts)
        )
    if not issubclass(kind, PoSE):
        return kind(train, target)
    fewest, most = (2, min(train, 3)) if kind is Balanced else (1, train)
    return kind(train, target, draw(st.integers(fewest, most)), draw(st.sampled_from(CONTENTS)))


@st.composite
def any_cases(draw):
    kind = draw(st.sampled_from((*SAMPLERS.values(), Mixture)))
    train = draw(st.integers({Cream: 3, Balanced: 2}.get(kind, 1), 41))
    sampler = one_sampler(draw, kind, train, train + draw(st.integers(0, 67)))
    length = sampler.passage_length[0] + draw(st.integers(0, 91))
    return sampler, length, draw(st.integers(0, 2**32)), draw(st.sampled_from(INTEGERS))


@given(any_cases())
@settings(deadline=None)
def test_every_row_of_every_sampler(case):
    sampler, length, seed, dtype = case
    passage = passage_of(length, dtype=dtype)
    row = sampler.sample(passage, np.random.default_rng(seed))
    lengths, skips, text_skips = row.chunks.lengths, row.chunks.skips, row.chunks.text_skips
    assert lengths.dtype == skips.dtype == text_skips.dtype == row.position_ids.dtype == np.int64
    assert lengths.shape == skips.shape == text_skips.shape
    assert row.position_ids.shape == row.token_ids.shape == (sampler.row_length,)
    assert lengths.min() >= 1
    assert lengths.sum() == sampler.row_length

    starts = np.cumsum(lengths) - lengths
    for length_i, st_i, u_i, v_i in zip(lengths, starts, skips, text_skips, strict=True):
        chunk = slice(st_i, st_i + length_i)
        np.testing.assert_array_equal(row.position_ids[chunk], np.arange(u_i + st_i, u_i + st_i + length_i))
        np.testing.assert_array_equal(row.token_ids[chunk], passage[v_i + st_i : v_i + st_i + length_i])
    assert row.position_ids[0] >= 0
    assert row.position_ids[-1] < sampler.target_length
    assert (np.diff(row.position_ids) >= 1).all()
    source = row.token_ids.astype(np.int64)  # a token is its index in the passage
    assert (np.diff(source) >= 1).all()
    assert source[0] == 0
    np.testing.assert_array_equal(passage, passage_of(length, dtype=dtype))


@given(pose_cases())
@settings(deadline=None)
def test_pose_skips_and_text_rules(case):
    sampler, length, seed, dtype = case
    row = sampler.sample(passage_of(length, dtype=dtype), np.random.default_rng(seed))
    skips, text_skips = row.chunks.skips, row.chunks.text_skips
    assert len(skips) == sampler.chunks
    for values, largest in (
        (skips, sampler.target_length - sampler.train_length),
        (text_skips, length - sampler.train_length),
    ):
        assert values[0] == 0
        assert (np.diff(values) >= 0).all()
        assert values[-1] <= largest
    assert row.position_ids[0] == 0
    if sampler.content == "contiguous":
        assert not text_skips.any()
        np.testing.assert_array_equal(row.token_ids, passage_of(sampler.train_length, dtype=dtype))
    if sampler.content == "aligned":
        np.testing.assert_array_equal(text_skips, skips)
        np.testing.assert_array_equal(row.token_ids, row.position_ids)


@given(pose_cases(max_chunks=1))
@settings(deadline=None)
def test_one_chunk_is_the_contiguous_control(case):
    sampler, length, seed, _ = case
    rng = np.random.default_rng(seed)
    row = sampler.sample(passage_of(length), rng)
    control = Contiguous(sampler.train_length, sampler.target_length).sample(passage_of(length), rng)
    assert_same_row(row, control)


@given(any_cases())
@settings(max_examples=40, deadline=None)
def test_only_the_generator_decides(case):
    sampler, length, seed, dtype = case
    passage = passage_of(length, dtype=dtype)
    rows = [sampler.sample(passage, np.random.default_rng(seed)) for _ in range(2)]
    assert_same_row(*rows)


@pytest.mark.parametrize("kind", [Contiguous, FullLength])
def test_controls_draw_nothing_and_have_no_skip(kind):
    sampler = kind(13, 37)
    rng = np.random.default_rng(3)
    row = sampler.sample(passage_of(41), rng)
    np.testing.assert_array_equal(row.position_ids, np.arange({Contiguous: 13, FullLength: 37}[kind]))
    np.testing.assert_array_equal(row.token_ids, row.position_ids)
    assert rng.bit_generator.state == np.random.default_rng(3).bit_generator.state


def test_the_extremes_are_reached():
    # train = chunks leaves no choice of lengths; target = train no choice of skips.
    rng = np.random.default_rng(0)
    assert PoSE(7, 23, 7).sample(passage_of(23), rng).chunks.lengths.tolist() == [1] * 7
    assert not PoSE(7, 7, 3).sample(passage_of(7), rng).chunks.skips.any()
    assert RandPos(7, 7).sample(passage_of(7), rng).position_ids.tolist() == list(range(7))
    last = max(PoSE(5, 9).sample(passage_of(9), rng).position_ids[-1] for _ in range(200))
    assert last == 8


def increasing(count, largest):
    """Exact probabilities of u_0 = 0, u_i ~ U{u_(i-1) .. largest}."""
    found = {(0,): 1.0}
    for _ in range(count - 1):
        found = {
            (*u, nxt): p / (largest - u[-1] + 1)
            for u, p in found.items()
            for nxt in range(u[-1], largest + 1)
        }
    return found


def chunk_lengths(train, count):
    """Exact probabilities of the lengths: l_0 ~ U{1 .. Lc-1}, or U{1 .. Lc-2} then U{1 .. Lc-l_0-1}."""
    if count == 2:
        return {(first, train - first): 1 / (train - 1) for first in range(1, train)}
    return {
        (first, second, train - first - second): 1 / (train - 2) / (train - first - 1)
        for first in range(1, train - 1)
        for second in range(1, train - first)
    }


@pytest.mark.parametrize(
    ("train", "target", "passage", "count"), [(6, 11, 9, 2), (5, 8, 7, 3)], ids=["N=2", "N=3"]
)
def test_lengths_skips_and_text_are_as_in_the_paper_and_independent(train, target, passage, count):
    # The joint distribution: its margins are those of method and paper, its product form independence. Each
    # row has its own generator, so a dependence between neighbouring examples' streams shows as well.
    sampler, tokens = PoSE(train, target, count), passage_of(passage)
    draws = []
    for example in range(12_000):
        chunks = sampler.sample(tokens, example_rng(11, 2, example)).chunks
        draws.append(tuple(map(tuple, (chunks.lengths, chunks.skips, chunks.text_skips))))
    parts = (
        chunk_lengths(train, count),
        increasing(count, target - train),
        increasing(count, passage - train),
    )
    joint = {
        tuple(value for value, _ in choice): float(np.prod([p for _, p in choice]))
        for choice in itertools.product(*(part.items() for part in parts))
    }
    assert_distribution(draws, joint)


def test_skips_over_a_wide_range_are_uniform():
    # u_1 uniform over {0 .. Lt - Lc}; u_2 given u_1 uniform over {u_1 .. Lt - Lc}, so its rank in that range
    # is uniform too: both are put into ten bins.
    sampler, largest, draws = PoSE(64, 64 + 9_999, 3, "contiguous"), 9_999, 4_000
    rng = np.random.default_rng(5)
    skips = np.array([sampler.sample(passage_of(64), rng).chunks.skips for _ in range(draws)])
    first = skips[:, 1] / (largest + 1)
    second = ((skips[:, 2] - skips[:, 1]) + rng.random(draws)) / (largest - skips[:, 1] + 1)
    for values in (first, second):
        assert_distribution(np.floor(values * 10).astype(int).tolist(), dict.fromkeys(range(10), 0.1))


def test_pose_lengths_of_many_chunks_are_uniform_over_what_is_left():
    sampler, rng = PoSE(7, 7, 5, "contiguous"), np.random.default_rng(8)
    draws = [tuple(sampler.sample(passage_of(7), rng).chunks.lengths.tolist()) for _ in range(4_000)]
    expected = {}
    for head in itertools.product((1, 2, 3), repeat=4):
        left, p = 7, 1.0
        for i, length in enumerate(head):
            choices = left - (4 - i)
            p *= (length <= choices) / max(choices, 1)
            left -= length
        if p:
            expected[(*head, left)] = p
    assert_distribution(draws, expected)


def test_one_token_a_chunk_is_randpos_but_for_the_law():
    # As in RandPos every token is its own chunk, and every set of positions (that begins with 0) can come.
    sampler = PoSE(4, 8, 4, "contiguous")
    law = {tuple(u + i for i, u in enumerate(skips)): p for skips, p in increasing(4, 4).items()}
    assert set(law) == {places for places in itertools.combinations(range(8), 4) if places[0] == 0}
    rows = [sampler.sample(passage_of(4), example_rng(6, 0, i)) for i in range(6_000)]
    assert all(row.chunks.lengths.tolist() == [1] * 4 for row in rows)
    assert_distribution([tuple(row.position_ids.tolist()) for row in rows], law)
    # Not with equal chance: what is left to skip halves with every chunk, so the far end is crowded.
    for i in range(4):
        assert sum(p * (4 - (places[i] - i)) for places, p in law.items()) == pytest.approx(4 / 2**i)


def test_randpos_draws_every_set_of_positions_alike():
    sampler = RandPos(3, 7)
    draws = [
        tuple(sampler.sample(passage_of(3), example_rng(1, 0, i)).position_ids.tolist()) for i in range(4_000)
    ]
    sets = list(itertools.combinations(range(7), 3))
    assert_distribution(draws, dict.fromkeys(sets, 1 / len(sets)))


@pytest.mark.parametrize("key", [(3, 5, 7), (2**64 - 1, 2**63 + 1, 2**64 - 3)])
def test_the_stream_of_a_key_is_that_of_philox(key):
    seed, epoch, number = (np.uint64(word) for word in key)
    philox = np.random.Philox(key=[seed, epoch], counter=[np.uint64(0)] * 3 + [number])
    np.testing.assert_array_equal(example_rng(*key).bit_generator.random_raw(33), philox.random_raw(33))


def test_the_stream_of_a_key_stays_the_same_from_version_to_version():
    assert example_rng(3, 5, 7).bit_generator.random_raw(2).tolist() == [
        10490288037931767739,
        838446885474788616,
    ]


def test_nothing_of_a_generator_comes_from_the_system():
    rng = example_rng(3, 5, 7)
    with pytest.raises(TypeError, match="spawn"):  # children of an unknown seed
        rng.spawn(1)
    rng.random(5)
    assert pickle.loads(pickle.dumps(rng)).random() == rng.random()


@pytest.mark.parametrize("key", [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (2**64, 0, 0)])
def test_a_key_that_does_not_fit_is_an_error(key):
    with pytest.raises(OverflowError):
        example_rng(*key)


def test_different_keys_share_no_part_of_a_stream():
    # 64-bit words collide by chance with probability below 1e-10 here, so one shared word is an overlap: a
    # counter that advances into the next example's would show as one.
    keys = list(itertools.product((0, 1, 2**32), (0, 1, 2), (0, 1, 2, 255, 256, 10**9)))
    words = [set(example_rng(*key).bit_generator.random_raw(400).tolist()) for key in keys]
    assert len(set().union(*words)) == 400 * len(keys)


@pytest.mark.parametrize("sampler", ONE_OF_EACH)
def test_samplers_and_rows_cannot_be_changed(sampler):
    for field in fields(sampler):
        with pytest.raises(FrozenInstanceError):
            setattr(sampler, field.name, getattr(sampler, field.name))
    row = sampler.sample(passage_of(11), np.random.default_rng(0))
    for part in (row, row.chunks):
        for field in fields(part):
            with pytest.raises(FrozenInstanceError):
                setattr(part, field.name, None)
    same = type(sampler)(*(getattr(sampler, field.name) for field in fields(sampler)))
    assert sampler == same
    assert hash(sampler) == hash(same)


@pytest.mark.parametrize("sampler", ONE_OF_EACH)
def test_a_row_owns_its_tokens(sampler):
    passage = passage_of(11)
    row = sampler.sample(passage, np.random.default_rng(0))
    assert not np.shares_memory(row.token_ids, passage)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PoSE(0, 8), "train_length = 0: must be at least 1 token"),
        (lambda: RandPos(-3, 8), "train_length = -3: must be at least 1 token"),
        (lambda: Contiguous(9, 8), "target_length = 8: must be at least train_length = 9 tokens"),
        (lambda: FullLength(9, 8), "target_length = 8: must be at least train_length = 9 tokens"),
        (lambda: PoSE(7, 9, 0), "chunks = 0: must be from 1 to train_length = 7"),
        (lambda: PoSE(7, 9, 8), "chunks = 8: must be from 1 to train_length = 7"),
        (
            lambda: PoSE(7, 9, 2, "random"),
            "content = 'random': must be one of uniform, contiguous, aligned",
        ),
        (lambda: sample_of(PoSE(7, 9), 6), "token_ids has 6 tokens: this sampler needs at least 7"),
        (
            lambda: sample_of(PoSE(7, 9, 2, "aligned"), 8),
            "token_ids has 8 tokens: this sampler needs at least 9",
        ),
        (lambda: sample_of(RandPos(7, 9), 6), "token_ids has 6 tokens: this sampler needs at least 7"),
        (lambda: sample_of(Contiguous(7, 9), 6), "token_ids has 6 tokens: this sampler needs at least 7"),
        (lambda: sample_of(FullLength(7, 9), 8), "token_ids has 8 tokens: this sampler needs at least 9"),
    ],
)
def test_errors_name_field_value_and_rule(make, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 -- the whole message is compared
        make()
    assert str(error.value) == words


def sample_of(sampler, length):
    return sampler.sample(passage_of(length), np.random.default_rng(0))


def assert_same_row(left: Row, right: Row):
    np.testing.assert_array_equal(left.token_ids, right.token_ids)
    np.testing.assert_array_equal(left.position_ids, right.position_ids)
    for field in fields(left.chunks):
        np.testing.assert_array_equal(getattr(left.chunks, field.name), getattr(right.chunks, field.name))
