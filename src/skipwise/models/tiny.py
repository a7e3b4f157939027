"""A tiny checkpoint of a config: what decides masks and angles is kept, all the rest is small and random.

Kept: the model class, the size of a head and the share of it that rotates, the RoPE parameters, windows, one
layer of each kind in the config's order, whether heads share keys and values. Small: the number of layers and
heads (the hidden size follows from them), feed-forward layers, experts, the vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from skipwise.errors import InputError
from skipwise.models.gptj import TABLE_FAMILIES, with_small_table

HEADS, LAYERS = 4, 2
"""At most so many heads (CodeGen's projection comes in four slices), at least so many layers."""


def _at_most(limit: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), limit)


LIMITS = {
    **_at_most(256, "vocab_size vocab_size_per_layer_input"),
    **_at_most(64, "intermediate_size ffn_hidden_size ffn_dim n_inner shared_intermediate_size"),
    **_at_most(64, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size"),
    **_at_most(64, "intermediate_size_mlp dense_intermediate_size"),
    **_at_most(32, "q_lora_rank kv_lora_rank hidden_size_per_layer_input"),
    **_at_most(16, "mamba_chunk_size"),  # of no effect but time and memory
    **_at_most(4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    **_at_most(2, "num_experts_per_tok moe_topk moe_k"),
    **_at_most(1, "n_group topk_group n_shared_experts first_k_dense_replace"),
    **_at_most(0, "num_kv_shared_layers"),
}
"""The largest value of a field of that name, in configs that have it."""

_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
_KINDS = 4
"""A list with an entry a layer tells kinds of layers apart if it has no more different ones."""


def tiny(config: PretrainedConfig) -> PretrainedConfig:
    """``config``, of a decoder without other parts, in small."""
    values = config.to_dict()  # a deep copy
    for key in ("quantization_config", "dtype"):
        values.pop(key, None)
    heads = min(HEADS, config.num_attention_heads)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    small: dict[str, Any] = {
        key: min(values[key], limit) for key, limit in LIMITS.items() if isinstance(values.get(key), int)
    }
    small |= {
        key: [min(LIMITS[key], n) for n in values[key]] for key in LIMITS if isinstance(values.get(key), list)
    }
    if values.get("n_inner", 0) is None:  # four times the hidden size
        small["n_inner"] = LIMITS["n_inner"]
    small |= {key: i for i, key in enumerate(_TOKENS) if values.get(key) is not None}
    for key in ("num_key_value_heads", "num_kv_heads"):
        if values.get(key):
            small[key] = _shared(values[key], config.num_attention_heads, heads)
    small |= _layers(values | small, config.num_hidden_layers)
    sizes = {"num_attention_heads": heads, "hidden_size": heads * head_size}
    sizes["num_hidden_layers"] = len(_one_of_each(values, config.num_hidden_layers))
    small |= {config.attribute_map.get(key, key): size for key, size in sizes.items()}
    return type(config).from_dict(values | small)


def save_tiny(config: PretrainedConfig, folder: Path) -> PretrainedConfig:
    """Write a checkpoint of `tiny` of ``config``, float32, into ``folder``; its config.

    The weights make attention that tells tokens apart: initial ones give nearly the same share to all, and
    what a probe looks for would drown. Raises InputError if the family cannot be made small in this way.
    """
    try:
        small = tiny(config)
        stored = with_small_table(small) if small.model_type in TABLE_FAMILIES else small
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(stored, dtype=torch.float32)
            _randomize(model)
        model.save_pretrained(folder)
    except Exception as error:  # the classes of a hundred families: whatever they raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"no tiny model of {config.model_type} can be made here ({type(error).__name__}: {reason}): "
            "use --full"
        ) from error
    return small


def _randomize(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(std=weight.shape[-1] ** -0.5)
            elif not weight.any():  # a bias: at zero it would hide what it does
                weight.normal_(std=0.1)


def _shared(groups: int, of: int, heads: int) -> int:
    """Key and value heads for ``heads`` queries: as many, some or one, as ``groups`` are of ``of``."""
    if groups >= of:
        return heads
    return 2 if groups > 1 and heads % 2 == 0 else 1


def _layers(values: dict[str, Any], count: int) -> dict[str, Any]:
    """Every list with an entry a layer, cut to the layers that stay."""
    kept = _one_of_each(values, count)
    return {
        key: [value[i] for i in kept]
        for key, value in values.items()
        if isinstance(value, list) and len(value) == count
    }


def _one_of_each(values: dict[str, Any], count: int) -> list[int]:
    """Indices of the first layer of each kind, and of more if these are few."""
    lists = [each for each in values.values() if isinstance(each, list) and len(each) == count]
    telling = [kinds for kinds in (list(map(str, each)) for each in lists) if len(set(kinds)) <= _KINDS]
    first = {tuple(kinds[i] for kinds in telling): i for i in reversed(range(count))}
    few = [i for i in range(count) if i not in first.values()]
    return sorted([*first.values(), *few[: max(LAYERS - len(first), 0)]])
