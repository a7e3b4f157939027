"""The same RoPE for older readers: `transformers` before 5, vLLM, converters."""

from __future__ import annotations

import copy

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from skipwise.rope.reading import Parameters, groups_of, text_config, with_text


def legacy_rope_keys(config: PretrainedConfig) -> Parameters:
    """The same RoPE under the keys that `transformers` before 5, vLLM and converters read.

    They know nothing of ``rope_parameters`` and would silently run with theta 10,000 and no scaling. Empty
    where the older keys cannot say it: `transformers` 5 prefers them too, so they must never say less.
    """
    text = text_config(config)
    if text is not config:
        return with_text(config, text.to_dict() | legacy_rope_keys(text))
    groups = getattr(config, "rope_parameters", None) and groups_of(config)
    if not groups:
        return {}
    main = dict(groups.get("full_attention" if None not in groups else None) or {})
    theta, share = main.pop("rope_theta", None), main.pop("partial_rotary_factor", None)
    plain = main.get("rope_type") == "default"
    keys: Parameters = {"rope_theta": theta, "rope_scaling": None if plain else main}
    if share is not None:
        keys["partial_rotary_factor"] = share
    if config.model_type.startswith("gpt_neox"):  # read under these names only
        keys |= {"rotary_emb_base": theta, "rotary_pct": share}
    if main.get("rope_type") == "longrope":
        keys["original_max_position_embeddings"] = main["original_max_position_embeddings"]
    if "sliding_attention" in groups:
        keys["rope_local_base_freq"] = groups["sliding_attention"]["rope_theta"]
    try:
        again = type(config).from_dict(config.to_dict() | copy.deepcopy(keys))
    except (StrictDataclassError, KeyError, RuntimeError, TypeError, ValueError):
        return {}
    return keys if again.rope_parameters == config.rope_parameters else {}


def attention_scale_for_vllm(values: Parameters) -> None:
    """Say LongRoPE's scale of attention in ``values`` (a ``config.json``) under vLLM's names too, in place.

    vLLM (0.32) leaves ``attention_factor`` out for all but Phi and takes a scale of its own
    (benchmarks/engines); `transformers` remarks on the two further keys and goes by ``attention_factor``.
    """
    for key in ("rope_parameters", "rope_scaling"):
        group = values.get(key) or {}
        if group.get("rope_type") == "longrope" and group.get("attention_factor") is not None:
            for name in ("short_mscale", "long_mscale"):
                group.setdefault(name, group["attention_factor"])
