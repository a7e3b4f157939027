"""Rows taught by the untouched model, so that what it could do inside its own window, it keeps.

Interpolation and a few hundred steps on one kind of text cost a model some of what it knew (LongReD, Dong et
al. 2025, arXiv 2502.07365, measures that and restores it by distilling hidden states on short text). Here a
row that is ``taught``, whose positions lie in the original window, is not learned from its text: the model
learns the whole prediction that the untouched model makes for every token, by the Kullback-Leibler divergence

    sum over tokens of  sum over v of  p(v) (log p(v) - log q(v)),    p the teacher, q the model.

All other rows are learned from their text as ever. Both kinds are divided by the number of labelled tokens of
the optimizer step, so a token counts the same in either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from types import MethodType
from typing import Any, cast

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from skipwise.errors import InputError
from skipwise.train.loss import IGNORED, completed, decoded, labels_ahead, restore_forward


@contextmanager
def taught_by(
    model: PreTrainedModel, teacher: PreTrainedModel | None, *, chunk: int = 1024, compiled: bool = False
) -> Iterator[None]:
    """While this lasts, ``model`` learns rows that are ``taught`` from ``teacher``; None: nothing changes.

    ``model``: with adapters or without. ``teacher``: the untouched model, with the config it was trained
    with, on the device of the training; it is set to evaluate, without gradients, and its weights never
    change. ``chunk``: tokens whose logits are in memory at once, 0 for all. ``compiled``: run the teacher's
    layers through `torch.compile` meanwhile. Raises InputError for a family whose predictions cannot be made
    from its decoder's hidden states.
    """
    if teacher is None:
        yield
        return
    model = cast(PreTrainedModel, getattr(model, "get_base_model", lambda: model)())
    teacher.requires_grad_(requires_grad=False).eval()
    _check(teacher)
    layers = [each for each in teacher.modules() if compiled and isinstance(each, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile()  # one graph for any number of rows, which is not the same in every micro-batch
    stock = vars(model).get("forward")
    _replace_forward(model, teacher, chunk)
    try:
        yield
    finally:
        restore_forward(model, stock)
        for layer in layers:
            vars(layer).pop("_compiled_call_impl")  # the class has None


def _check(teacher: PreTrainedModel) -> None:
    """Raises InputError unless the hidden states of ``teacher`` lead to its logits."""
    tokens = torch.arange(8, device=teacher.device)[None]
    row = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False}
    with torch.no_grad():
        expected = teacher.forward(**row).logits.float()
        try:
            outputs = decoded(teacher, teacher.forward, row)
            found = completed(teacher, teacher.forward, outputs, outputs.last_hidden_state).logits
            error = float((found - expected).norm() / expected.norm())
            most = 2e-2 if teacher.dtype.itemsize < 4 else 1e-3
            reason = "" if error <= most else f"they would be off by {error:.2g}"
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as failed:
            reason = f"{type(failed).__name__}: {(str(failed).splitlines() or [''])[0]}"
    if reason:
        kind = teacher.config.model_type
        raise InputError(
            f"data.beside: {kind} makes its logits not of hidden states alone ({reason}): leave taught out"
        )


def _replace_forward(model: PreTrainedModel, teacher: PreTrainedModel, chunk: int) -> None:
    stock = getattr(model.forward, "__func__", model.forward)

    def forward(
        self: PreTrainedModel,
        *args: Any,
        labels: torch.Tensor | None = None,
        taught: torch.Tensor | None = None,
        **inputs: Any,
    ) -> CausalLMOutputWithPast:
        if labels is None or taught is None or not self.training or not taught.any():
            given = inputs if labels is None else {"labels": labels, **inputs}
            return cast(CausalLMOutputWithPast, stock(self, *args, **given))
        items = inputs.pop("num_items_in_batch", None)
        if items is None:
            items = (labels_ahead(labels) != IGNORED).sum()
        run = MethodType(stock, self)
        outputs = decoded(self, run, inputs)  # once, of all rows
        hidden = outputs.last_hidden_state
        counted = labels_ahead(labels[taught]) != IGNORED
        own = partial(completed, self, run, outputs)
        loss = _divergence(own, hidden[taught], teacher, _rows_of(inputs, taught), counted, chunk) / items
        if not taught.all():
            given = {"labels": labels[~taught], "num_items_in_batch": items}
            loss = loss + own(hidden[~taught], **given).loss
        return CausalLMOutputWithPast(loss=loss)

    forward.__signature__ = signature(stock)  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)


def _rows_of(inputs: dict[str, Any], chosen: torch.Tensor) -> dict[str, Any]:
    """``inputs`` with the rows that are ``chosen``, of every tensor that has rows."""
    return {
        name: value[chosen] if isinstance(value, torch.Tensor) and value.shape[:1] == chosen.shape else value
        for name, value in inputs.items()
    }


def _divergence(
    own: Callable[[torch.Tensor], Any],
    hidden: torch.Tensor,
    teacher: PreTrainedModel,
    inputs: dict[str, Any],
    counted: torch.Tensor,
    chunk: int,
) -> torch.Tensor:
    """The divergence summed over the tokens that are ``counted``, bool (rows, tokens).

    ``own``: what the model makes of its ``hidden`` states, (rows, tokens, size). ``inputs``: of these rows.
    """
    with torch.no_grad():
        known = decoded(teacher, teacher.forward, inputs | {"use_cache": False})

    def part(hidden: torch.Tensor, taught: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = completed(teacher, teacher.forward, known, taught).logits
            expected = logits.float().log_softmax(-1)
        found = own(hidden).logits.float().log_softmax(-1)
        apart = torch.nn.functional.kl_div(found, expected, reduction="none", log_target=True).sum(-1)
        return (apart * counted).sum()

    size = chunk or counted.numel()
    flat = (each.flatten(0, 1)[None] for each in (hidden, known.last_hidden_state, counted))
    pieces = zip(*(each.split(size, 1) for each in flat), strict=True)
    return torch.stack([checkpoint(part, *piece, use_reentrant=False) for piece in pieces]).sum()
