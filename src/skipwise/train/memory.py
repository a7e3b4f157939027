"""Memory of a training: the largest micro-batch that fits, and what to lower when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from skipwise import processes
from skipwise.config import TrainingRecipe
from skipwise.errors import RunError
from skipwise.train.planned import needs

_GIB = 1024**3
_SPARE = 0.04
"""Share of a GPU's memory kept free in the search: fragments, and what the rows of a real run add."""


def micro_batch_for(
    model: PreTrainedModel, recipe: TrainingRecipe, row_length: int, *, taught: bool = False
) -> int:
    """Rows in one forward pass of one device, as the recipe says, or as many as fit.

    ``auto`` tries forward and backward passes of growing size on the GPU, the optimizer's memory set aside,
    and takes the largest divisor of a device's rows that fits; every device takes the smallest found by any.
    On a CPU it is 1. The weights are not changed. ``taught``: some rows are, so both kinds are tried.
    """
    if recipe.micro_batch != "auto":
        return recipe.micro_batch
    rows = recipe.rows_per_step // processes.count()
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]
    found = 1
    if model.device.type == "cuda":
        with _set_aside(model, recipe):
            for size in sizes:
                if not all(_fits(model, recipe, size, row_length, taught=kind) for kind in {False, taught}):
                    break
                found = size
    return processes.smallest(found)


def _fits(
    model: PreTrainedModel, recipe: TrainingRecipe, rows: int, row_length: int, *, taught: bool
) -> bool:
    """Whether one forward and backward pass of ``rows`` runs, all of them ``taught`` or none."""
    tokens = torch.zeros(rows, row_length, dtype=torch.long, device=model.device)
    kind = {"taught": torch.ones_like(tokens[:, 0], dtype=torch.bool)} if taught else {}
    positions = torch.arange(row_length, device=model.device).expand(rows, -1)
    half = recipe.weights == "float32" and recipe.precision != "float32"
    was_training = model.training
    model.train()
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            model(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=torch.ones_like(tokens),
                labels=tokens,
                use_cache=False,
                **kind,
            ).loss.backward()
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        torch.cuda.empty_cache()
    return True


@contextmanager
def _set_aside(model: PreTrainedModel, recipe: TrainingRecipe) -> Iterator[None]:
    """Hold the memory that the optimizer's moments will take, and a spare."""
    moments = sum(
        2 * each.numel() * (1 if recipe.optimizer == "adamw-8bit" else each.element_size())
        for each in model.parameters()
        if each.requires_grad
    )
    total = torch.cuda.get_device_properties(model.device).total_memory
    try:
        held = torch.empty(moments + int(_SPARE * total), dtype=torch.uint8, device=model.device)
    except torch.OutOfMemoryError:
        raise RunError(
            f"the weights and optimizer of this training ({moments / _GIB:.0f} GiB of moments) leave no room "
            f"on a GPU of {total / _GIB:.0f} GiB: {_WAYS_OUT}"
        ) from None
    yield
    del held


_WAYS_OUT = (
    "lower training.micro_batch or train_length, or set training.gradient_checkpointing=true, "
    "training.weights=bfloat16, training.optimizer=adamw-8bit or training.adapter={}"
)


@contextmanager
def explain_out_of_memory(
    model: PreTrainedModel,
    recipe: TrainingRecipe,
    micro_batch: int,
    row_length: int,
    *,
    taught: bool = False,
) -> Iterator[None]:
    """Turn torch's out-of-memory error into one line that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        held = ""
        if torch.cuda.is_available():
            total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
            held = f" after {torch.cuda.max_memory_allocated() / _GIB:.1f} of {total / _GIB:.1f} GiB"
        said = needs(model, recipe, row_length, micro_batch, taught=taught)
        raise RunError(
            f"out of memory{held} in a step of {micro_batch} x {row_length} tokens: {_WAYS_OUT}"
            f"{f' ({said})' if said else ''}"
        ) from error
