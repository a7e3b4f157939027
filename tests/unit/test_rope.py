"""extend_rope as a function of configs: what changes, what stays, and what is refused with which reason."""

import copy
import json

import pytest
from transformers import (
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from skipwise.errors import InputError
from skipwise.rope import extend_rope, legacy_rope_keys, model_window, rotary_size

SIZES = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 96}
METHODS = ("linear", "ntk", "yarn", "none")
SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0}


def llama(**more):
    return LlamaConfig(**(SIZES | {"head_dim": 24, "rope_theta": 500_000.0} | more))


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {"rope_type": "linear", "factor": 2.5, "rope_theta": 500_000.0}),
        ("ntk", {"rope_type": "default", "rope_theta": pytest.approx(500_000 * 2.5 ** (24 / 22))}),
        (
            "yarn",
            {
                "rope_type": "yarn",
                "factor": 2.5,
                "original_max_position_embeddings": 96,
                "rope_theta": 500_000.0,
            },
        ),
        ("none", {"rope_type": "default", "rope_theta": 500_000.0}),
    ],
)
def test_the_window_and_the_rope_change_and_nothing_else(method, parameters):
    config = llama(tie_word_embeddings=True, attention_bias=True, bos_token_id=3, dtype="bfloat16")
    before = copy.deepcopy(config.to_dict())
    extended = extend_rope(config, 240, method)
    assert type(extended) is LlamaConfig
    assert extended.rope_parameters == parameters
    assert extended.max_position_embeddings == 240
    changed = {"max_position_embeddings", "rope_parameters"}
    after = extended.to_dict()
    assert {key: after[key] for key in after if key not in changed} == {
        key: before[key] for key in before if key not in changed
    }
    assert config.to_dict() == before


def test_the_input_stays_apart_from_the_output():
    config = llama()
    extended = extend_rope(config, 240, "none")
    extended.rope_parameters["rope_theta"] = 1.0
    assert config.rope_parameters["rope_theta"] == 500_000.0


@pytest.mark.parametrize("method", METHODS)
def test_factor_one_changes_nothing(method):
    config = llama()
    assert extend_rope(config, 96, method).to_dict() == config.to_dict()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("config", "size"),
    [
        (GPTNeoXConfig(**SIZES, rotary_pct=0.25, rotary_emb_base=700), 6),
        (PhiConfig(**SIZES, partial_rotary_factor=0.75), 18),
        (Qwen3Config(**SIZES, head_dim=32), 32),
        (LlamaConfig(**SIZES), 24),
    ],
    ids=["gpt_neox", "phi", "qwen3", "llama"],
)
def test_native_keys_survive(config, size, method):
    native = {
        key: config.rope_parameters[key]
        for key in ("rope_theta", "partial_rotary_factor")
        if key in config.rope_parameters
    }
    extended = extend_rope(config, 960, method)
    assert rotary_size(extended) == rotary_size(config) == size
    if method == "ntk":
        native["rope_theta"] *= 10 ** (size / (size - 2))
    assert {key: extended.rope_parameters[key] for key in native} == pytest.approx(native)


def test_options_are_written_under_their_names():
    options = {"beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.25}
    written = extend_rope(llama(), 960, "yarn", options).rope_parameters
    assert {key: written[key] for key in options} == options


def no_window():
    config = PretrainedConfig()
    config.model_type = "windowless"
    return config


@pytest.mark.parametrize(
    ("config", "target", "method", "options", "words"),
    [
        (llama(), 95, "yarn", {}, "target length 95 is below the model's window of 96 tokens"),
        (
            GPT2Config(n_positions=96),
            960,
            "yarn",
            {},
            "gpt2 has no rotary position embeddings (RoPE): its window cannot be extended so",
        ),
        (
            llama(rope_parameters=SCALED),
            960,
            "yarn",
            {},
            "this checkpoint's RoPE is scaled already (rope_type 'linear'): start from its base model",
        ),
        (
            Gemma3TextConfig(max_position_embeddings=96),
            960,
            "yarn",
            {},
            "gemma3_text has RoPE parameters for each layer type, which is not supported yet",
        ),
        (
            no_window(),
            960,
            "yarn",
            {},
            "windowless: its config has no max_position_embeddings, so no known window",
        ),
        (llama(), 960, "yarn", {"beta": 1.0}, "interpolation 'yarn' has no option 'beta'"),
        (llama(), 960, "linear", {"beta_fast": 8.0}, "interpolation 'linear' has no option 'beta_fast'"),
        (llama(), 960, "none", {"beta_fast": 8.0}, "interpolation 'none' has no option 'beta_fast'"),
    ],
    ids=["below", "gpt2", "scaled", "gemma3", "windowless", "unknown", "linear-option", "none-option"],
)
def test_refused_with_its_reason_in_one_line(config, target, method, options, words):
    with pytest.raises(InputError) as error:
        extend_rope(config, target, method, options)
    assert str(error.value) == words


def test_what_it_wrote_is_refused_the_second_time():
    once = extend_rope(llama(), 240, "yarn")
    with pytest.raises(InputError, match="scaled already"):
        extend_rope(once, 960, "yarn")


@pytest.mark.parametrize("window", [None, 0, -5, 2.5, "4096"])
def test_a_window_is_a_positive_integer(window):
    config = no_window()
    if window is not None:
        config.max_position_embeddings = window
    with pytest.raises(InputError, match="no known window"):
        model_window(config)
    assert model_window(llama()) == 96


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("linear", {"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
        ("ntk", {"rope_theta": pytest.approx(500_000 * 2.5 ** (24 / 22)), "rope_scaling": None}),
        (
            "yarn",
            {
                "rope_theta": 500_000.0,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 2.5,
                    "original_max_position_embeddings": 96,
                },
            },
        ),
        ("none", {"rope_theta": 500_000.0, "rope_scaling": None}),
    ],
)
def test_older_keys(method, keys):
    config = extend_rope(llama(), 240, method)
    before = copy.deepcopy(config.rope_parameters)
    assert legacy_rope_keys(config) == keys
    assert config.rope_parameters == before
    json.dumps(legacy_rope_keys(config))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MistralConfig(sliding_window=4096), "sliding window of 4096"),
        (FalconConfig(alibi=True), "no rotary position embeddings"),
        (GPTJConfig(), "fixed table"),
    ],
)
def test_models_that_skipped_positions_would_mislead_are_refused(config, reason):
    with pytest.raises(InputError, match=reason):
        extend_rope(config, 4 * 131_072, "linear")


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(sliding_window=None),
        Qwen2Config(use_sliding_window=False, sliding_window=4096),
    ],
)
def test_a_sliding_window_that_no_layer_uses_is_no_reason_to_refuse(config):
    target = 2 * config.max_position_embeddings
    assert extend_rope(config, target, "linear").max_position_embeddings == target
