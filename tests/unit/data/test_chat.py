"""Conversations: borders where turns begin and nowhere else, and answers as a slow reading finds them."""

import itertools
import pickle

import numpy as np
import pytest
from distributions import assert_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from skipwise.data.chat import Answers, Turns
from skipwise.data.skips import Contiguous, example_rng

INTEGERS = st.sampled_from([np.int32, np.int64, np.uint16])
START, TURN, OTHER, TEXT = 7, 3, 5, 1  # token ids: two that open turns when seen together, another, and text


def borders_by_hand(tokens, turn_starts):
    """Row indices at which a turn begins, read one token at a time."""
    return [
        i
        for i, token in enumerate(tokens)
        if i > 0 and token in turn_starts and tokens[i - 1] not in turn_starts
    ]


@given(
    st.integers(1, 23),
    st.integers(0, 41),
    st.integers(1, 5),
    st.lists(st.sampled_from([START, TURN, OTHER, TEXT]), min_size=1, max_size=31),
    st.sampled_from([[START], [TURN, START], (OTHER,)]),
    st.integers(0, 2**32),
    INTEGERS,
)
@settings(deadline=None)
def test_every_row(train, beyond, chunks, tokens, turn_starts, seed, dtype):
    sampler = Turns(train, train + beyond, min(chunks, train), turn_starts=turn_starts)
    row = sampler.sample(np.array(tokens, dtype), np.random.default_rng(seed))
    text = tokens[:train]
    assert row.token_ids.tolist() == text
    assert row.token_ids.dtype == dtype
    lengths, skips = row.chunks.lengths, row.chunks.skips
    assert lengths.dtype == skips.dtype == row.chunks.text_skips.dtype == row.position_ids.dtype == np.int64
    assert lengths.sum() == len(text)
    possible = borders_by_hand(text, turn_starts)
    assert set(np.cumsum(lengths)[:-1].tolist()) <= set(possible)
    assert len(lengths) == len(skips) == len(row.chunks.text_skips) == min(sampler.chunks, len(possible) + 1)
    assert lengths.min() >= 1
    assert not row.chunks.text_skips.any()
    assert skips[0] == 0
    assert (np.diff(skips) >= 0).all()
    assert row.position_ids.tolist() == (np.arange(len(text)) + np.repeat(skips, lengths)).tolist()
    assert row.position_ids[-1] < sampler.target_length


def test_of_a_run_of_turn_starts_only_the_first_counts():
    #  index            0      1      2     3      4      5     6     7
    tokens = np.array([START, START, TEXT, START, START, TEXT, TEXT, START])
    sampler = Turns(8, 30, 8, turn_starts=[START])
    rows = [sampler.sample(tokens, example_rng(0, 0, i)) for i in range(20)]
    assert {tuple(row.chunks.lengths.tolist()) for row in rows} == {(3, 4, 1)}


@pytest.mark.parametrize(("train", "text"), [(9, 9), (9, 14), (12, 9)], ids=["whole", "cut", "short"])
def test_borders_and_skips_are_uniform_and_independent(train, text):
    # Two borders out of four, all sets alike; u_1 <= u_2 up to what the row's own length leaves. A longer
    # conversation has one more turn, beyond the row.
    target, turns = 14, {1, 3, 5, 8}
    tokens = np.array([START if i in turns | {10} else TEXT for i in range(text)])
    sampler, draws = Turns(train, target, 3, turn_starts=[START]), []
    for example in range(4_000):
        chunks = sampler.sample(tokens, example_rng(3, 1, example)).chunks
        draws.append((tuple(np.cumsum(chunks.lengths)[:-1].tolist()), tuple(chunks.skips.tolist())))
    largest = target - 9
    expected = {
        (pair, (0, first, second)): 1 / 6 / (largest + 1) / (largest - first + 1)
        for pair in itertools.combinations(sorted(turns), 2)
        for first in range(largest + 1)
        for second in range(first, largest + 1)
    }
    assert_distribution(draws, expected)


def test_one_turn_is_the_contiguous_control():
    tokens, rng = np.array([START, *range(20, 40)]), np.random.default_rng(4)
    row = Turns(13, 41, 5, turn_starts=[START]).sample(tokens, rng)
    control = Contiguous(13, 41).sample(tokens, rng)
    assert row.token_ids.tolist() == control.token_ids.tolist()
    assert row.position_ids.tolist() == control.position_ids.tolist()
    assert row.chunks.lengths.tolist() == [13]


def test_what_a_sampler_says_of_itself():
    sampler = Turns(13, 41, turn_starts=np.array([9, 3, 9]))
    assert (sampler.row_length, sampler.target_length, sampler.passage_length) == (13, 41, (1, 13))
    assert sampler.chunks == 2
    assert sampler.turn_starts == (3, 9)
    assert sampler == pickle.loads(pickle.dumps(sampler)) == Turns(13, 41, turn_starts={9, 3})
    assert hash(sampler) == hash(Turns(13, 41, turn_starts=[3, 9]))
    with pytest.raises(AttributeError):
        sampler.chunks = 3
    with pytest.raises(ValueError, match="token_ids has 0 tokens"):
        sampler.sample(np.array([], np.int32), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_length": 0}, "train_length = 0: must be at least 1"),
        ({"target_length": 12}, "target_length = 12: must be at least train_length = 13"),
        ({"chunks": 0}, "chunks = 0: must be from 1 to train_length = 13"),
        ({"chunks": 14}, "chunks = 14: must be from 1 to train_length = 13"),
        ({"turn_starts": ()}, r"turn_starts = \(\): must be token ids, at least one"),
        ({"turn_starts": 5}, "turn_starts = 5: must be token ids"),
        ({"turn_starts": [5, -1]}, r"turn_starts = \[5, -1\]: must be token ids"),
        ({"turn_starts": [None]}, r"turn_starts = \[None\]: must be token ids"),  # the vocabulary lacks it
        ({"turn_starts": [5.0]}, r"turn_starts = \[5.0\]: must be token ids"),
        ({"turn_starts": "<|im_start|>"}, "turn_starts = '<|im_start|>': must be token ids"),
    ],
)
def test_impossible_turns_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        Turns(**({"train_length": 13, "target_length": 41, "turn_starts": [5]} | options))


def answers_by_hand(tokens, start, ends):
    """One token at a time: after ``start`` an answer is open, until an end closes it."""
    mask, inside = [], False
    for i, token in enumerate(tokens):
        if i >= len(start) and list(tokens[i - len(start) : i]) == list(start):
            inside = True
        mask.append(inside)
        if token in ends:
            inside = False
    return mask


few_ids = st.integers(0, 3)


@given(
    st.lists(few_ids, max_size=29),
    st.lists(few_ids, min_size=1, max_size=4),
    st.sets(few_ids, min_size=1, max_size=2),
    INTEGERS,
)
@settings(max_examples=300, deadline=None)
def test_answers_are_those_that_a_slow_reading_finds(tokens, start, ends, dtype):
    found = Answers(start, ends).mask(np.array(tokens, dtype))
    assert found.dtype == bool
    assert found.tolist() == answers_by_hand(tokens, start, ends)


@pytest.mark.parametrize(
    ("tokens", "answer"),
    [
        #  6 7: an answer opens, 9: it ends
        ([1, 6, 7, 2, 3, 9, 1], [0, 0, 0, 1, 1, 1, 0]),  # the end is learned, what follows is not
        ([6, 7, 2, 9, 1, 6, 7, 9], [0, 0, 1, 1, 0, 0, 0, 1]),  # two answers, the second empty but for its end
        ([9, 1, 9, 6, 7, 2], [0, 0, 0, 0, 0, 1]),  # ends of prompts mean nothing; the row's end cuts it off
        ([6, 7, 2, 6, 7, 3, 9, 4], [0, 0, 1, 1, 1, 1, 1, 0]),  # no end between: one answer
        ([6, 7, 2, 9, 9, 3], [0, 0, 1, 1, 0, 0]),  # the first end counts
        ([1, 2, 6, 7], [0, 0, 0, 0]),  # an answer begins beyond the row
        ([1, 2, 6], [0, 0, 0]),  # half an opening
        ([7], [0]),
        ([7, 6, 1, 9], [0, 0, 0, 0]),
        ([6, 7, 9], [0, 0, 1]),
        ([], []),
    ],
)
def test_a_worked_answer(tokens, answer):
    assert Answers([6, 7], [9]).mask(np.array(tokens, np.int32)).tolist() == [bool(each) for each in answer]


def test_an_opening_may_hold_an_end():
    # A template in which the end of the user's turn stands in the opening of the answer.
    assert Answers([9, 7], [9]).mask(np.array([1, 9, 7, 2, 9, 7, 9])).tolist() == [
        *[False, False, False, True, True],  # the second 9 ends the first answer
        *[False, True],
    ]


def test_a_row_may_be_shorter_than_an_opening():
    for length in range(5):
        assert Answers([6, 7, 8, 9], [1]).mask(np.array([6, 7, 8, 9][:length])).tolist() == [False] * length


def test_ids_beyond_the_type_of_the_row_are_not_found():
    assert not Answers([70_000], [1]).mask(np.array([70_000 - 65_536, 2, 1], np.uint16)).any()


@pytest.mark.parametrize(
    ("start", "ends", "message"),
    [
        ([], [9], r"start = \[\]: must be token ids, at least one"),
        ([6], (), r"ends = \(\): must be token ids, at least one"),
        ("assistant", [9], "start = 'assistant': must be token ids"),
        ([6], 9, "ends = 9: must be token ids"),
        ([-6], [9], r"start = \[-6\]: must be token ids"),
    ],
)
def test_impossible_answers_are_told(start, ends, message):
    with pytest.raises(ValueError, match=message):
        Answers(start, ends)


def test_answers_keep_the_order_of_the_opening():
    answers = Answers(np.array([7, 6, 7]), [9, 8, 9])
    assert answers == pickle.loads(pickle.dumps(answers))
    assert (answers.start, answers.ends) == ((7, 6, 7), (8, 9))


TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message.role }} | "
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }} <|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }} <|im_end|>{% endif %} | {% endfor %}"
)


def test_a_chat_template_marks_the_same_answers():
    # The oracle is `transformers`, which knows from the template what the assistant said.
    words = [
        "<|im_start|>",
        "<|im_end|>",
        "|",
        "system",
        "user",
        "assistant",
        "be",
        "kind",
        "what",
        "now",
        "?",
    ]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE)
    said = ["be kind", "what", "what now", "assistant |", "now what"]
    roles = ["system", "user", "assistant", "user", "assistant"]
    chat = [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
    marked = tokenizer.apply_chat_template(
        chat, return_assistant_tokens_mask=True, return_dict=True, return_tensors=None
    )
    opening = tokenizer.encode("<|im_start|> assistant |", add_special_tokens=False)
    answers = Answers(opening, [words.index("<|im_end|>")])
    tokens = np.array(marked["input_ids"], np.int32)
    assert answers.mask(tokens).tolist() == [bool(each) for each in marked["assistant_masks"]]
    assert answers.mask(tokens).sum() == 6
    sampler = Turns(len(tokens), 99, 5, turn_starts=[words.index("<|im_start|>")])
    row = sampler.sample(tokens, np.random.default_rng(0))
    assert row.chunks.lengths.tolist() == [7, 6, 7, 7, 7]
