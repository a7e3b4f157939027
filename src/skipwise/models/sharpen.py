"""YaRN's attention temperature in the weights, for interpolations whose configs have no place for it.

Peng et al. 2023 (arXiv 2309.00071, section 3.4) divide attention scores by a temperature ``t`` with
``sqrt(1 / t) = 0.1 ln(alpha) + 1``, the attention factor ``f``; `transformers` multiplies cos and sin, and
so queries and keys, by it. Scores are linear in the query: here its last linear map is multiplied by ``f^2``,
and every engine computes the same from the checkpoint, with nothing new in its config.

What is multiplied: the weight of a norm on queries where there is one, else the projection's rows that make
queries, with their bias. Scores are multiplied as a whole: also what a partial rotation leaves as it is, and
in layers without positions, which stock YaRN does not reach; they see a longer row too. Layers that see a
window of it, in a config with RoPE parameters by layer type, keep their scores as they keep their RoPE: no
more tokens than in training compete there (`skipwise.rope`). Where one set serves all layers, all follow.

No name is trusted: a trial by 4, a power of two, which rounds nothing, is compared with the untouched weights
under four times the scale that the attention modules multiply scores by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PretrainedConfig, PreTrainedModel

from skipwise.errors import InputError
from skipwise.models.windows import decoder_of
from skipwise.rope import text_config
from skipwise.rope.reading import groups_of, has_window

TRIAL = 4.0
"""By what scores are multiplied to see whether both ways agree."""

EXACT, ROUNDED = 1e-3, 0.3
"""Differences, in those that the trial makes, that count as agreement. Observed in 132 families and forms: 0,
in bfloat16 too; where a bfloat16 weight is one less than what it multiplies by, up to 0.05."""

TOKENS = 13
"""Tokens of the row that is run."""

_SCALES = {"scaling": 1, "scale_attn": -1, "norm_factor": -1}
"""Attributes of attention modules that scores are multiplied (1) or divided (-1) by."""

_NORMS = ("q_norm", "q_layernorm", "query_layernorm")
_PROJECTIONS = ("q_b_proj", "q_proj")  # latent attention's second one first


@dataclass(frozen=True, slots=True)
class _Query:
    """A view of weights that queries are linear in: a norm may multiply by ``offset`` (1) more than these."""

    weight: torch.Tensor
    offset: float = 0.0

    def multiply(self, factor: float) -> None:
        exact = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)) + self.offset
        self.weight.copy_(exact * factor - self.offset)


@torch.no_grad()
def sharpen(model: PreTrainedModel, attention_factor: float) -> None:
    """Multiply the attention scores of ``model`` by ``attention_factor ** 2``, in its query weights.

    To be called once on what was loaded, before adapters are put on. Raises InputError for a factor that is
    no positive number, for quantised weights, and, with the weights as they were, for a family in which the
    result would not be what it should.
    """
    kind = model.config.model_type
    if not 0 < attention_factor < math.inf:
        raise InputError(f"attention_factor = {attention_factor}: must be a positive number")
    if getattr(model, "is_quantized", False):
        raise InputError(
            f"{kind}: attention_factor changes weights, which are quantised: quantise afterwards"
        )
    config = text_config(decoder_of(model).config)
    layers = list(_attention_layers(model, config))
    found = [_queries(layer, config) for layer in layers]
    queries = _once(query for each in found for query in each)
    clips = getattr(config, "clip_qkv", None)  # OLMo, DBRX: a larger query may be cut, if not in a short row
    if not layers or not all(found) or clips or not _agree(model, layers, queries):
        raise InputError(
            f"{kind}: its attention cannot be sharpened in the weights: leave attention_factor out, or set "
            "interpolation to yarn, whose factor is in the config"
        )
    for query in queries:
        query.multiply(attention_factor**2)


def _attention_layers(model: PreTrainedModel, config: PretrainedConfig) -> Iterator[nn.Module]:
    """The attention modules of ``model`` but those that keep the RoPE of their windows."""
    types = () if None in groups_of(config) else config.layer_types
    for module in decoder_of(model).modules():
        number = getattr(module, "layer_idx", None)
        scales = any(isinstance(vars(module).get(name), float) for name in _SCALES)
        if number is not None and scales and not (types and has_window(types[number])):
            yield module


def _queries(layer: Any, config: PretrainedConfig) -> list[_Query]:
    """The last weights that the queries of ``layer`` are linear in; none if they are not known."""
    children = dict(layer.named_children())
    for norm in (children[name] for name in _NORMS if name in children):
        return [_Query(*each) for leaf in norm.modules() for each in _norm_weights(leaf)]
    for projection in (children[name] for name in _PROJECTIONS if name in children):
        return [_Query(weight) for weight in projection.parameters()]
    heads = config.num_attention_heads
    if "qkv_proj" in children:  # Phi-3: queries of all heads, keys of all, values of all
        rows = heads * layer.head_dim
        return [_Query(weight[:rows]) for weight in children["qkv_proj"].parameters()]
    if "query_key_value" in children:  # GPT-NeoX: query, key and value of the first head, of the second ...
        fused = children["query_key_value"].parameters()
        return [_Query(weight.unflatten(0, (heads, 3, -1))[:, 0]) for weight in fused]
    return []


def _norm_weights(leaf: nn.Module) -> Iterator[tuple[torch.Tensor, float]]:
    """Its own weights, each with what the norm adds to it: Gemma's multiply by 1 + weight."""
    own = dict(leaf.named_parameters(recurse=False))
    for name, weight in own.items():
        given = torch.arange(1.0, weight.numel() + 1, device=weight.device, dtype=weight.dtype)
        zeros = {each: torch.zeros_like(value) for each, value in own.items()}
        left = functional_call(leaf, zeros, (given.view_as(weight),))
        yield weight, float(name == "weight" and bool(left.any()))


def _once(queries: Iterator[_Query]) -> list[_Query]:
    """Each tensor once, also where layers share it."""
    found = {each.weight.data_ptr(): each for each in queries}
    return list(found.values())


def _agree(model: PreTrainedModel, layers: Sequence[nn.Module], queries: Sequence[_Query]) -> bool:
    """Whether `TRIAL` in the weights does what it does as a scale; the weights come back bit for bit."""
    before = [query.weight.clone() for query in queries]
    was_training = model.training
    model.eval()
    try:
        plain = _logits(model)
        with _scaled(layers):
            expected = _logits(model)
        for query in queries:
            query.multiply(TRIAL)
        found = _logits(model)
    finally:
        model.train(was_training)
        for query, weight in zip(queries, before, strict=True):
            query.weight.copy_(weight)
    rounded = any(query.offset and query.weight.dtype.itemsize < 4 for query in queries)
    change = float((expected - plain).abs().max())
    error = float((found - expected).abs().max())
    return change > 0 and error <= (ROUNDED if rounded else EXACT) * change


@contextmanager
def _scaled(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Scores multiplied by `TRIAL` for a while, in the modules."""
    found: list[tuple[Any, str]] = [(each, name) for each in layers for name in _SCALES if name in vars(each)]
    before = [getattr(layer, name) for layer, name in found]
    try:
        for layer, name in found:
            setattr(layer, name, getattr(layer, name) * TRIAL ** _SCALES[name])
        yield
    finally:
        for (layer, name), value in zip(found, before, strict=True):
            setattr(layer, name, value)


def _logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits ``(TOKENS, vocabulary)`` of a short row."""
    size, device = text_config(model.config).vocab_size, model.device
    tokens = torch.randint(0, size, (1, TOKENS), generator=torch.Generator().manual_seed(0)).to(device)
    positions = torch.arange(TOKENS, device=device)[None]
    outputs = model(
        input_ids=tokens, position_ids=positions, attention_mask=torch.ones_like(tokens), use_cache=False
    )
    found: torch.Tensor = outputs.logits[0].float()
    return found
