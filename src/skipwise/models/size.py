"""What a model takes, from its config alone: parameters, cache, what a forward pass computes and keeps.

The model is built on torch's meta device, where tensors have shapes and no storage: parameters are counted
exactly, and in seconds, whatever the size. Then a row is run through it (`skipwise.models.trace`).

Where a family's forward pass needs values and not only shapes, as some routers of experts do, ``traced`` is
False: parameters are still exact, all else is estimated from the shapes of the matrices.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from skipwise.errors import InputError
from skipwise.models.trace import LIGER_FAMILIES, TOKENS, Kept, OnGpu, Training, kept_for_backward, row
from skipwise.rope.reading import text_config

_NOTHING = 100
"""A level of logging that no message has."""


def _grouped(tokens: tuple[int, ...], experts: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Operations of ``(tokens, in)`` times ``(experts, in, out)``, each token by one expert."""
    return 2 * tokens[0] * experts[-2] * experts[-1]


_EXPERTS = {torch.ops.aten._grouped_mm: _grouped}
"""Missing in torch's own table."""


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention: heads x (size of a key + size of a value), and its window in tokens, if any."""

    width: int
    window: int | None


@dataclass(frozen=True, slots=True)
class Cached:
    """One layer's cache: numbers a token, and the tokens beyond which it keeps no more, if any."""

    numbers: int
    window: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Sizes of one model. Counts are of numbers, not bytes, unless a field says so.

    parameters: all, tied ones once. embedding: of the input embeddings. head: of the output matrix, which is
    among ``parameters`` a second time only if not ``tied``. layer: of the largest layer. matrices: of the
    linear maps within layers (what LoRA adapts and QLoRA quantizes); matrix_sides: the sum of their inputs
    and outputs, so that adapters of rank r have r times as many; largest_matrix: of the largest of all.
    flops: of the matrix products of a forward pass, a token, attention's own products apart. kept_liger: with
    Liger's kernels for norms and MLPs, if (``liger``) it has such for the family.
    """

    family: str
    parameters: int
    embedding: int
    head: int
    tied: bool
    hidden: int
    vocabulary: int
    layers: int
    layer: int
    matrices: int
    matrix_sides: int
    largest_matrix: int
    flops: float
    attention: tuple[Attention, ...]
    cache: tuple[Cached, ...]
    kept: dict[Training, Kept] = field(hash=False)
    kept_liger: dict[Training, Kept] = field(hash=False)
    liger: bool
    traced: bool


def model_size(config: PretrainedConfig) -> ModelSize:
    """Sizes of the language model that ``config`` describes. Raises InputError if it cannot be built."""
    config = text_config(config)
    model = _build(config)
    layers = _layers(model)
    linear = [each for part in layers for each in part.modules() if isinstance(each, nn.Linear)]
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    try:
        with _quiet():
            flops, attention, cache = _forward(model)
            kept = {each: kept_for_backward(model, layers, each) for each in get_args(Training)}
            known = config.model_type in LIGER_FAMILIES
            liger = {each: kept_for_backward(model, layers, each, liger=known) for each in get_args(Training)}
        traced = True
    except Exception:  # noqa: BLE001 - the code of a hundred families, on tensors without values
        flops, attention, cache, kept = _estimate(model, layers, linear)
        liger = kept
        traced = False
    return ModelSize(
        family=config.model_type,
        parameters=_count(model),
        embedding=_count(embedding),
        head=_count(head) if head is not None else 0,
        tied=head is not None and head.weight is embedding.weight,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        layers=len(layers),
        layer=max(map(_count, layers), default=0),
        matrices=sum(each.weight.numel() for each in linear),
        matrix_sides=sum(each.in_features + each.out_features for each in linear),
        largest_matrix=max((each.numel() for each in model.parameters() if each.ndim > 1), default=0),
        flops=flops,
        attention=attention,
        cache=_latent(config, cache),
        kept=kept,
        kept_liger=liger,
        liger=config.model_type in LIGER_FAMILIES,
        traced=traced,
    )


def _build(config: PretrainedConfig) -> PreTrainedModel:
    """The model on the meta device, in bfloat16."""
    try:
        with torch.device("meta"), _quiet():
            try:
                return _from_config(config, "sdpa")
            except (ValueError, ImportError):  # this family has no sdpa in transformers
                return _from_config(config, "eager")
    except Exception as error:  # the classes of a hundred families: whatever they raise
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise InputError(f"no {config.model_type} model can be built from this config ({reason})") from error


def _from_config(config: PretrainedConfig, attention: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, attn_implementation=attention, trust_remote_code=False
    )
    model.train()
    return model


def _layers(model: nn.Module) -> list[nn.Module]:
    """The decoder's layers: what gradient checkpointing recomputes one by one."""
    found: list[nn.Module] = [
        each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)
    ]
    if found:
        return found
    lists = [each for each in model.modules() if isinstance(each, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def _count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def _forward(model: PreTrainedModel) -> tuple[float, tuple[Attention, ...], tuple[Cached, ...]]:
    """FLOPs of a token, the attention of every layer, and its cache, from one forward pass."""
    seen = OnGpu(autocast=False)
    cache = DynamicCache(config=model.config)
    counter = FlopCounterMode(display=False, custom_mapping=_EXPERTS)
    with torch.no_grad(), counter, seen:
        model(row(), past_key_values=cache, use_cache=True)
    spans = _windows(model.config, len(cache.layers))
    attention = zip(seen.widths, _windows(model.config, len(seen.widths)), strict=True)
    keys = [(getattr(each, "keys", None), getattr(each, "values", None)) for each in cache.layers]
    cached = [
        Cached(key.shape[1] * (key.shape[-1] + value.shape[-1]), span)
        for (key, value), span in zip(keys, spans, strict=True)
        if key is not None and value is not None and key.ndim == 4  # others keep a state of fixed size
    ]
    return counter.get_total_flops() / TOKENS, tuple(Attention(*each) for each in attention), tuple(cached)


def _windows(config: PretrainedConfig, count: int) -> list[int | None]:
    """The window of each of ``count`` layers that attend, as `skipwise.models.windows` reads a config."""
    spans = {
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    types = [each for each in getattr(config, "layer_types", None) or [] if "attention" in each]
    if not types:
        return [spans["sliding_attention"]] * count
    return [spans.get(each) for each in (types * count)[:count]]


def _latent(config: PretrainedConfig, cache: tuple[Cached, ...]) -> tuple[Cached, ...]:
    """Multi-head latent attention is cached as its latents (DeepSeek-V2, arXiv 2405.04434), as servers do.

    `transformers` itself may keep the full keys and values that are made of them.
    """
    rank = getattr(config, "kv_lora_rank", None)
    if not rank:
        return cache
    return tuple(Cached(rank + config.qk_rope_head_dim, each.window) for each in cache)


def _estimate(
    model: PreTrainedModel, layers: list[nn.Module], linear: list[nn.Linear]
) -> tuple[float, tuple[Attention, ...], tuple[Cached, ...], dict[Training, Kept]]:
    """The same from the shapes alone, as if every matrix's input and output were kept."""
    config = model.config
    heads = getattr(config, "num_attention_heads", 1)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    windows = _windows(config, len(layers))
    sides = 2.0 * sum(each.in_features + each.out_features for each in linear)
    kept: dict[Training, Kept] = {}
    shares: dict[Training, tuple[float, int]] = {
        **{"float32": (1.0, 10), "bfloat16": (1.0, 0)},
        **{"lora": (1.4, 0), "qlora": (1.15, 0)},  # so much more in a Llama
    }
    for training, (share, hiddens) in shares.items():
        everything = share * sides + hiddens * config.hidden_size * len(layers)
        inputs = config.hidden_size * len(layers) * (4.0 if training == "float32" else 2.0)
        kept[training] = Kept(everything, everything / max(len(layers), 1), inputs)
    return (
        2.0 * (_count(model) - _count(model.get_input_embeddings())),
        tuple(Attention(2 * heads * size, each) for each in windows),
        tuple(Cached(2 * shared * size, each) for each in windows),
        kept,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what libraries say about a model that nobody runs."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(_NOTHING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
