"""The method: what every row must satisfy, and that lengths and skips follow the paper's distributions."""

import itertools
from collections import Counter
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from skipwise.data.skips import SAMPLERS, Contiguous, FullLength, PoSE, RandPos, Row, example_rng

FALSE_ALARM = 1e-6
"""Chance that one distribution test rejects a correct sampler, before its seed was fixed."""

CONTENTS = ("uniform", "contiguous", "aligned")
INTEGERS = (np.int32, np.int64, np.uint16)


def passage_of(length, seed=0, dtype=np.int32):
    """A passage whose tokens name their own index, so that text can be traced back."""
    return (np.arange(length) + 7 * seed).astype(dtype)


@st.composite
def pose_cases(draw, max_chunks=None):
    train = draw(st.integers(1, 41))
    target = train + draw(st.integers(0, 67))
    chunks = draw(st.integers(1, min(train, max_chunks or train)))
    sampler = PoSE(train, target, chunks, draw(st.sampled_from(CONTENTS)))
    length = sampler.passage_length[0] + draw(st.integers(0, 23))
    return sampler, length, draw(st.integers(0, 2**32)), draw(st.sampled_from(INTEGERS))


@st.composite
def any_cases(draw):
    kind = draw(st.sampled_from(tuple(SAMPLERS.values())))
    if kind is PoSE:
        return draw(pose_cases())
    train = draw(st.integers(1, 41))
    sampler = kind(train, train + draw(st.integers(0, 67)))
    length = sampler.passage_length[0] + draw(st.integers(0, 23))
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


def assert_distribution(draws, expected):
    """Chi-square of the drawn values against exact probabilities; an impossible value fails outright."""
    counts = Counter(draws)
    assert set(counts) <= set(expected), set(counts) - set(expected)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-12)
    wanted = np.array(list(expected.values())) * len(draws)
    assert wanted.min() >= 5, "too few draws for a chi-square test"
    found = chisquare([counts[value] for value in expected], wanted)
    assert found.pvalue > FALSE_ALARM, found


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


def test_randpos_draws_every_set_of_positions_alike():
    sampler = RandPos(3, 7)
    draws = [
        tuple(sampler.sample(passage_of(3), example_rng(1, 0, i)).position_ids.tolist()) for i in range(4_000)
    ]
    sets = list(itertools.combinations(range(7), 3))
    assert_distribution(draws, dict.fromkeys(sets, 1 / len(sets)))


def test_same_key_same_stream():
    same = [example_rng(3, 5, 7).integers(0, 2**63, 33) for _ in range(2)]
    np.testing.assert_array_equal(*same)


def test_different_keys_share_no_part_of_a_stream():
    # 64-bit words collide by chance with probability below 1e-10 here, so one shared word is an overlap: a
    # counter that advances into the next example's would show as one.
    keys = list(itertools.product((0, 1, 2**32), (0, 1, 2), (0, 1, 2, 255, 256, 10**9)))
    words = [set(example_rng(*key).bit_generator.random_raw(400).tolist()) for key in keys]
    assert len(set().union(*words)) == 400 * len(keys)


@pytest.mark.parametrize("sampler", [PoSE(5, 9), RandPos(5, 9), Contiguous(5, 9), FullLength(5, 9)])
def test_samplers_and_rows_cannot_be_changed(sampler):
    with pytest.raises(FrozenInstanceError):
        sampler.train_length = 4
    row = sampler.sample(passage_of(11), np.random.default_rng(0))
    for part in (row, row.chunks):
        for field in fields(part):
            with pytest.raises(FrozenInstanceError):
                setattr(part, field.name, None)
    assert sampler == type(sampler)(5, 9)
    assert hash(sampler) == hash(type(sampler)(5, 9))


@pytest.mark.parametrize("sampler", [PoSE(5, 9), RandPos(5, 9), Contiguous(5, 9), FullLength(5, 9)])
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


def test_names_of_recipes():
    assert {name: kind.__name__ for name, kind in SAMPLERS.items()} == {
        "pose": "PoSE",
        "randpos": "RandPos",
        "contiguous": "Contiguous",
        "full-length": "FullLength",
    }


def sample_of(sampler, length):
    return sampler.sample(passage_of(length), np.random.default_rng(0))


def assert_same_row(left: Row, right: Row):
    np.testing.assert_array_equal(left.token_ids, right.token_ids)
    np.testing.assert_array_equal(left.position_ids, right.position_ids)
    for field in fields(left.chunks):
        np.testing.assert_array_equal(getattr(left.chunks, field.name), getattr(right.chunks, field.name))
