"""The collator: tensors of the right kind, the mask that keeps rows whole, padding, and labels left out."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from skipwise.data.chat import Answers, Turns
from skipwise.data.collate import SkipCollator
from skipwise.data.skips import Chunks, Contiguous, FullLength, PoSE, RandPos, Row
from skipwise.rope import extend_rope

SAMPLERS = st.sampled_from(
    [
        PoSE(13, 41),
        PoSE(13, 41, 3),
        PoSE(13, 41, 13),
        PoSE(13, 41, 3, "contiguous"),
        PoSE(13, 41, 3, "aligned"),
        PoSE(1, 5, 1),
        RandPos(13, 41),
        Contiguous(13, 41),
        FullLength(5, 13),
    ]
)


@given(SAMPLERS, st.integers(1, 4), st.integers(0, 2**32), st.sampled_from([np.int32, np.int64, np.uint16]))
@settings(deadline=None)  # the first example pays for torch
def test_a_batch(sampler, count, seed, dtype):
    rng = np.random.default_rng(seed)
    rows = [sampler.sample(rng.integers(0, 60_000, 47).astype(dtype), rng) for _ in range(count)]
    batch = SkipCollator()(rows)
    assert set(batch) == {"input_ids", "position_ids", "attention_mask", "labels"}
    for tensor in batch.values():
        assert tensor.dtype == torch.int64
        assert tensor.shape == (count, sampler.row_length)
        assert tensor.is_contiguous()
    assert batch["attention_mask"].all()
    assert batch["attention_mask"].max() == 1
    for i, row in enumerate(rows):
        assert batch["input_ids"][i].tolist() == row.token_ids.tolist()
        assert batch["position_ids"][i].tolist() == row.position_ids.tolist()
        assert batch["labels"][i].tolist() == labels_by_hand(row)


def labels_by_hand(row):
    """One token at a time: left out where a token is not the successor of the one before in the passage."""
    text_index = [
        st_i + offset + v_i
        for st_i, length, v_i in zip(
            np.cumsum(row.chunks.lengths) - row.chunks.lengths,
            row.chunks.lengths,
            row.chunks.text_skips,
            strict=True,
        )
        for offset in range(length)
    ]
    return [
        -100 if i and text_index[i] != text_index[i - 1] + 1 else int(token)
        for i, token in enumerate(row.token_ids)
    ]


def test_a_worked_example():
    # Three chunks: the second's text jumps, the third's follows on although its positions jump.
    row = Row(
        np.array([10, 11, 12, 73, 74, 75, 76]),
        np.array([0, 1, 2, 5, 6, 19, 20]),
        Chunks(np.array([3, 2, 2]), np.array([0, 2, 14]), np.array([0, 60, 60])),
    )
    batch = SkipCollator()([row])
    assert batch["labels"].tolist() == [[10, 11, 12, -100, 74, 75, 76]]
    assert batch["input_ids"].tolist() == [[10, 11, 12, 73, 74, 75, 76]]


def test_rows_are_not_changed_and_not_shared():
    row = PoSE(13, 41).sample(np.arange(47), np.random.default_rng(1))
    tokens, positions = row.token_ids.copy(), row.position_ids.copy()
    for tensor in SkipCollator()([row]).values():
        tensor.zero_()
    np.testing.assert_array_equal(row.token_ids, tokens)
    np.testing.assert_array_equal(row.position_ids, positions)


def test_tensors_are_apart_from_each_other():
    batch = SkipCollator()([Contiguous(7, 9).sample(np.arange(9), np.random.default_rng(0))])
    before = {name: tensor.clone() for name, tensor in batch.items()}
    for name, tensor in batch.items():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 8  # saved alone, it takes no more
        tensor += 1
        for other in set(batch) - {name}:
            assert torch.equal(batch[other], before[other])
        tensor -= 1


def row_of(token_ids, position_ids, lengths, skips, text_skips):
    return Row(
        np.array(token_ids, np.int32),
        np.array(position_ids),
        Chunks(np.array(lengths), np.array(skips), np.array(text_skips)),
    )


def test_shorter_rows_are_padded_on_the_right():
    long = row_of([10, 11, 12, 13, 14], [0, 1, 7, 8, 9], [2, 3], [0, 5], [0, 0])
    short = row_of([20, 75, 76], [0, 30, 31], [1, 2], [0, 29], [0, 54])
    one = row_of([30], [0], [1], [0], [0])
    batch = SkipCollator(pad_token_id=99)([short, long, one])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[20, 75, 76, 99, 99], [10, 11, 12, 13, 14], [30, 99, 99, 99, 99]],
        "position_ids": [[0, 30, 31, 31, 31], [0, 1, 7, 8, 9], [0, 0, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
        "labels": [[20, -100, 76, -100, -100], [10, 11, 12, 13, 14], [30, -100, -100, -100, -100]],
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


@given(st.lists(st.integers(1, 31), min_size=1, max_size=5), st.integers(0, 2**32), st.integers(0, 9))
@settings(deadline=None)
def test_rows_of_any_lengths(lengths, seed, pad_token_id):
    rng, answers = np.random.default_rng(seed), Answers([3], [5])
    sampler = Turns(23, 41, 3, turn_starts=[2, 3])
    rows = [sampler.sample(rng.integers(0, 7, length), rng) for length in lengths]
    width = max(len(row.token_ids) for row in rows)
    batch, all_learned = SkipCollator(pad_token_id, answers)(rows), SkipCollator(pad_token_id)(rows)
    for i, row in enumerate(rows):
        tokens, padding = row.token_ids.tolist(), width - len(row.token_ids)
        mask = answers.mask(row.token_ids).tolist()
        learned = [token if its else -100 for token, its in zip(tokens, mask, strict=True)]
        assert batch["input_ids"][i].tolist() == tokens + [pad_token_id] * padding
        assert batch["attention_mask"][i].tolist() == [1] * len(tokens) + [0] * padding
        assert batch["labels"][i].tolist() == learned + [-100] * padding
        assert all_learned["labels"][i].tolist() == tokens + [-100] * padding
        positions = batch["position_ids"][i].tolist()
        assert positions[: len(tokens)] == row.position_ids.tolist()
        assert max(positions) == row.position_ids[-1] < sampler.target_length


def test_answers_and_text_jumps_are_both_left_out():
    row = row_of([3, 10, 11, 72, 73, 5, 74], [0, 1, 2, 5, 6, 7, 8], [3, 4], [0, 2], [0, 60])
    batch = SkipCollator(answers=Answers([3], [5]))([row])
    assert batch["labels"].tolist() == [[-100, 10, 11, -100, 73, 5, -100]]
    assert batch["input_ids"].tolist() == [[3, 10, 11, 72, 73, 5, 74]]


def tiny_llama(attention):
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        vocab_size=97,
        max_position_embeddings=23,
        bos_token_id=None,
        eos_token_id=None,
    )
    config = extend_rope(config, 131, "yarn")
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(std=0.3)  # attention that matters: the default is nearly uniform
    return model


# Eager attention takes its softmax in float32 whatever the model's dtype. Observed: 1e-14 and 2e-6.
@pytest.mark.parametrize(("attention", "bound"), [("sdpa", 1e-9), ("eager", 5e-5)])
def test_a_padded_batch_is_its_rows_one_by_one(attention, bound):
    model, collator = tiny_llama(attention), SkipCollator(96, Answers([3], [5]))
    rng, sampler = np.random.default_rng(5), Turns(23, 131, 3, turn_starts=[2, 3])
    texts = [rng.choice([2, 3, 5, *range(9, 20)], length) for length in (11, 40, 23, 4, 17)]
    rows = [sampler.sample(np.array([3, *text]), rng) for text in texts]  # each begins with an answer
    with torch.no_grad():
        batch = collator(rows)
        together = model(**batch, use_cache=False)
        losses, learned = [], []
        for i, row in enumerate(rows):
            inputs = collator([row])
            alone = model(**inputs, use_cache=False)
            difference = together.logits[i, : len(row.token_ids)] - alone.logits[0]
            assert difference.abs().max() < bound
            losses.append(float(alone.loss))
            learned.append(int((inputs["labels"][:, 1:] != -100).sum()))
    assert together.logits.std() > 0.1
    # The loss is the mean over all labels of the batch, and float32 in `transformers`.
    assert len(set(learned)) > 2
    assert float(together.loss) == pytest.approx(np.average(losses, weights=learned), rel=1e-6)


def test_the_collator_can_be_sent_to_a_worker():
    row = Contiguous(7, 9).sample(np.arange(9), np.random.default_rng(0))
    collator = SkipCollator(5, Answers([3], [5]))
    sent = pickle.loads(pickle.dumps(collator))
    assert sent([row])["labels"].tolist() == collator([row])["labels"].tolist()
    assert sent.pad_token_id == 5


def test_no_rows_and_what_no_sampler_made_are_refused():
    row = Contiguous(7, 9).sample(np.arange(9), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"rows = \[\]: must be at least one row to a batch"):
        SkipCollator()([])
    with pytest.raises(TypeError, match=r"given dict, not Row: train on Rows\(passages, sampler"):
        SkipCollator()([row, {"input_ids": [1, 2], "labels": [1, 2]}])


@pytest.mark.parametrize("pad_token_id", [None, -1, "<pad>"])
def test_a_pad_that_no_vocabulary_has_is_refused(pad_token_id):
    with pytest.raises(ValueError, match=f"pad_token_id = {pad_token_id!r}: must be an id"):
        SkipCollator(pad_token_id)


@pytest.mark.parametrize("taught", [(False, True), (True, True), (True,), (False, False), (False,)])
def test_taught_rows_are_told_only_where_there_are_some(taught):
    rng = np.random.default_rng(0)
    rows = [replace(Contiguous(5, 13).sample(np.arange(9), rng), taught=each) for each in taught]
    batch = SkipCollator()(rows)
    if not any(taught):
        assert "taught" not in batch
        return
    assert batch["taught"].dtype == torch.bool
    assert tuple(batch["taught"].tolist()) == taught
    assert batch["labels"].tolist() == [[0, 1, 2, 3, 4]] * len(taught)
