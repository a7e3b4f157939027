"""The loss of a training step without its logits in memory: tokens by vocabulary, they would be the largest
tensor of all (128k tokens of Llama 3 in float32: 67 GB, and as much again for their gradients).

A family's own forward pass is run once for the hidden states, with logits of a single token, and then for each
chunk of hidden states under activation checkpointing, with its decoder standing still. So whatever the family
does after its decoder (scaled logits, soft caps, its own loss) is done by its own code, on fewer tokens; the
sums differ from stock in their order only. Nothing but ``model.forward`` of one instance is replaced, and it
is the stock one outside of training: evaluation and generation see logits.

What cannot be cut in this way (a loss that is no sum over tokens, such as that of balanced experts) is found
by comparing loss and gradients with stock on a short row, and left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import MethodType
from typing import Any, cast

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from skipwise.models.windows import decoder_of
from skipwise.rope import text_config

IGNORED = -100
"""The label of a token that is not trained on."""

_PROBE_TOKENS = 13
_PROBE_CHUNK = 5


def chunk_the_loss(model: PreTrainedModel, chunk: int) -> str | None:
    """Let ``model`` compute its training loss from logits of ``chunk`` tokens at a time; 0: leave it.

    None if it does now. Else the reason, one sentence, and the model is as it was. The loss is that of stock:
    the sum over labelled tokens, divided by ``num_items_in_batch`` where `Trainer` gives it and by their number
    otherwise. In training with labels, ``outputs.logits`` is then None.
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
        return f"{model.config.model_type}: the loss is computed from all logits at once ({reason})"
    _replace_forward(model, chunk)
    return None


def restore_forward(model: PreTrainedModel, forward: Any = None) -> None:
    """Give ``model`` back its class's forward pass, or the one of its own that it had before."""
    vars(model).pop("forward", None)
    if forward is not None:
        model.forward = forward


def _replace_forward(model: PreTrainedModel, chunk: int) -> None:
    stock = model.forward

    @wraps(stock)
    def forward(
        self: PreTrainedModel, *args: Any, labels: torch.Tensor | None = None, **inputs: Any
    ) -> CausalLMOutputWithPast:
        if labels is None or args or not self.training:
            given = inputs if labels is None else {"labels": labels, **inputs}
            return cast(CausalLMOutputWithPast, stock(*args, **given))
        items = inputs.pop("num_items_in_batch", None)
        hidden = _hidden_states(self, stock, inputs)
        return CausalLMOutputWithPast(loss=_loss(self, stock, hidden, labels, items, chunk))

    model.forward = MethodType(forward, model)


def _hidden_states(model: PreTrainedModel, stock: Callable[..., Any], inputs: dict[str, Any]) -> torch.Tensor:
    """What the decoder makes of ``inputs``: ``(batch, tokens, size)``. The head sees one token of each row."""
    decoder, found = decoder_of(model), []
    run = decoder.forward

    def keep(*args: Any, **given: Any) -> Any:
        outputs = run(*args, **given)
        found.append(outputs.last_hidden_state)
        return BaseModelOutputWithPast(last_hidden_state=outputs.last_hidden_state[:, -1:])

    with _decoder_runs(decoder, keep):
        stock(**inputs)
    return cast(torch.Tensor, found[0])


def _loss(
    model: PreTrainedModel,
    stock: Callable[..., Any],
    hidden: torch.Tensor,
    labels: torch.Tensor,
    items: torch.Tensor | int | None,
    chunk: int,
) -> torch.Tensor:
    """The stock loss of ``hidden (batch, tokens, size)``, from logits of ``chunk`` tokens at a time."""
    decoder = decoder_of(model)
    shifted = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:].flatten()[None].to(hidden.device)
    if items is None:
        items = (shifted != IGNORED).sum()

    def part(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        still = BaseModelOutputWithPast(last_hidden_state=states)
        with _decoder_runs(decoder, lambda *args, **inputs: still):  # noqa: ARG005
            outputs = stock(labels=targets, shift_labels=targets, num_items_in_batch=items, use_cache=False)
        return cast(torch.Tensor, outputs.loss)

    pieces = zip(hidden.flatten(0, 1)[None].split(chunk, 1), shifted.split(chunk, 1), strict=True)
    losses = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]
    return torch.stack(losses).sum()


@contextmanager
def _decoder_runs(decoder: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
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

    As `Trainer` would ask for it: positions with a gap, a label left out, a given number of items.
    """
    decoder, leaves = decoder_of(model), []
    size, device = int(text_config(model.config).vocab_size), model.device
    tokens = torch.arange(_PROBE_TOKENS, device=device)[None] * 7 % size
    positions = torch.arange(_PROBE_TOKENS, device=device)[None] + 3 * (
        torch.arange(_PROBE_TOKENS, device=device) > 5
    )
    labels = tokens.clone()
    labels[0, 4] = IGNORED

    def leaf(module: Any, args: Any, outputs: Any) -> Any:  # noqa: ARG001
        outputs.last_hidden_state = outputs.last_hidden_state.detach().requires_grad_()
        leaves.append(outputs.last_hidden_state)
        return outputs

    run = decoder.forward

    def cut(*args: Any, **inputs: Any) -> Any:
        return leaf(None, None, run(*args, **inputs))

    was_training = model.training
    model.train()
    try:
        with _decoder_runs(decoder, cut), torch.random.fork_rng(), torch.enable_grad():
            loss = model(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=torch.ones_like(tokens),
                labels=labels,
                num_items_in_batch=torch.tensor(_PROBE_TOKENS - 3, device=device),
                use_cache=False,
            ).loss
            (gradient,) = torch.autograd.grad(loss, leaves[0])
    finally:
        model.train(was_training)
    return loss.detach(), gradient.detach()


def differs(
    expected: tuple[torch.Tensor, torch.Tensor], found: tuple[torch.Tensor, torch.Tensor]
) -> str | None:
    """Why ``found`` is not ``expected``, both from `loss_and_gradient`; None if rounding explains it."""
    for name, first, second in zip(("loss", "gradient"), expected, found, strict=True):
        allowed = 1e-5 if first.dtype == torch.float32 else 2e-2
        error = float((second.double() - first.double()).norm() / first.double().norm())
        if not error <= allowed:
            return f"in chunks its {name} would be off by {error:.1g}"
    return None
