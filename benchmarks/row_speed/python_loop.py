"""The usual way to make rows: example by example, in plain Python lists. What skipwise is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch

Lists = dict[str, list[int]]


def pose_row(
    ids: list[int], train_length: int, target_length: int, chunks: int, randint: Callable[[int, int], int]
) -> Lists:
    """One PoSE row of a passage, with the same draws in the same order as `skipwise.PoSE`."""
    lengths, left = [], train_length
    for later in range(chunks - 1, 0, -1):
        lengths.append(randint(1, left - later))
        left -= lengths[-1]
    lengths.append(left)
    skips, text_skips = [0], [0]
    for _ in lengths[1:]:
        skips.append(randint(skips[-1], target_length - train_length))
    for _ in lengths[1:]:
        text_skips.append(randint(text_skips[-1], len(ids) - train_length))
    input_ids: list[int] = []
    position_ids: list[int] = []
    for length, skip, text_skip in zip(lengths, skips, text_skips, strict=True):
        start = len(input_ids)
        input_ids += ids[start + text_skip : start + text_skip + length]
        position_ids += list(range(start + skip, start + skip + length))
    return {"input_ids": input_ids, "position_ids": position_ids, "labels": input_ids.copy()}


def collate(rows: list[Lists]) -> dict[str, torch.Tensor]:
    """Pad the lists to the longest one and make tensors of them, with the mask."""
    longest = max(len(row["input_ids"]) for row in rows)
    fills = {"input_ids": 0, "position_ids": 0, "labels": -100, "attention_mask": 0}
    for row in rows:
        row["attention_mask"] = [1] * len(row["input_ids"])
    return {
        name: torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])
        for name, fill in fills.items()
    }
