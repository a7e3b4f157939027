"""The loss of a training step without its logits in memory: tokens by vocabulary, they would be the largest
tensor of all (128k tokens of Llama 3 in float32: 67 GB, and as much again for their gradients).

A family's own forward pass is run once for the hidden states, with logits of a single token, and then for
each chunk of hidden states under activation checkpointing, with its decoder standing still. So whatever the
family does after its decoder (scaled logits, soft caps, its own loss) is done by its own code, on fewer
tokens; the sums differ from stock in their order only. Nothing but ``model.forward`` of one instance is
replaced, and outside of training that is the stock one: evaluation and generation see logits.

What cannot be cut in this way (a loss that is no sum over tokens, such as that of balanced experts) is found
by comparing loss and gradients with stock on a short row, and left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from types import MethodType
from typing import Any, cast

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from skipwise.models.windows import decoder_of
from skipwise.rope import text_config

IGNORED = -100
"""The label of a token that is not trained on."""

_PROBE_TOKENS = 13
_PROBE_CHUNK = 5


def chunk_the_loss(model: PreTrainedModel, chunk: int) -> str | None:
    """Let ``model`` compute its training loss from logits of ``chunk`` tokens at a time; 0: leave it.

    None if it does now. Else the reason, one sentence, and the model is as it was. The loss is that of stock:
    the sum over labelled tokens, divided by ``num_items_in_batch`` where `Trainer` gives it and by their
    number otherwise. In training with more labels than ``chunk``, ``outputs.logits`` is then None.
    """
    if not chunk:
        return None
    stock = vars(model).get("forward")
    expected = loss_and_gradient(model)
    _replace_forward(model, _PROBE_CHUNK)
    try:
        reason = differs(expected, loss_and_gradient(model))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    restore_forward(model, stock)
    if reason is not None:
        kind = model.config.model_type
        return f"{kind} computes its loss from all logits at once: in chunks of {chunk} tokens {reason}"
    _replace_forward(model, chunk)
    return None


def restore_forward(model: PreTrainedModel, forward: Any = None) -> None:
    """Give ``model`` back its class's forward pass, or the one of its own that it had before."""
    vars(model).pop("forward", None)
    if forward is not None:
        model.forward = forward


def _replace_forward(model: PreTrainedModel, chunk: int) -> None:
    stock = getattr(model.forward, "__func__", model.forward)  # bound to no instance: the model may be copied

    def forward(
        self: PreTrainedModel, *args: Any, labels: torch.Tensor | None = None, **inputs: Any
    ) -> CausalLMOutputWithPast:
        if labels is None or labels.numel() <= chunk or args or not self.training:
            given = inputs if labels is None else {"labels": labels, **inputs}
            return cast(CausalLMOutputWithPast, stock(self, *args, **given))
        items = inputs.pop("num_items_in_batch", None)
        run = MethodType(stock, self)
        outputs = decoded(self, run, inputs)
        return CausalLMOutputWithPast(loss=_loss(self, run, outputs, labels, items, chunk))

    # Trainer reads there what a model accepts. (With functools.wraps, Accelerate undoes this one too.)
    forward.__signature__ = signature(stock)  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)


def labels_ahead(labels: torch.Tensor) -> torch.Tensor:
    """What every token of ``labels`` (rows, tokens) is to predict: the label one further, none at the end."""
    return torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]


def decoded(model: PreTrainedModel, run: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """What the decoder of ``model``, whose forward pass is ``run``, makes of ``inputs``; the head sees one
    token of each row.
    """
    decoder, found = decoder_of(model), []
    decode = decoder.forward

    def keep(*args: Any, **given: Any) -> Any:
        found.append(decode(*args, **given))
        return replace(found[0], last_hidden_state=found[0].last_hidden_state[:, -1:])

    with _decoding_by(keep, decoder):
        run(**inputs)
    return found[0]


def completed(
    model: PreTrainedModel, run: Callable[..., Any], outputs: Any, hidden: torch.Tensor, **labels: Any
) -> Any:
    """What ``model``, whose forward pass is ``run``, goes on to make of ``hidden`` (rows, tokens, size).

    ``outputs``: of its decoder, which stands still; ``hidden`` is a part of its last hidden states.
    """
    still = replace(outputs, last_hidden_state=hidden)
    with _decoding_by(lambda *args, **inputs: still, decoder_of(model)):  # noqa: ARG005
        return run(inputs_embeds=hidden, use_cache=False, **labels)  # some look at the shape of what comes in


def _loss(
    model: PreTrainedModel,
    run: Callable[..., Any],
    outputs: Any,
    labels: torch.Tensor,
    items: torch.Tensor | int | None,
    chunk: int,
) -> torch.Tensor:
    """The stock loss of the decoder's ``outputs``, from logits of ``chunk`` tokens at a time."""
    hidden = outputs.last_hidden_state.flatten(0, 1)[None]  # (1, batch * tokens, size)
    targets = labels_ahead(labels).flatten()[None].to(hidden.device)
    if items is None:
        items = (targets != IGNORED).sum()

    def part(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        given = {"labels": targets, "shift_labels": targets, "num_items_in_batch": items}
        return cast(torch.Tensor, completed(model, run, outputs, hidden, **given).loss)

    pieces = zip(hidden.split(chunk, 1), targets.split(chunk, 1), strict=True)
    return torch.stack([checkpoint(part, *piece, use_reentrant=False) for piece in pieces]).sum()


@contextmanager
def _decoding_by(forward: Callable[..., Any], decoder: torch.nn.Module) -> Iterator[None]:
    """``decoder(...)`` runs ``forward`` for a while; hooks and wrappers around the module stay."""
    before = vars(decoder).get("forward")
    decoder.forward = forward
    try:
        yield
    finally:
        vars(decoder).pop("forward")
        if before is not None:
            decoder.forward = before


def loss_and_gradient(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Training loss on a short row, and its gradient by the decoder's output ``(1, tokens, size)``.

    The row comes as `Trainer` gives it: positions with a gap, a token without label, a number of items.
    """
    decoder, device, found = decoder_of(model), model.device, []
    index = torch.arange(_PROBE_TOKENS, device=device)[None]
    tokens = 7 * index % int(text_config(model.config).vocab_size)
    inputs = {
        "input_ids": tokens,
        "position_ids": index + 3 * (index > 5),
        "attention_mask": torch.ones_like(tokens),
        "labels": tokens.where(index != 4, IGNORED),
        "num_items_in_batch": torch.tensor(_PROBE_TOKENS - 3, device=device),
    }
    decode = decoder.forward

    def cut(*args: Any, **given: Any) -> Any:
        outputs = decode(*args, **given)
        found.append(outputs.last_hidden_state.detach().requires_grad_())
        outputs.last_hidden_state = found[-1]
        return outputs

    was_training, devices = model.training, [device] if device.type == "cuda" else []
    model.train()
    try:
        with _decoding_by(cut, decoder), torch.random.fork_rng(devices), torch.enable_grad():
            loss = model.forward(**inputs, use_cache=False).loss  # hooks are for rows
            (gradient,) = torch.autograd.grad(loss, found[0])
    finally:
        model.train(was_training)
    return loss.detach(), gradient.detach()


def differs(
    expected: tuple[torch.Tensor, torch.Tensor], found: tuple[torch.Tensor, torch.Tensor]
) -> str | None:
    """How ``found`` differs from ``expected``, both by `loss_and_gradient`; None if it is rounding."""
    kind = expected[1].device.type
    halves = expected[1].dtype.itemsize < 4 or torch.is_autocast_enabled(kind)
    for name, first, second in zip(("loss", "gradient"), expected, found, strict=True):
        error = float((second.double() - first.double()).norm() / first.double().norm())
        if not error <= (2e-2 if halves else 1e-5):
            return f"its {name} would be off by {error:.2g}"
    return None
