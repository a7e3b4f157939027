"""Rows taught by the untouched model, so that what it could do inside its own window, it keeps.

Interpolation and a few hundred steps on one kind of text cost a model some of what it knew (LongReD, Dong et
al. 2025, arXiv 2502.07365, measures and restores it by distillation). Here a row that is ``taught``, whose
positions lie in the original window, is not learned from its text: the model learns the whole prediction that
the untouched model makes for every token, by the Kullback-Leibler divergence

    sum over tokens of  sum over v of  p(v) (log p(v) - log q(v)),    p the teacher, q the model.

All other rows are learned from their text as ever. Both kinds are divided by the number of
labelled tokens of the optimizer step, so a token counts the same in either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from types import MethodType
from typing import Any, cast

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from skipwise.models.windows import decoder_of
from skipwise.train.loss import IGNORED, decoded, labels_ahead, logits_of, restore_forward


@contextmanager
def taught_by(
    model: PreTrainedModel, teacher: PreTrainedModel | None, *, chunk: int = 1024, compiled: bool = False
) -> Iterator[None]:
    """While this lasts, ``model`` learns rows that are ``taught`` from ``teacher``; None: nothing changes.

    ``teacher``: the untouched model, with the config it was trained with, on the device of the training; it
    is set to evaluate and never changed. ``chunk``: tokens whose logits are in memory at once, 0 for all.
    ``compiled``: run the teacher's layers through `torch.compile` as well.
    """
    if teacher is None:
        yield
        return
    model = cast(PreTrainedModel, getattr(model, "get_base_model", lambda: model)())  # adapters and all
    teacher.requires_grad_(requires_grad=False).eval()
    layers = [each for each in teacher.modules() if isinstance(each, GradientCheckpointingLayer)]
    for layer in layers if compiled else ():
        layer.compile(dynamic=False)
    stock = vars(model).get("forward")
    _replace_forward(model, teacher, chunk)
    try:
        yield
    finally:
        restore_forward(model, stock)


def _replace_forward(model: PreTrainedModel, teacher: PreTrainedModel, chunk: int) -> None:
    stock = getattr(model.forward, "__func__", model.forward)

    def forward(
        self: PreTrainedModel,
        *args: Any,
        labels: torch.Tensor | None = None,
        taught: torch.Tensor | None = None,
        **inputs: Any,
    ) -> CausalLMOutputWithPast:
        if labels is None or taught is None or not self.training:
            given = inputs if labels is None else {"labels": labels, **inputs}
            return cast(CausalLMOutputWithPast, stock(self, *args, **given))
        items = inputs.pop("num_items_in_batch", None)
        if items is None:
            items = (labels_ahead(labels) != IGNORED).sum()
        losses = []
        if len(rows := (~taught).nonzero()[:, 0]):
            part = _rows_of({"labels": labels, **inputs}, rows)
            losses.append(stock(self, **part, num_items_in_batch=items).loss)
        if len(rows := taught.nonzero()[:, 0]):
            part = _rows_of({"labels": labels, **inputs}, rows)
            losses.append(_divergence(self, MethodType(stock, self), teacher, part, chunk) / items)
        return CausalLMOutputWithPast(loss=torch.stack(losses).sum())

    forward.__signature__ = signature(stock)  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)


def _rows_of(inputs: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """The rows of every tensor that has them; all of them as they are, without a copy."""
    count = len(inputs["labels"])
    if len(rows) == count:
        return dict(inputs)
    return {
        name: value[rows] if isinstance(value, torch.Tensor) and value.ndim and len(value) == count else value
        for name, value in inputs.items()
    }


def _divergence(
    model: PreTrainedModel, run: Any, teacher: PreTrainedModel, inputs: dict[str, Any], chunk: int
) -> torch.Tensor:
    """The divergence summed over the tokens that are followed by a label."""
    counted = (labels_ahead(inputs.pop("labels")) != IGNORED).flatten()
    student = decoded(decoder_of(model), run, inputs)
    with torch.no_grad():
        known = decoded(decoder_of(teacher), teacher.forward, inputs)

    def part(own: torch.Tensor, taught: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            expected = logits_of(teacher, teacher.forward, known, taught).float().log_softmax(-1)
        found = logits_of(model, run, student, own).float().log_softmax(-1)
        apart = torch.nn.functional.kl_div(found, expected, reduction="none", log_target=True).sum(-1)
        return (apart * counted).sum()

    hidden = [each.last_hidden_state.flatten(0, 1)[None] for each in (student, known)]
    size = chunk or len(counted)
    pieces = zip(*(each.split(size, 1) for each in hidden), counted.split(size), strict=True)
    return torch.stack([checkpoint(part, *piece, use_reentrant=False) for piece in pieces]).sum()
