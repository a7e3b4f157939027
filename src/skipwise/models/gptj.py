"""GPT-J and CodeGen become Phi: the same function of the tokens, its angles computed from positions.

Both families look sin and cos up in a table of ``n_positions`` rows that every layer keeps: a position beyond
it raises, ``rope_parameters`` are ignored, and a model built in bfloat16 has a rounded table. The stock Phi
classes hold the same block, ``h + attention(norm(h)) + mlp(norm(h))`` with a partial rotation, and read any
scaling from their config. So the weights are renamed and nothing is patched, and the exported checkpoint is a
stock one for every engine that reads Phi, with every interpolation and without remote code. (In terms of
GPT-J itself, stock `transformers` could express a longer unscaled table and nothing else.)

The two differ in notation. GPT-J rotates neighbouring dimensions (2j, 2j + 1) of a head by angle j, Phi
(j, j + r/2) of its r rotary ones (Su et al. 2021, section 3.4.2): reordering those rows of the query and key
weights leaves every product of a query and a key as it was. Phi has biases in the attention, GPT-J has none:
they are zero and frozen. GPT-J's `eager` multiplies queries and keys in float32, Phi in the weights' dtype:
float16 under `eager` may overflow, `sdpa` accumulates in float32.
"""

from __future__ import annotations

import copy

import torch
from transformers import PhiConfig, PhiForCausalLM, PretrainedConfig, PreTrainedModel

from skipwise.rope import rotary_share

TABLE_FAMILIES = ("gptj", "codegen")
"""Model types whose angles come from a table."""

_RENAMED = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.final_layernorm.weight",
    "transformer.ln_f.bias": "model.final_layernorm.bias",
    "lm_head.weight": "lm_head.weight",
    "lm_head.bias": "lm_head.bias",
}
_RENAMED_IN_LAYER = {
    "ln_1.weight": "input_layernorm.weight",
    "ln_1.bias": "input_layernorm.bias",
    "attn.out_proj.weight": "self_attn.dense.weight",
    "mlp.fc_in.weight": "mlp.fc1.weight",
    "mlp.fc_in.bias": "mlp.fc1.bias",
    "mlp.fc_out.weight": "mlp.fc2.weight",
    "mlp.fc_out.bias": "mlp.fc2.bias",
}
_CODEGEN_SLICES = 4
"""CodeGen's one projection was trained in 4 slices, each of which holds its queries, values and keys."""


def with_small_table(config: PretrainedConfig) -> PretrainedConfig:
    """``config`` with a table of one row, for loading weights: at 131,072 positions GPT-J-6B's take 1 GB."""
    small = copy.deepcopy(config)
    small.n_positions = 1
    small.rope_parameters = None
    return small


def phi_config(config: PretrainedConfig) -> PhiConfig:
    """The Phi config of a GPT-J or CodeGen ``config``, whose ``rope_parameters``, if any, it keeps."""
    head_size = config.n_embd // config.n_head
    rope = {"rope_type": "default", "rope_theta": 10000.0}  # the base is fixed in both families
    rope |= getattr(config, "rope_parameters", None) or {}
    rope["partial_rotary_factor"] = rotary_share(config.rotary_dim or head_size, head_size)
    return PhiConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        intermediate_size=config.n_inner or 4 * config.n_embd,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        max_position_embeddings=config.n_positions,
        rope_parameters=rope,
        hidden_act=config.activation_function,
        layer_norm_eps=config.layer_norm_epsilon,
        resid_pdrop=config.resid_pdrop,
        embd_pdrop=config.embd_pdrop,
        attention_dropout=config.attn_pdrop,
        initializer_range=config.initializer_range,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=None,  # Phi would give that token's embedding no gradient
    )


def as_phi(model: PreTrainedModel, config: PretrainedConfig, attention: str) -> PhiForCausalLM:
    """The Phi model that computes what ``model`` does, under the window and RoPE of ``config``.

    ``model`` is a ``GPTJForCausalLM`` or ``CodeGenForCausalLM`` with a table of any size. All weights but
    those of queries and keys (and of CodeGen's values) are shared with it, not copied.
    """
    phi: PhiForCausalLM = PhiForCausalLM.from_pretrained(
        None,
        config=phi_config(config),
        state_dict=_phi_weights(model.state_dict(), config),
        dtype=model.dtype,
        attn_implementation=attention,
    )
    phi.generation_config = model.generation_config
    for name, parameter in phi.named_parameters():
        if ".self_attn." in name and name.endswith(".bias"):
            parameter.requires_grad_(False)
    return phi


def _phi_weights(weights: dict[str, torch.Tensor], config: PretrainedConfig) -> dict[str, torch.Tensor]:
    found = {new: weights[old] for old, new in _RENAMED.items()}
    for i in range(config.n_layer):
        prefix = f"transformer.h.{i}."
        own = {
            name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)
        }
        layer = {new: own[old] for old, new in _RENAMED_IN_LAYER.items()} | _attention_weights(own, config)
        found |= {f"model.layers.{i}.{name}": weight for name, weight in layer.items()}
    return found


def _attention_weights(layer: dict[str, torch.Tensor], config: PretrainedConfig) -> dict[str, torch.Tensor]:
    """Query, key and value weights of one layer, ``(hidden, hidden)`` each, and the zero biases."""
    if config.model_type == "codegen":
        rows = layer["attn.qkv_proj.weight"].unflatten(0, (_CODEGEN_SLICES, 3, -1))
        query, value, key = (rows[:, part].flatten(0, 1) for part in range(3))
    else:
        query, key, value = (layer[f"attn.{each}_proj.weight"] for each in "qkv")
    rotary = config.rotary_dim or config.n_embd // config.n_head
    found = {
        "q_proj.weight": _halves(query, config.n_head, rotary),
        "k_proj.weight": _halves(key, config.n_head, rotary),
        "v_proj.weight": value.contiguous(),
    }
    found |= {
        f"{each}.bias": query.new_zeros(config.n_embd) for each in ("q_proj", "k_proj", "v_proj", "dense")
    }
    return {f"self_attn.{name}": weight for name, weight in found.items()}


def _halves(weight: torch.Tensor, heads: int, rotary: int) -> torch.Tensor:
    """Rows of each head reordered from rotated pairs side by side to rotated halves; the rest stays."""
    each = weight.unflatten(0, (heads, -1))
    return torch.cat((each[:, :rotary:2], each[:, 1:rotary:2], each[:, rotary:]), dim=1).flatten(0, 1)
