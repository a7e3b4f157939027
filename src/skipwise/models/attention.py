"""Attention back ends: the one that suits a family, and xformers beside those that `transformers` brings.

`resolve_attention` turns the name a user gives into the one `transformers` is told. ``auto`` is ``sdpa``
where the family has it in the installed `transformers`, else ``eager`` (gemma2 caps its scores, gpt_oss has
sinks).

``xformers`` (Lefaudeux et al. 2022), when it is asked for, is entered in the two tables that `transformers`
keeps for such back ends, one of attention functions and one of mask functions. A row without padding and
windows goes to its causal kernel; any other mask, those cut by position included, becomes a bias.

``sdpa`` writes out a mask where a row continues a cache, which at 100,000 tokens is gigabytes and keeps it
from its fast kernels. `continue_caches` gives one model a form of it that does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from skipwise.errors import InputError
from skipwise.models.gptj import TABLE_FAMILIES
from skipwise.rope import text_config

XFORMERS = "xformers"

CONTINUED = "sdpa_continued"
"""``sdpa`` for rows that continue a cache."""

_NOT_IN_XFORMERS = {"softcap": "caps its attention scores", "s_aux": "has attention sinks"}
_NOT_IN_XFORMERS |= {"position_bias": "adds a bias to its attention scores"}
"""What some families ask of an attention function, and xformers does not have."""

_ALIGNMENT = 8
"""Numbers in a row of a bias must be a multiple of this in memory, say xformers' kernels."""


def resolve_attention(config: PretrainedConfig, attention: str = "auto") -> str:
    """The name of ``attention`` in `transformers`, for the model of ``config``.

    Raises InputError for ``xformers`` where it is not installed.
    """
    if attention == XFORMERS:
        _register_xformers()
    if attention != "auto":
        return attention
    if config.model_type in TABLE_FAMILIES:  # they become Phi
        return "sdpa"
    known = [each for each in (config, text_config(config)) if type(each) in MODEL_FOR_CAUSAL_LM_MAPPING]
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(known[0])] if known else None
    return "sdpa" if model_class is None or model_class._supports_sdpa else "eager"


def _register_xformers() -> None:
    _xformers()
    ALL_ATTENTION_FUNCTIONS.register(XFORMERS, xformers_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(XFORMERS, xformers_mask)


def _xformers() -> Any:
    """Its module of operators, imported only when somebody wants to run it."""
    try:
        return import_module("xformers.ops")
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"attention xformers needs its package ({reason}): pip install xformers, or choose sdpa"
        ) from error


def xformers_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Of ``query (batch, heads, queries, size)``: ``(batch, queries, heads, value size)``, and no weights.

    ``key (batch, key heads, keys, size)`` and ``value (batch, key heads, keys, value size)``: each key head
    serves a group of neighbouring heads. ``attention_mask (batch, 1 or heads, queries, keys)``: true where a
    query sees a key, or numbers to add to the scores; None: the lower triangle, but for a single query.
    ``scaling``: of the scores, ``size ** -0.5`` unless given. ``dropout``: a probability.

    Raises InputError for what a family asks besides, and for tensors that xformers has no kernel for.
    """
    for name, meaning in _NOT_IN_XFORMERS.items():
        if others.get(name) is not None:
            kind = getattr(getattr(module, "config", None), "model_type", "this model")
            raise InputError(f"{kind} {meaning}, which xformers does not: set attention to eager")
    ops, heads, queries = _xformers(), query.shape[1], query.shape[2]
    dtype = _computed_in(value.dtype, value.device.type)
    key, value = (each.repeat_interleave(heads // each.shape[1], dim=1) for each in (key, value))
    rows = [each.transpose(1, 2).to(dtype) for each in (query, key, value)]  # (batch, length, heads, size)
    bias: Any = None
    if attention_mask is not None:
        bias = _bias(attention_mask, dtype).expand(len(query), heads, -1, -1)
    elif queries > 1 and (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        bias = ops.LowerTriangularMask()
    try:
        return ops.memory_efficient_attention(*rows, attn_bias=bias, p=dropout, scale=scaling), None
    except NotImplementedError as error:  # a list of its kernels, with what each one does not take
        what = f"{str(dtype).removeprefix('torch.')} heads of size {query.shape[-1]} on {query.device.type}"
        raise InputError(f"xformers has no kernel for {what}: set attention to sdpa") from error


def xformers_mask(
    *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", **options: Any
) -> torch.Tensor | None:
    """What `transformers` makes for ``sdpa``, as a bias; None where that is the plain lower triangle."""
    mask = sdpa_mask(device=device, **options)
    return None if mask is None else _bias(mask, _computed_in(dtype, torch.device(device).type))


def _computed_in(dtype: torch.dtype, device: str) -> torch.dtype:
    """That of the matrix products: norms of queries and keys may leave autocast's."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype


def _bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``mask`` as numbers to add to the scores, in rows as long in memory as the kernels want.

    What is hidden gets half of the lowest number, and no infinity: a query of padding that sees nothing then
    gets some average instead of NaN, in its gradient too.
    """
    if mask.dtype == dtype and mask.stride(-1) == 1 and mask.stride(-2) % _ALIGNMENT == 0:
        return mask
    keys, lowest = mask.shape[-1], torch.finfo(dtype).min / 2
    room = torch.zeros(*mask.shape[:-1], keys + -keys % _ALIGNMENT, dtype=dtype, device=mask.device)
    bias = room[..., :keys]
    if mask.dtype == torch.bool:
        return bias.masked_fill_(~mask, lowest)
    return bias.copy_(mask.clamp(min=lowest))


def continue_caches(model: PreTrainedModel) -> bool:
    """Let ``model``, if its attention is ``sdpa``, continue a cache without a mask that is written out.

    True if no row without padding needs such a mask (any more), windows apart.
    """
    attention = str(text_config(model.config)._attn_implementation)
    if attention != "sdpa":
        return attention == CONTINUED or attention.startswith("flash_attention")
    ALL_ATTENTION_FUNCTIONS.register(CONTINUED, continued_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(CONTINUED, continued_mask)
    model.set_attn_implementation(CONTINUED)
    return True


def continued_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """``sdpa``; without a mask the last query sees every key, the one before all but the last, and so on.

    Shapes as in `xformers_attention`.
    """
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is not None or queries in (1, keys) or others.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    groups = query.shape[1] // key.shape[1]  # the kernel behind this mask wants as many key heads as heads
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    # The kernels below are called past autocast, which casts for sdpa: in float32 they are many times slower.
    query, key, value = (each.to(_computed_in(each.dtype, each.device.type)) for each in (query, key, value))
    if query.device.type == "cpu" and not dropout and key.shape[-1] == value.shape[-1]:
        found = _in_two_parts(query, key, value, scaling)
    else:
        seen = causal_lower_right(queries, keys)
        found = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, dropout_p=dropout, scale=scaling
        )
    return found.transpose(1, 2).contiguous(), None


def _in_two_parts(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention to all that was cached, and to the rest under a causal mask, put together.

    The CPU has no kernel for the shifted triangle; its causal one tells the sum under each softmax (its
    logarithm, over the keys), by which two softmaxes make one.
    """
    cached = key.shape[2] - query.shape[2]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    before, before_sum = flash(query, key[:, :, :cached], value[:, :, :cached], scale=scaling)
    own, own_sum = flash(query, key[:, :, cached:], value[:, :, cached:], is_causal=True, scale=scaling)
    share = torch.sigmoid(before_sum - own_sum)[..., None]  # (batch, heads, queries, 1), float32
    found: torch.Tensor = share * before + (1 - share) * own
    return found.to(query.dtype)


def continued_mask(
    *, q_length: int, kv_length: int, mask_function: Any = causal_mask_function, **options: Any
) -> torch.Tensor | None:
    """What `transformers` makes for ``sdpa``; None where a query sees all tokens before it."""
    padding, plain = options.get("attention_mask"), options.get("allow_is_causal_skip", True)
    if plain and mask_function is causal_mask_function and (padding is None or bool(padding.all())):
        return None
    return sdpa_mask(q_length=q_length, kv_length=kv_length, mask_function=mask_function, **options)
