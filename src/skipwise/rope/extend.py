"""`extend_rope`: refuse what would mislead, scale each group of layers, build the config anew."""

from __future__ import annotations

import copy

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from skipwise.config import Interpolation
from skipwise.errors import InputError
from skipwise.rope.reading import (
    Groups,
    check_rope,
    frequencies_under,
    groups_of,
    has_window,
    model_window,
    text_config,
    with_text,
)
from skipwise.rope.scaling import Options, Step, check_options

_REFUSED = {
    "deepseek_v4": "lets later tokens change earlier ones, so training on it would teach nothing sound",
    "minimax_m3_vl_text": "fails in transformers' own forward pass on rows with skipped positions",
    "roformer": "rotates by a token's place in the row and takes no positions, so none can be skipped",
}
"""Model types for which no config helps, each with its reason."""


def extend_rope(
    config: PretrainedConfig, target_length: int, method: Interpolation, options: Options | None = None
) -> PretrainedConfig:
    """A new config whose window is ``target_length`` tokens; ``config`` is left as it is.

    ``options`` are those of `skipwise.rope.scaling.OPTIONS`, under `transformers`' names: ``beta_fast`` and
    ``beta_slow`` are the ramp's ends in rotations over the original window (32 and 1), ``long_factor`` and
    ``short_factor`` lists of d / 2 numbers, ``factor`` another alpha than target / window,
    ``attention_factor`` what YaRN multiplies queries and keys by (with ``ntk`` and ``abf`` not in the config:
    `skipwise.models.sharpen` puts it in weights). At the model's own window nothing changes, whatever the
    method. A config of several parts is extended in its text.

    Raises InputError for a target below the window, options the method does not have, a model without RoPE,
    and one for which skipped positions or this method would mislead.
    """
    text = text_config(config)
    if text is not config:
        extended = extend_rope(text, target_length, method, options)
        return type(config).from_dict(config.to_dict() | with_text(config, extended.to_dict()))
    _check_family(config)
    window = model_window(config)
    if target_length < window:
        raise InputError(f"target length {target_length} is below the model's window of {window} tokens")
    check_options(method, options or {})
    if target_length == window:
        return copy.deepcopy(config)
    groups = groups_of(config)
    to_scale = {name: own for name, own in groups.items() if not has_window(name)}
    if not to_scale and method != "none":
        raise InputError(
            f"{config.model_type} has positions only within sliding windows: there is nothing to interpolate"
            "; for a longer window alone, set interpolation to none"
        )
    for name, own in to_scale.items():
        frequencies_under(config, name, own)  # refuses parameters from which nothing is computed
    told = dict(options or {})
    steps = {name: Step(config, name, own, target_length, method, told) for name, own in to_scale.items()}
    reason = "no other type can say it"
    if any(own["rope_type"] == "proportional" for own in to_scale.values()):
        reason = "its rope_type 'proportional' goes with linear, ntk and abf only: choose one of them"
    for form in (Step.native, Step.per_dimension, Step.per_dimension_with_mscale):
        scaled = {name: form(step) for name, step in steps.items()}
        known = {name: own for name, own in scaled.items() if own is not None}
        if len(known) == len(scaled):
            try:
                return _build(config, target_length, known)
            except (StrictDataclassError, KeyError, RuntimeError, TypeError, ValueError) as error:
                reason = str(error.__cause__ or error)
    raise InputError(f"{config.model_type}'s config does not accept {method!r}: {reason}")


def _build(config: PretrainedConfig, target_length: int, scaled: Groups) -> PretrainedConfig:
    """The config with these parameters; ValueError, or what its class raises, if it does not take them."""
    values = config.to_dict()
    # Parts stay config objects: DBRX's do not take their own dicts back (transformers 5.17)
    values |= {part: copy.deepcopy(getattr(config, part)) for part in config.sub_configs}
    values[config.attribute_map.get("max_position_embeddings", "max_position_embeddings")] = target_length
    values["rope_parameters"] = scaled[None] if None in scaled else config.rope_parameters | scaled
    if "layer_rope_theta" in values:  # Granite's windowed models: a base for each layer, 0 without positions
        old, new = (each["rope_theta"] for each in (config.rope_parameters, scaled[None]))
        bases = config.layer_rope_theta
        values["layer_rope_theta"] = [new if each == old else each * new / old for each in bases]
    if "head_dim" in values:  # stock yarn and longrope fail on None (Mixtral, MiniMax)
        values["head_dim"] = values["head_dim"] or config.hidden_size // config.num_attention_heads
    original = (scaled.get(None) or {}).get("original_max_position_embeddings")
    if original and "original_max_position_embeddings" in values:  # Phi-3: this one wins
        values["original_max_position_embeddings"] = original
    built = type(config).from_dict(copy.deepcopy(values))
    found = groups_of(built)
    for name, wanted in scaled.items():
        if not found[name].items() >= wanted.items():
            raise ValueError(f"it makes {found[name]['rope_type']} of {wanted['rope_type']}")
    return built


def _check_family(config: PretrainedConfig) -> None:
    """InputError, with the reason, where skipped positions would mislead."""
    kind, groups = config.model_type, groups_of(config)
    if kind in _REFUSED:
        raise InputError(f"{kind} {_REFUSED[kind]}")
    parts = [part for part in config.sub_configs if getattr(getattr(config, part), "rope_parameters", None)]
    if len(parts) > 1:
        raise InputError(
            f"{kind} has RoPE in several parts ({', '.join(parts)}), each with a window of its own: there is "
            "no single one to extend"
        )
    check_rope(config)
    for own in groups.values():
        if own["rope_type"] not in ("default", "linear", "yarn", "llama3", "longrope", "proportional"):
            raise InputError(
                f"this checkpoint's RoPE is of rope_type {own['rope_type']!r}, no fixed frequencies to start "
                "from: write the rope_type it was trained with into its config.json"
            )
