"""Packed documents: the stream as a list written naively, whoever reads it and in whatever order."""

import pickle
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from skipwise.data.packing import Packed, end_of_text
from skipwise.data.passages import TokenizedDocuments
from skipwise.errors import InputError

END = 1_000_000


def documents_of(lengths):
    """Documents of these lengths; the first id of each tells which it is, the others count on from it."""
    return TokenizedDocuments.from_ids([np.arange(1000 * i, 1000 * i + n) for i, n in enumerate(lengths)])


def order_of(seed, number, count):
    sequence = np.random.SeedSequence(seed, spawn_key=(3, number))
    return np.random.Generator(np.random.Philox(sequence)).permutation(count).tolist()


def stream(lengths, seed, passes):
    """The oracle: whole passes, one token after another."""
    tokens = []
    for number in range(passes):
        for i in order_of(seed, number, len(lengths)):
            tokens += [*range(1000 * i, 1000 * i + lengths[i]), END]
    return tokens


def read(packed, count):
    return [packed.draw(*divmod(i, len(packed)), None).tolist() for i in range(count)]


def joined(passages):
    return list(chain.from_iterable(passages))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    length=st.integers(1, 53),
    seed=st.integers(0, 2**64 - 1),
)
def test_passages_are_the_stream_cut(lengths, length, seed):
    packed = Packed(documents_of(lengths), length=length, end=END, seed=seed)
    tokens = sum(lengths) + len(lengths)
    assert (packed.tokens, len(packed)) == (tokens, (tokens + length - 1) // length)
    count = 3 * len(packed)
    expected = stream(lengths, seed, passes=count * length // tokens + 1)
    assert joined(read(packed, count)) == expected[: count * length]


def test_nothing_is_dropped_and_nothing_comes_twice_before_all_came_once():
    lengths = [7, 1, 100, 13, 29, 2]
    packed = Packed(documents_of(lengths), length=11, end=END, seed=5)
    passes = 11  # then the passages end where a pass does
    seen = Counter(joined(read(packed, passes * packed.tokens // 11)))
    assert set(seen.values()) == {passes, passes * len(lengths)}
    assert seen[END] == passes * len(lengths)
    assert len(seen) == sum(lengths) + 1


def test_a_document_longer_than_a_passage_spans_several():
    packed = Packed(documents_of([100]), length=30, end=END, seed=0)
    assert read(packed, 4) == [
        [*range(30)],
        [*range(30, 60)],
        [*range(60, 90)],
        [*range(90, 100), END, *range(19)],
    ]


def test_a_text_shorter_than_a_passage_fills_it():
    assert read(Packed(documents_of([2]), length=7, end=END, seed=0), 2) == [
        [0, 1, END, 0, 1, END, 0],
        [1, END, 0, 1, END, 0, 1],
    ]


def test_every_pass_has_an_order_of_its_own():
    packed = Packed(documents_of([1] * 20), length=40, end=END, seed=0)
    orders = [tuple(passage[::2]) for passage in read(packed, 4)]
    assert len(set(orders)) == 4
    assert {frozenset(each) for each in orders} == {frozenset(range(0, 20_000, 1000))}
    assert read(Packed(documents_of([1] * 20), length=40, end=END, seed=1), 1) != read(packed, 1)


def test_any_order_of_reading_and_another_process(tmp_path):
    ids = [np.arange(n, dtype=np.int32) for n in (5, 40, 3, 17)]
    Dataset.from_dict({"input_ids": ids}).save_to_disk(tmp_path)
    packed = Packed(TokenizedDocuments.from_ids(Dataset.load_from_disk(tmp_path)), length=9, end=99, seed=2)
    fresh = len(pickle.dumps(packed))
    forward = read(packed, 30)
    for index in np.random.default_rng(0).permutation(30):
        assert packed.draw(*divmod(int(index), len(packed)), None).tolist() == forward[index]
    sent = pickle.dumps(packed)
    assert len(sent) == fresh  # without the order it has drawn
    assert read(pickle.loads(sent), 30) == forward
    assert packed.draw(0, 0, None).dtype == np.int32


def test_documents_stay_where_they_are():
    """A row must not copy a document that it takes a few tokens of."""

    class Noted(TokenizedDocuments):
        def __getitem__(self, index):
            opened.append(index)
            return super().__getitem__(index)

    opened = []
    whole = documents_of([900, 3, 4, 5] * 50)
    packed = Packed(Noted(whole._tokens), length=10, end=END, seed=1)
    for i in (0, 77, 500):
        opened.clear()
        passage = packed.draw(0, i, None)
        assert 1 <= len(opened) <= 1 + (passage == END).sum()


@pytest.mark.parametrize("example", [-1, 3])
def test_outside_of_an_epoch(example):
    with pytest.raises(IndexError, match=f"example {example} of an epoch of 3"):
        Packed(documents_of([10, 9]), length=7, end=END, seed=0).draw(0, example, None)


def test_passages_of_nothing():
    with pytest.raises(InputError, match=r"length \(0\)"):
        Packed(documents_of([3]), length=0, end=END, seed=0)


def test_the_token_that_ends_a_text(demo_base):
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    assert end_of_text(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="has no end-of-text token to put between documents"):
        end_of_text(tokenizer)
