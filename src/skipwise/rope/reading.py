"""What a config says of its model's RoPE: window, parameters by layer type, and the frequencies they give.

The frequencies are those that `transformers` computes from a config; nothing is computed here.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from skipwise.errors import InputError

Parameters = dict[str, Any]
Groups = dict[str | None, Parameters]
"""RoPE parameters by layer type, or under None where one set serves all layers."""


def model_window(config: PretrainedConfig) -> int:
    """The window the model was trained for, in tokens. Raises InputError when the config names none.

    ``max_position_embeddings``, but for configs of scaled models that left it at the original window, as
    Qwen's instructions say: then that window times the factor.
    """
    config = text_config(config)
    window = getattr(config, "max_position_embeddings", None)
    if not isinstance(window, int) or window < 1:
        check_rope(config)  # if it has none, that is the true reason
        raise InputError(
            f"{config.model_type}: its config has no max_position_embeddings, so no known window"
        )
    scaled = getattr(config, "rope_parameters", None) or {}
    if scaled.get("rope_type") == "yarn" and scaled.get("original_max_position_embeddings") == window:
        return int(window * (scaled.get("factor") or 1.0))
    return window


def check_rope(config: PretrainedConfig) -> None:
    """InputError for a decoder config without RoPE in a layer that sees the whole row."""
    kind = config.model_type
    alibi = any(getattr(part, "alibi", False) for part in (config, getattr(config, "attn_config", None)))
    if alibi or kind == "bloom":  # which has nothing else, and no field that says so
        raise InputError(f"{kind} has ALiBi, no rotary position embeddings (RoPE): it cannot be extended so")
    unused = (
        getattr(config, "use_mem_rope", True) is False
        or getattr(config, "position_embedding_type", "rope") != "rope"
    )  # Zamba 2, Granite's hybrids: parameters all the same
    if unused or not any(groups_of(config).values()):
        raise InputError(f"{kind} has no rotary position embeddings (RoPE): its window cannot be extended so")
    if getattr(config, "attention_window_size", None) and not hasattr(config, "max_position_embeddings"):
        raise InputError(
            f"{kind} attends within windows of {config.attention_window_size} tokens, and its other layers "
            "have no positions: there is nothing to extend"
        )


def frequencies(config: PretrainedConfig, layer_type: str | None = None) -> tuple[list[float], float]:
    """What `transformers` computes: d / 2 frequencies in radians a position, and the factor on cos and sin.

    Of ``longrope``'s lists the long one. ``layer_type`` where the parameters are kept by layer type.
    """
    config = text_config(config)
    return frequencies_under(config, layer_type, groups_of(config)[layer_type])


def rotary_size(config: PretrainedConfig, layer_type: str | None = None) -> int:
    """Dimensions of each head that rotate."""
    return 2 * len(frequencies(config, layer_type)[0])


def rotary_share(rotary: int, head_size: int) -> float:
    """The ``partial_rotary_factor`` that gives ``rotary`` dimensions, where `transformers` rounds down."""
    share = rotary / head_size
    return share if int(head_size * share) == rotary else math.nextafter(share, 1.0)


def frequencies_under(
    config: PretrainedConfig, layer_type: str | None, parameters: Parameters
) -> tuple[list[float], float]:
    """`frequencies` under other ``parameters``. A copy of the config, since the functions complete it."""
    at = copy.deepcopy(config)
    parameters = copy.deepcopy(parameters)
    if parameters["rope_type"] == "default":  # each model class has its own function for that
        parameters |= {"rope_type": "linear", "factor": 1.0}
    original = parameters.get("original_max_position_embeddings")
    if original and hasattr(at, "original_max_position_embeddings"):
        at.original_max_position_embeddings = original  # Phi-3's functions read it there
    if at.to_dict().get("head_dim", 0) is None:
        at.head_dim = at.hidden_size // at.num_attention_heads
    at.rope_parameters = parameters if layer_type is None else at.rope_parameters | {layer_type: parameters}
    compute = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    try:
        found, attention = compute(at, seq_len=(original or 0) + 1, layer_type=layer_type)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        reason = f"transformers computes no scaled RoPE from this {config.model_type} config ({error})"
        raise InputError(reason) from error
    return found.tolist(), float(parameters.get("long_mscale", attention))  # Phi-3.5-MoE scales by that


def groups_of(config: PretrainedConfig) -> Groups:
    """The model's RoPE parameters by layer type, or under None where one set serves all layers."""
    own = getattr(config, "rope_parameters", None)
    if not own and getattr(config, "rotary_dim", None):  # GPT-J, CodeGen: a table, with a fixed base
        share = rotary_share(config.rotary_dim, config.hidden_size // config.num_attention_heads)
        return {None: {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}}
    own = copy.deepcopy(own or {})
    nested = {name: each for name, each in own.items() if isinstance(each, dict)}
    return nested or {None: own}


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of the config that describes the language model; the config itself where it has no parts.

    (For encoder-decoder models `transformers` makes up a config of the decoder that is no part of theirs.)
    """
    text: PretrainedConfig = config.get_text_config(decoder=True)
    return text if any(getattr(config, name) is text for name in config.sub_configs) else config


def with_text(config: PretrainedConfig, values: Parameters) -> Parameters:
    """``values`` under the name of the config's text part, to be laid over the config as a dict."""
    text = text_config(config)
    return {name: values for name in config.sub_configs if getattr(config, name) is text}


def has_window(layer_type: str | None) -> bool:
    """Whether layers of this type attend to the nearest tokens only."""
    return layer_type is not None and ("sliding" in layer_type or "chunked" in layer_type)
