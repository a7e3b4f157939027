"""Interpolation: a model config with a longer window, written in terms stock `transformers` understands.

With base ``b``, rotary size ``d`` and frequencies ``theta_j = b^(-2j/d)``, and a factor of
``alpha = target / original window``:

- ``linear`` (Chen et al. 2023, arXiv 2306.15595): positions divided by alpha;
- ``ntk`` (bloc97 2023): base multiplied by ``alpha^(d / (d - 2))``, so the highest frequency stays and the
  lowest is divided by alpha; stock `transformers` has no type for it, a new ``rope_theta`` says the same;
- ``yarn`` (Peng et al. 2023, arXiv 2309.00071): high frequencies kept, low ones divided by alpha, a ramp
  between, attention scaled by ``0.1 ln(alpha) + 1``;
- ``none``: only ``max_position_embeddings`` changes.

Left out on purpose: ``dynamic``, whose frequencies depend on the longest row seen, so that rows of the train
length would be taught frequencies that the target length never uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from transformers import PretrainedConfig

from skipwise.config import Interpolation
from skipwise.errors import InputError

OPTIONS = {"ntk": {"factor"}, "yarn": {"beta_fast", "beta_slow", "attention_factor"}}


def model_window(config: PretrainedConfig) -> int:
    """The window the model was pretrained with, in tokens. Raises InputError when the config names none."""
    window = getattr(config, "max_position_embeddings", None)
    if not isinstance(window, int) or window < 1:
        raise InputError(
            f"{config.model_type}: its config has no max_position_embeddings, so no known window"
        )
    return window


def extend_rope(
    config: PretrainedConfig,
    target_length: int,
    method: Interpolation,
    options: Mapping[str, float] | None = None,
) -> PretrainedConfig:
    """A new config whose window is ``target_length`` tokens; ``config`` is left as it is.

    ``options`` are further `transformers` keys of the method: for yarn ``beta_fast`` and ``beta_slow`` (the
    ramp's ends, in rotations over the original window; 32 and 1) and ``attention_factor``; for ntk
    ``factor``, where another alpha than target / window is wanted. Raises InputError for a target below the
    window, a model without RoPE, or one whose RoPE is scaled already (replacing that scaling would lose it).
    """
    window = model_window(config)
    if target_length < window:
        raise InputError(f"target length {target_length} is below the model's window of {window} tokens")
    parameters = _plain_rope(config, target_length)
    values = config.to_dict()
    values["max_position_embeddings"] = target_length
    unknown = set(options or {}) - OPTIONS.get(method, set())
    if unknown:
        raise InputError(f"interpolation {method!r} has no option {sorted(unknown)[0]!r}")
    if target_length > window:
        values["rope_parameters"] = parameters | _scaling(
            config, parameters, target_length, method, options or {}
        )
    return type(config).from_dict(values)


def _plain_rope(config: PretrainedConfig, target_length: int) -> dict[str, Any]:
    """The model's own RoPE parameters; InputError, with the reason, where skipped positions would mislead."""
    kind = config.model_type
    parameters = getattr(config, "rope_parameters", None)
    if getattr(config, "alibi", False) or not (parameters or getattr(config, "rotary_dim", None)):
        raise InputError(f"{kind} has no rotary position embeddings (RoPE): its window cannot be extended so")
    if not parameters:
        raise InputError(f"{kind} reads its rotary angles from a fixed table, which is not supported yet")
    if not isinstance(parameters.get("rope_theta"), int | float):
        raise InputError(f"{kind} has RoPE parameters for each layer type, which is not supported yet")
    if parameters.get("rope_type", "default") != "default":
        raise InputError(
            f"this checkpoint's RoPE is scaled already (rope_type {parameters['rope_type']!r}): start from "
            "its base model"
        )
    window = _sliding_window(config)
    if window is not None and window < target_length:
        raise InputError(
            f"{kind} attends within a sliding window of {window} tokens, cut by index and not by position, "
            "which is not supported yet for rows with skipped positions"
        )
    return dict(parameters)


def _sliding_window(config: PretrainedConfig) -> int | None:
    """The window of the layers that do not attend to everything, if there are such layers."""
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        return window if set(layer_types) - {"full_attention"} else None
    return window if getattr(config, "use_sliding_window", True) else None


def _scaling(
    config: PretrainedConfig,
    parameters: dict[str, Any],
    target_length: int,
    method: Interpolation,
    options: Mapping[str, float],
) -> dict[str, Any]:
    """The keys of ``rope_parameters`` that change."""
    window = model_window(config)
    factor = target_length / window
    if method == "none":
        return {}
    if method == "linear":
        return {"rope_type": "linear", "factor": factor}
    if method == "ntk":
        size = rotary_size(config)
        stretch = options.get("factor", factor)
        return {"rope_theta": parameters["rope_theta"] * stretch ** (size / (size - 2))}
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": window, **options}


def rotary_size(config: PretrainedConfig) -> int:
    """Dimensions of each head that rotate."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    partial = cast(float, (config.rope_parameters or {}).get("partial_rotary_factor", 1.0))
    return int(head * partial)


def legacy_rope_keys(config: PretrainedConfig) -> dict[str, Any]:
    """The same RoPE under the two keys that `transformers` before 5, vLLM and converters read.

    They know nothing of ``rope_parameters`` and would silently run with theta 10,000 and no scaling.
    """
    parameters = dict(config.rope_parameters or {})
    theta = parameters.pop("rope_theta")
    parameters.pop("partial_rotary_factor", None)
    plain = parameters.get("rope_type", "default") == "default"
    return {"rope_theta": theta, "rope_scaling": None if plain else parameters}
