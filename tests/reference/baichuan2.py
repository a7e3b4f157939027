"""Baichuan2-7B in float64, written from its published facts, without the package and `transformers`.

Facts (config.json, tensor names and the technical report, Yang et al. 2023, arXiv 2309.10305): pre-norm
decoder; RMSNorm; ``W_pack`` gives query, key and value as thirds of its rows; RoPE of base 10,000 that turns
dimension ``j`` of a head with dimension ``j + d / 2``; causal softmax attention scaled by ``d^-1/2``; SwiGLU;
NormHead: every row of ``lm_head`` is divided by its L2 norm before it meets the hidden state. Baichuan-7B is
the same with a plain head.

Also a synthetic checkpoint with the real tensor names and small, odd shapes.
"""

import json

import numpy as np
import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    },
    "_from_model_config": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 36,
    "initializer_range": 0.02,
    "intermediate_size": 45,
    "max_position_embeddings": 64,
    "model_max_length": 64,
    "model_type": "baichuan",
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.29.2",
    "use_cache": True,
    "vocab_size": 53,
    "z_loss_weight": 0,
}
"""Baichuan2-7B's config.json with small numbers."""

FIRST_VERSION = {
    key: value for key, value in CONFIG.items() if key not in ("z_loss_weight", "model_max_length")
} | {
    "architectures": ["BaiChuanForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaiChuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaiChuanForCausalLM",
    },
}
"""Baichuan-7B's."""

THIRTEEN = {key: value for key, value in CONFIG.items() if key != "max_position_embeddings"}
"""Baichuan2-13B's, which knows positions from ALiBi only."""


def shapes(config):
    """Name -> shape of every tensor of a checkpoint."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    found = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found |= {
            f"{at}.self_attn.W_pack.weight": (3 * hidden, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, hidden),
            f"{at}.mlp.gate_proj.weight": (inner, hidden),
            f"{at}.mlp.up_proj.weight": (inner, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, inner),
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
        }
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def make_tensors(config, dtype=torch.float32, seed=0):
    """Random weights large enough for attention to matter; head rows of many lengths, one of zeros."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(config).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        weight = 1 + 0.3 * noise if len(shape) == 1 else noise * 2 / shape[-1] ** 0.5
        if name == "lm_head.weight":
            weight = weight * torch.randn(shape[0], 1, generator=generator, dtype=torch.float64).exp()
            weight[7] = 0
        tensors[name] = weight.to(dtype)
    return tensors


def write_checkpoint(folder, config, tensors, layout="safetensors", shards=3):
    """Write ``tensors`` to ``shards`` files in either layout, with an index; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    stem, suffix = ("model", "safetensors") if layout == "safetensors" else ("pytorch_model", "bin")
    homes = {}
    for shard in range(shards):
        part = {name: tensors[name] for name in list(tensors)[shard::shards]}
        file = f"{stem}-{shard + 1:05}-of-{shards:05}.{suffix}" if shards > 1 else f"{stem}.{suffix}"
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
        homes |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": homes}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def forward(config, tensors, tokens, positions, *, norm_head=True):
    """Logits ``(length, vocabulary)`` of one row of tokens at the given positions."""
    weights = {name: weight.double().numpy() for name, weight in tensors.items()}
    state = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        part = {
            name.removeprefix(f"model.layers.{layer}."): weight
            for name, weight in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        normal = _rms_norm(state, part["input_layernorm.weight"], config)
        state = state + _attention(config, part, normal, positions)
        normal = _rms_norm(state, part["post_attention_layernorm.weight"], config)
        gate = normal @ part["mlp.gate_proj.weight"].T
        inner = gate / (1 + np.exp(-gate)) * (normal @ part["mlp.up_proj.weight"].T)
        state = state + inner @ part["mlp.down_proj.weight"].T
    head = weights["lm_head.weight"]
    if norm_head:
        head = normalized(head)
    return _rms_norm(state, weights["model.norm.weight"], config) @ head.T


def normalized(head):
    """Rows of unit length; a row of zeros stays."""
    length = np.sqrt((head**2).sum(axis=1, keepdims=True))
    return np.divide(head, length, out=np.zeros_like(head), where=length > 0)


def _rms_norm(state, weight, config):
    return weight * state / np.sqrt((state**2).mean(axis=-1, keepdims=True) + config["rms_norm_eps"])


def _attention(config, part, state, positions):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = hidden // heads
    pack = part["self_attn.W_pack.weight"]
    visible = np.tril(np.ones((len(state), len(state)), dtype=bool))
    output = np.empty_like(state)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        query, key, value = (state @ pack[third * hidden : (third + 1) * hidden][own].T for third in range(3))
        scores = _turned(query, positions) @ _turned(key, positions).T / np.sqrt(size)
        scores = np.where(visible, scores, -np.inf)
        share = np.exp(scores - scores.max(axis=1, keepdims=True))
        output[:, own] = share / share.sum(axis=1, keepdims=True) @ value
    return output @ part["self_attn.o_proj.weight"].T


def _turned(rows, positions):
    """Dimensions j and j + d/2 of each row as a complex number, turned by position * 10000^(-2j/d)."""
    half = rows.shape[1] // 2
    angles = np.asarray(positions)[:, None] * 10_000.0 ** (-np.arange(half) / half)
    turned = (rows[:, :half] + 1j * rows[:, half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=1)
