"""The collator: tensors of the right kind, the mask that keeps rows whole, and the labels left out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipwise.data.collate import SkipCollator
from skipwise.data.skips import Chunks, Contiguous, FullLength, PoSE, RandPos, Row

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


def test_ragged_rows_are_refused():
    rng = np.random.default_rng(0)
    rows = [Contiguous(n, 9).sample(np.arange(9), rng) for n in (7, 5, 7)]
    with pytest.raises(ValueError, match=r"rows of \[5, 7\] tokens in one batch: they must have one length"):
        SkipCollator()(rows)
    with pytest.raises(ValueError, match="in one batch"):
        SkipCollator()([])
