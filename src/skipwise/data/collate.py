"""Rows become the tensors a causal language model trains on.

The 2-D mask of ones is always emitted: without it `transformers` takes each jump of ``position_ids`` for
the start of another packed sequence and cuts the chunks apart (`masking_utils`), which trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from skipwise.data.skips import Row

IGNORED = -100
"""The label that the loss leaves out (the convention of `transformers`)."""


class SkipCollator:
    """Stacks rows of one length into int64 tensors of shape ``(rows, row_length)``.

    Keys: ``input_ids``, ``position_ids``, ``attention_mask`` (ones) and ``labels``. Labels equal the inputs
    (`transformers` shifts them), except the first token of a chunk whose text does not follow on from the
    chunk before: nothing in the row could predict it, so it is left out of the loss.
    """

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Collate ``rows``, which must all have the same length."""
        lengths = {len(row.token_ids) for row in rows}
        if len(lengths) != 1:
            raise ValueError(f"rows of {sorted(lengths)} tokens in one batch: they must have one length")
        input_ids = torch.from_numpy(np.stack([row.token_ids for row in rows]).astype(np.int64))
        position_ids = torch.from_numpy(np.stack([row.position_ids for row in rows]))
        labels = input_ids.clone()
        for label, row in zip(labels, rows, strict=True):
            label[_text_jumps(row)] = IGNORED
        return {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": torch.ones_like(input_ids),
            "labels": labels,
        }


def _text_jumps(row: Row) -> torch.Tensor:
    """Row indices at which a chunk begins with text that does not follow on from the chunk before."""
    starts = np.cumsum(row.chunks.lengths)[:-1]
    return torch.from_numpy(starts[np.diff(row.chunks.text_skips) != 0])
