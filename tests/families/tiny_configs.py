"""A tiny config for every causal-LM family of the installed `transformers`, made from its config class.

The class's own defaults decide what a family is (rotary share, kinds of layers, experts, latent attention);
only sizes are replaced. A family whose layers may attend within a sliding window, but do not by default, or
do all of them, is tried in two forms: ``family``, with a layer that sees everything, and ``family +
windows``. `FORMS` has further ones.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, WINDOW, SLIDING = 97, 64, 24
"""Tokens of the vocabulary, of the pretrained window, and of the sliding windows in it."""
WITH_WINDOWS = " + windows"


def _named(size: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), size)


SIZES = {
    **_named(VOCABULARY, "vocab_size vocab_size_per_layer_input encoder_hash_byte_group_vocab"),
    **_named(WINDOW, "max_position_embeddings original_max_position_embeddings model_max_length"),
    **_named(WINDOW, "n_positions n_ctx max_seq_len context_length"),
    **_named(SLIDING, "sliding_window attention_chunk_size local_attention attention_window_size"),
    **_named(32, "hidden_size d_model n_embd lru_width embedding_size adapter_in_dim"),
    **_named(32, "adapter_input_size hidden_size_global"),
    **_named(2, "num_attention_heads num_heads n_head n_heads num_kv_heads num_query_groups"),
    **_named(16, "head_dim attention_head_dim index_head_dim kv_channels global_head_dim"),
    **_named(8, "qk_rope_head_dim qk_nope_head_dim v_head_dim rotary_dim hidden_size_per_layer_input"),
    **_named(48, "intermediate_size dense_intermediate_size ffn_hidden_size ffn_dim n_inner"),
    **_named(48, "shared_intermediate_size intermediate_size_mlp"),
    **_named(24, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size"),
    **_named(24, "shared_experts_intermediate_size moe_shared_expert_intermediate_size"),
    **_named(16, "kv_lora_rank q_lora_rank o_lora_rank gated_norm_rank adapter_rank laurel_rank hc_lowrank"),
    **_named(4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    **_named(2, "num_experts_per_tok num_experts_per_token moe_topk moe_k"),
    **_named(1, "n_group topk_group num_expert_group zero_expert_num n_shared_experts first_k_dense_replace"),
    **_named(2, "linear_num_heads linear_num_key_heads o_groups"),
    **_named(32, "index_n_heads"),  # of few heads, none may score a token: ties, broken by index
    **_named(4, "linear_num_value_heads n_mamba_heads mamba_n_heads"),
    **_named(16, "mamba_d_state mamba_d_head linear_key_head_dim linear_value_head_dim linear_head_dim"),
    **_named(16, "index_topk num_codebooks"),
}
"""What replaces a field of that name, where the family's config sets one."""

LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
KINDS = ("layer_types", "layers_block_type", "mlp_layer_types", "indexer_types")

_MUSICGEN = {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}, "decoder": {}}
_NO_INPUTS_OF_ITS_OWN = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text"} | _NO_INPUTS_OF_ITS_OWN},
    "musicgen": _MUSICGEN,
    "musicgen_melody": _MUSICGEN,
}
"""Fields without which a config class refuses its own defaults."""

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},  # by default no layer attends
    "codegen": {"n_head": 4},  # its projection comes in four slices
    "dbrx": {  # it takes these fields of its parts, and no others
        "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},  # None by default
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},  # None by default
    "dots3_note_text": {  # the windowed layers have sizes of their own
        **{f"swa_{name}": 2 for name in ("num_attention_heads", "num_key_value_heads")},
        **{"swa_q_lora_rank": 16, "swa_kv_lora_rank": 16, "swa_head_dim": 16, "swa_qk_nope_head_dim": 8},
        "swa_v_head_dim": 8,
    },
    "dots3_note_vision_encoder": {"adapter_out_dim": 32},  # the hidden size
    "dots3_note_audio_encoder": {"adapter_out_dim": 32},
    "emu3": {"vocabulary_map": {"<image>": 96}},  # None by default
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1},
    "falcon_h1": {"mamba_d_ssm": 64},  # heads times their size
    "gemma3n_text": {  # the later layers use keys and values of the earlier ones
        **{"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
        **{"intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4},
        "num_kv_shared_layers": 2,
    },
    "granitemoehybrid": {  # by default no layer attends, and none has RoPE
        **{"layer_types": ["linear_attention", "full_attention"], "position_embedding_type": "rope"},
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},  # by default no layer is a convolution
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},  # None by default
    "llama4_text": {"no_rope_layers": [1, 0]},  # one in four layers has no positions: the one that sees all
    "mamba2": {"num_heads": 4, "head_dim": 16},  # heads times their size are twice the hidden size
    "mimo_v2_flash": {"head_dim": 24},  # a third of which rotates: it must be even
    "moshi": {"sliding_window": 4096},  # never off, and by default no smaller than the pretrained window
    "phi4_multimodal_audio": {  # it is built and not used: small, for the time it takes
        **{"num_blocks": 1, "nemo_conv_channels": 32},
        **{"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32},
    },
    "qwen4_exp_text": {  # None by default
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16},
        **{"indexer_budget": 16, "indexer_compress_ratio": 4},
    },
    "smollm3": {"no_rope_layers": [0, 1]},  # one in four layers has no positions, and may have windows
    "zaya": {"num_experts_per_tok": 1},  # nothing else is supported
}
"""Fields that only one family needs, each with its reason."""

FORMS = {
    "falcon + alibi": {"alibi": True},
    "granitemoehybrid + attention only": {"layer_types": ["full_attention"] * 2},
    "zamba2 + rope": {"use_mem_rope": True},
}
"""Fields of further forms of a family."""


def families() -> list[str]:
    """Every causal-LM family of the installed `transformers`, its further forms after it."""
    found = [each for each in FORMS if each.partition(" + ")[0] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        found.append(name)
        given = _default(CONFIG_MAPPING[name]).to_dict()
        if _windows(given, on=True) and "sliding_window" not in EXCEPTIONS.get(name, {}):
            found.append(name + WITH_WINDOWS)
    return sorted(found)


def tiny_config(family: str) -> PretrainedConfig:
    """The tiny config of ``family``, as `families` names it."""
    default = _default(CONFIG_MAPPING[family.partition(" + ")[0]])
    return _tiny(default, with_windows=family.endswith(WITH_WINDOWS), form=FORMS.get(family, {}))


def _default(config_class: type[PretrainedConfig]) -> PretrainedConfig:
    """The family at its real size."""
    return config_class(**copy.deepcopy(DEFAULTS.get(config_class.model_type, {})))  # some take theirs apart


def _tiny(
    default: PretrainedConfig, *, with_windows: bool | None, form: Mapping[str, Any] | None = None
) -> PretrainedConfig:
    """The same config in small; windows switched on or off, or left as they are."""
    given = default.to_dict()
    values: dict[str, Any] = {key: value and SIZES[key] for key, value in given.items() if key in SIZES}
    values |= {key: 0.0 for key, value in given.items() if isinstance(value, float) and _is_random(key)}
    tokens = {f"{each}_token_id": i for i, each in enumerate(("pad", "bos", "eos"))}
    values |= {key: i for key, i in tokens.items() if given.get(key) is not None}
    values |= _heads(given) | _layers(given)
    values |= {} if with_windows is None else _windows(given, with_windows)
    for key in getattr(default, "sub_configs", {}):
        part = getattr(default, key, None)
        if isinstance(part, PretrainedConfig):
            windows = with_windows if key == "text_config" else None
            values[key] = _tiny(part, with_windows=windows).to_dict()
    return type(default)(**values | EXCEPTIONS.get(default.model_type, {}) | dict(form or {}))


def _heads(given: dict[str, Any]) -> dict[str, int]:
    """Sizes that depend on each other."""
    found = {}
    if "num_key_value_heads" in given:
        shared = (given["num_key_value_heads"] or 99) < given.get("num_attention_heads", 0)
        found["num_key_value_heads"] = 1 if shared else 2
    if "head_dim" in given:
        latent = given["head_dim"] is not None and given["head_dim"] == given.get("qk_rope_head_dim")
        found["head_dim"] = SIZES["qk_rope_head_dim"] if latent else SIZES["head_dim"]
    return found


def _layers(given: dict[str, Any]) -> dict[str, Any]:
    """Two layers, or one of each kind; every list with an entry a layer is cut to as many."""
    count = next((given[key] for key in LAYERS if given.get(key)), None)
    lists = {key: value for key, value in given.items() if isinstance(value, list) and len(value) == count}
    kinds = {key: _each_once(value) for key, value in lists.items() if key in KINDS}
    few = max([2, *map(len, kinds.values())])
    cut = {key: [SIZES.get(key, each) for each in value[:few]] for key, value in lists.items()}
    cut |= {key: [each[i % len(each)] for i in range(few)] for key, each in kinds.items()}
    if "num_kv_shared_layers" in given:
        cut["num_kv_shared_layers"] = few if given["num_kv_shared_layers"] == count else 0
    return {key: few for key in LAYERS if given.get(key)} | cut


def _each_once(layer_types: list[str]) -> list[str]:
    """Full attention last, where some families insist on it."""
    return sorted(dict.fromkeys(layer_types), key=lambda kind: kind == "full_attention")


def _windows(given: dict[str, Any], on: bool) -> dict[str, Any]:
    """Fields that switch windows on or off; none for a family without, or with both kinds of layers."""
    if "sliding_window" not in given:
        return {}
    kinds = set(given.get("layer_types") or ())
    if kinds - {"sliding_attention", "full_attention"} or len(kinds) == 2:
        return {}
    found: dict[str, Any] = {"sliding_window": SLIDING if on or kinds else None}
    if "use_sliding_window" in given:
        found["use_sliding_window"] = on
    if kinds:
        found["layer_types"] = ["sliding_attention" if on else "full_attention", "full_attention"]
    return found


def _is_random(key: str) -> bool:
    return "drop" in key or "jitter" in key
