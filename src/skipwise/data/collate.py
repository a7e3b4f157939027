"""Rows become the tensors a causal language model trains on.

The 2-D mask is always emitted, all ones where nothing is padded: without it `transformers` takes each jump of
``position_ids`` for the start of another packed sequence and cuts the chunks apart (`masking_utils`), which
trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from skipwise.data.skips import Row

IGNORED = -100
"""The label that the loss leaves out (the convention of `transformers`)."""


class Learned(Protocol):
    """Says which tokens of a row are learned; `skipwise.data.chat.Answers` is one."""

    def mask(self, token_ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        """True where a token is to be predicted: shape ``(row_length,)``, like ``token_ids``."""


class SkipCollator:
    """Stacks rows into int64 tensors of shape ``(rows, longest row)``.

    Keys: ``input_ids``, ``position_ids``, ``attention_mask`` and ``labels``. Labels equal the inputs
    (`transformers` shifts them), except the first token of a chunk whose text does not follow on from the
    chunk before: nothing in the row could predict it, so it is left out of the loss. With ``answers``, so is
    every token that is no part of an answer; rows should then be contiguous text, as those of `Turns` are.

    Where some rows are taught by the untouched model, ``taught``, bool ``(rows,)``, says which.

    Shorter rows are padded on the right with ``pad_token_id``, which may be any id of the vocabulary:
    attention is masked there and the labels are left out, so nothing depends on it. A pad repeats its row's
    last position, because some models (``longrope``) choose their rotary table by the largest position of a
    batch: padding must not raise it, nor leave the target window.
    """

    def __init__(self, pad_token_id: int = 0, answers: Learned | None = None) -> None:
        if not isinstance(pad_token_id, int) or pad_token_id < 0:
            raise ValueError(f"pad_token_id = {pad_token_id!r}: must be an id of the vocabulary, such as 0")
        self.pad_token_id = pad_token_id
        self.answers = answers

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Collate ``rows``; raises ValueError for no rows, TypeError for what no sampler made."""
        width = max(_lengths(rows))
        # One buffer for all four: it is reused from batch to batch, where four come fresh from the system.
        input_ids, position_ids, attention_mask, labels = np.empty((4, len(rows), width), dtype=np.int64)
        attention_mask[:] = 1
        for i, row in enumerate(rows):
            end = len(row.token_ids)
            input_ids[i, :end] = labels[i, :end] = row.token_ids
            position_ids[i, :end] = row.position_ids
            labels[i, _text_jumps(row)] = IGNORED
            if self.answers is not None:
                labels[i, :end][~self.answers.mask(row.token_ids)] = IGNORED
            if end < width:
                input_ids[i, end:] = self.pad_token_id
                position_ids[i, end:] = row.position_ids[-1]
                attention_mask[i, end:] = 0
                labels[i, end:] = IGNORED
        taught = [row.taught for row in rows]
        return {
            **({"taught": torch.tensor(taught)} if any(taught) else {}),
            "input_ids": torch.from_numpy(input_ids),
            "position_ids": torch.from_numpy(position_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "labels": torch.from_numpy(labels),
        }


def _lengths(rows: Sequence[Row]) -> list[int]:
    """Tokens of every row, once it is sure that these are rows."""
    if not rows:
        raise ValueError("rows = []: must be at least one row to a batch")
    for row in rows:
        if not isinstance(row, Row):
            raise TypeError(
                f"the collator was given {type(row).__name__}, not Row: train on Rows(passages, sampler, "
                "count=..., seed=...) instead of the tokenized dataset, or on rows of sampler.sample"
            )
    return [len(row.token_ids) for row in rows]


def _text_jumps(row: Row) -> NDArray[np.int64]:
    """Row indices at which a chunk begins with text that does not follow on from the chunk before."""
    starts, text_skips = row.chunks.lengths.cumsum()[:-1], row.chunks.text_skips
    return np.asarray(starts[text_skips[1:] != text_skips[:-1]])
