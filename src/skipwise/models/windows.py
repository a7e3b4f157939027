"""Sliding windows and attention chunks cut by position: row tokens see what they would see in the long row.

Stock models cut these masks by a token's index in the row. In a row that skips positions, index and position
part: a window of W then shows pairs that lie further apart than W, which inference never sees. Here the mask
of every windowed layer is made by `transformers`' own mask function with one more condition on the positions
``p`` of query and key: ``p_q - p_k < W`` for sliding layers, ``p_q // C == p_k // C`` for chunks of C. So
`eager`, `sdpa`, `xformers` and `flex_attention` (a block mask, nothing materialised) get what they know.
Flash attention cuts inside its kernel, by index: it is refused.

A forward pre-hook on the decoder of one model hands the masks in, as one mask or as one a layer type, the two
forms in which decoders take masks that are made outside. It acts on rows that come with ``position_ids`` and
a padding mask and without a cache, as in training; generation goes the stock way, its positions have no gaps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from transformers import PretrainedConfig, PreTrainedModel, masking_utils
from transformers.masking_utils import create_causal_mask

from skipwise.errors import InputError
from skipwise.rope import text_config

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(batch, head, query, key) indices -> whether the query may see the key."""

SPANS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Layer types that see a part of the row, and the config key of its length in tokens."""

_MAKERS: dict[str, Any] = masking_utils.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING
"""What makes the mask of the other layer types, those of layers that are no attention among them."""

BACKENDS = ("eager", "sdpa", "flex_attention", "xformers")
"""The back ends that take the masks made here."""


def windowed_layers(config: PretrainedConfig) -> dict[str, int]:
    """Layer types of ``config`` that see less than its window of tokens, with the length they see.

    Decoders without ``layer_types`` (mistral, mixtral, phi3, starcoder2 ...) slide in every layer or in none.
    """
    window = config.max_position_embeddings
    types = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    spans = {kind: getattr(config, key, None) for kind, key in SPANS.items() if kind in types}
    return {kind: span for kind, span in spans.items() if span and span < window}


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of ``model`` that makes the masks and runs the layers."""
    decoder = model.get_decoder()
    if not isinstance(decoder, PreTrainedModel):  # modernbert-decoder gives this name to its output layer
        decoder = model.base_model
    return cast(PreTrainedModel, decoder)


def cut_windows_by_position(model: PreTrainedModel) -> bool:
    """Let the windowed layers of this one model cut by position; False if it has none. Idempotent.

    Raises InputError for an attention back end that takes no mask, and for a decoder that mixes windows with
    layers that are no attention: these run through a row token by token, whatever the positions say.
    """
    decoder = decoder_of(model)
    if not windowed_layers(decoder.config):
        return False
    kind, attention = model.config.model_type, decoder.config._attn_implementation
    if attention not in BACKENDS:
        raise InputError(
            f"{kind} attends within windows, which {attention} cuts by index and not by position: "
            f"set attention to one of {', '.join(BACKENDS)}"
        )
    for maker in {decoder, model.base_model}:  # a model of several parts makes the masks of its decoder
        if _give_masks not in maker._forward_pre_hooks.values():
            maker.register_forward_pre_hook(_give_masks, with_kwargs=True)
    return True


def _give_masks(
    decoder: torch.nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The hook: ``attention_mask`` replaced by masks cut by position. It holds no state: copies keep it."""
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    padding = isinstance(mask, torch.Tensor) and mask.ndim == 2  # else made by the caller, or left to stock
    if args or positions is None or inputs.get("past_key_values") is not None or not padding:
        return None
    return args, inputs | {"attention_mask": _masks(decoder, inputs, positions, mask)}


def _masks(decoder: Any, inputs: dict[str, Any], positions: torch.Tensor, mask: torch.Tensor | None) -> Any:
    """The masks of all layers: one where they are all alike, else by layer type."""
    config = text_config(decoder.config)
    tokens = inputs.get("input_ids")
    tokens = inputs["inputs_embeds"] if tokens is None else tokens
    batch, length = tokens.shape[:2]
    positions = positions.expand(batch, -1)
    arguments: dict[str, Any] = {
        "config": config,
        "inputs_embeds": torch.empty(batch, length, 0, dtype=decoder.dtype, device=tokens.device),
        "attention_mask": mask,
        "past_key_values": None,
        "position_ids": positions,
    }
    spans = windowed_layers(config)
    cut = {
        kind: create_causal_mask(**arguments, and_mask_function=_within(kind, span, positions))
        for kind, span in spans.items()
    }
    types = set(getattr(config, "layer_types", None) or [])
    if not types:
        return cut["sliding_attention"]
    return {kind: _MAKERS[kind](**arguments) for kind in types - set(cut)} | cut


def _within(kind: str, span: int, positions: torch.Tensor) -> MaskFunction:
    def slide(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:  # noqa: ARG001
        return positions[batch, query] - positions[batch, key] < span

    def chunk(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:  # noqa: ARG001
        return positions[batch, query] // span == positions[batch, key] // span

    return slide if kind == "sliding_attention" else chunk
