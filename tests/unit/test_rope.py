"""extend_rope as a function of configs: what changes, what stays, and what is refused with which reason."""

import copy
import json
import math

import pytest
from transformers import (
    BloomConfig,
    BltConfig,
    CodeGenConfig,
    DbrxConfig,
    DeepseekV4Config,
    FalconConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteSWAConfig,
    LlamaConfig,
    MambaConfig,
    Ministral3Config,
    MistralConfig,
    MixtralConfig,
    ModernBertDecoderConfig,
    MptConfig,
    Phi3Config,
    PhiConfig,
    PhimoeConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RecurrentGemmaConfig,
    RoFormerConfig,
    Zamba2Config,
)

from skipwise.errors import InputError
from skipwise.rope import extend_rope, frequencies, legacy_rope_keys, model_window, rotary_size

SIZES = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 96}
METHODS = ("linear", "ntk", "abf", "yarn", "ntk-by-parts", "pose-yarn", "llama3", "longrope", "none")
SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0}
BOTH = ["sliding_attention", "full_attention"]


def options_of(method, size=24):
    """The options that a method cannot do without, for heads of which ``size`` dimensions rotate."""
    given = {"abf": {"rope_theta": 3e6}, "longrope": {"long_factor": [1.5] * (size // 2)}}
    return given.get(method, {})


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
        ("abf", {"rope_type": "default", "rope_theta": 3e6}),
        (
            "ntk-by-parts",
            {
                "rope_type": "yarn",
                "factor": 2.5,
                "original_max_position_embeddings": 96,
                "attention_factor": 1.0,
                "rope_theta": 500_000.0,
            },
        ),
        (
            "llama3",
            {
                "rope_type": "llama3",
                "factor": 2.5,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 96,
                "rope_theta": 500_000.0,
            },
        ),
        (
            "longrope",
            {
                "rope_type": "longrope",
                "factor": 2.5,
                "short_factor": [1.5] * 12,
                "long_factor": [1.5] * 12,
                "original_max_position_embeddings": 96,
                "attention_factor": pytest.approx((1 + math.log(2.5) / math.log(96)) ** 0.5),
                "rope_theta": 500_000.0,
            },
        ),
    ],
)
def test_the_window_and_the_rope_change_and_nothing_else(method, parameters):
    config = llama(tie_word_embeddings=True, attention_bias=True, bos_token_id=3, dtype="bfloat16")
    before = copy.deepcopy(config.to_dict())
    extended = extend_rope(config, 240, method, options_of(method))
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
    same = extend_rope(config, 96, method, options_of(method))
    assert same.to_dict() == config.to_dict()
    assert same is not config


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
    extended = extend_rope(config, 960, method, options_of(method, size))
    assert rotary_size(extended) == rotary_size(config) == size
    if method == "ntk":
        native["rope_theta"] *= 10 ** (size / (size - 2))
    if method == "abf":
        native["rope_theta"] = 3e6
    assert {key: extended.rope_parameters[key] for key in native} == pytest.approx(native)


def test_options_are_written_under_their_names():
    options = {"beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.25}
    written = extend_rope(llama(), 960, "yarn", options).rope_parameters
    assert {key: written[key] for key in options} == options


DEEPSEEK = {
    **{"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 48, "rope_theta": 700.0},
    **{"mscale": 1.0, "mscale_all_dim": 1.0},
}


def no_window():
    config = PretrainedConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e4})
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
            llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 700.0}),
            960,
            "yarn",
            {},
            "this checkpoint's RoPE is of rope_type 'dynamic', no fixed frequencies to start from: write the "
            "rope_type it was trained with into its config.json",
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
        (llama(), 960, "abf", {}, "interpolation 'abf' needs the option 'rope_theta'"),
        (llama(), 960, "longrope", {}, "interpolation 'longrope' needs the option 'long_factor'"),
        (
            llama(),
            960,
            "longrope",
            {"long_factor": 2.0},
            "interpolation option long_factor = 2.0: must be a list of numbers",
        ),
        (
            llama(),
            960,
            "yarn",
            {"beta_fast": [8.0]},
            "interpolation option beta_fast = [8.0]: must be a number",
        ),
        (
            llama(),
            960,
            "longrope",
            {"long_factor": [1.0, 2.0]},
            "interpolation option long_factor has 2 numbers: 12 are needed, one for each pair of dimensions "
            "that rotate",
        ),
        (
            llama(rope_parameters=SCALED | {"rope_type": "proportional"}),
            960,
            "yarn",
            {},
            "llama's config does not accept 'yarn': its rope_type 'proportional' goes with linear, ntk and "
            "abf only: choose one of them",
        ),
        (
            llama(rope_parameters=DEEPSEEK),
            960,
            "linear",
            {},
            "llama ties the scale of its attention to YaRN's factor (mscale_all_dim), which 'linear' would "
            "change: choose yarn",
        ),
    ],
    ids=[
        *["below", "gpt2", "dynamic", "windowless", "unknown", "linear-option", "none-option"],
        *["no-base", "no-list", "number-for-list", "list-for-number", "short-list", "proportional", "mscale"],
    ],
)
def test_refused_with_its_reason_in_one_line(config, target, method, options, words):
    with pytest.raises(InputError) as error:
        extend_rope(config, target, method, options)
    assert str(error.value) == words


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn", "llama3"])
def test_two_steps_are_one(method):
    twice = extend_rope(extend_rope(llama(), 240, method), 960, method)
    once = extend_rope(llama(), 960, method)
    assert twice.rope_parameters == {
        key: value if isinstance(value, str) else pytest.approx(value, rel=1e-12)
        for key, value in once.rope_parameters.items()
    }


@pytest.mark.parametrize(
    ("attention", "method", "expected"),
    [
        ({}, "yarn", None),
        ({"attention_factor": 1.0}, "yarn", (0.1 * math.log(8) + 1) / (0.1 * math.log(2) + 1)),
        ({"attention_factor": 0.1 * math.log(2) + 1}, "yarn", 0.1 * math.log(8) + 1),
        ({}, "ntk-by-parts", 0.1 * math.log(2) + 1),
        ({"attention_factor": 1.0}, "ntk-by-parts", 1.0),
    ],
)
def test_the_attention_factor_of_yarn_over_yarn(attention, method, expected):
    scaled = {key: value for key, value in DEEPSEEK.items() if "mscale" not in key} | attention
    extended = extend_rope(llama(rope_parameters=scaled), 384, method).rope_parameters
    assert extended["factor"] == 8.0
    assert extended["original_max_position_embeddings"] == 48
    assert extended.get("attention_factor") == (None if expected is None else pytest.approx(expected))


def test_deepseeks_attention_scale_grows_with_the_factor():
    extended = extend_rope(llama(rope_parameters=DEEPSEEK), 384, "yarn").rope_parameters
    assert extended == DEEPSEEK | {"factor": 8.0}


def test_ministrals_own_keys_survive():
    own = DEEPSEEK | {"llama_4_scaling_beta": 0.1, "max_position_embeddings": 96}
    config = Ministral3Config(**SIZES, head_dim=24, rope_parameters=own)
    extended = extend_rope(config, 384, "yarn").rope_parameters
    assert extended == config.rope_parameters | {"factor": 8.0}


def test_a_window_that_yarn_left_at_the_original_counts_as_stretched():
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 96, "rope_theta": 700.0}
    config = llama(rope_parameters=scaled)  # as Qwen's instructions say
    assert model_window(config) == 384
    assert extend_rope(config, 768, "yarn").rope_parameters["factor"] == 8.0


@pytest.mark.parametrize("method", METHODS)
def test_phi3_has_one_type_for_all(method):
    config = Phi3Config(**SIZES)  # whose top-level original window of 4,096 would win over the parameters
    extended = extend_rope(config, 960, method, options_of(method))
    scaled = method not in ("ntk", "abf", "none")
    assert extended.rope_parameters["rope_type"] == ("longrope" if scaled else "default")
    assert extended.original_max_position_embeddings == (96 if scaled else 4096)
    like = extend_rope(llama(rope_theta=10_000.0), 960, method, options_of(method))
    assert frequencies(extended)[0] == pytest.approx(frequencies(like)[0], rel=1e-6)
    assert frequencies(extended)[1] == pytest.approx(frequencies(like)[1])


@pytest.mark.parametrize("method", METHODS)
def test_only_layers_without_a_window_are_scaled(method):
    config = Gemma3TextConfig(**SIZES, head_dim=24, layer_types=BOTH, sliding_window=9600)
    before = copy.deepcopy(config.rope_parameters)
    extended = extend_rope(config, 960, method, options_of(method)).rope_parameters
    assert config.rope_parameters == before
    assert extended["sliding_attention"] == before["sliding_attention"]
    if method != "none":
        assert extended["full_attention"] != before["full_attention"]
    if "short_factor" in extended["full_attention"]:
        # 5.17 cannot change the list of a layer type: none is ever changed
        assert extended["full_attention"]["original_max_position_embeddings"] == 960


def test_a_model_of_several_parts_is_extended_in_its_text():
    text = {**SIZES, "head_dim": 24, "layer_types": BOTH, "sliding_window": 9600}
    config = Gemma3Config(text_config=text)
    extended = extend_rope(config, 960, "yarn")
    alone = extend_rope(Gemma3TextConfig(**text), 960, "yarn")
    assert model_window(config) == 96
    assert model_window(extended) == 960
    assert extended.text_config.rope_parameters == alone.rope_parameters
    assert extended.vision_config.to_dict() == config.vision_config.to_dict()
    assert legacy_rope_keys(extended)["text_config"]["rope_scaling"]["rope_type"] == "yarn"


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        (GPTJConfig, {"rotary_dim": 6}),
        (CodeGenConfig, {"rotary_dim": 22}),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_table_becomes_parameters(family, sizes, method):
    config = family(n_embd=48, n_head=2, n_layer=2, n_positions=96, **sizes)
    size = sizes["rotary_dim"]
    extended = extend_rope(config, 960, method, options_of(method, size))
    assert extended.n_positions == 960
    assert rotary_size(extended) == rotary_size(config) == size
    share = {"partial_rotary_factor": size / 24, "rope_theta": 10_000.0}
    like = extend_rope(
        llama(rope_parameters=share | {"rope_type": "default"}), 960, method, options_of(method, size)
    )
    assert frequencies(extended) == frequencies(like)
    assert legacy_rope_keys(config) == {}


def test_the_rotary_share_survives_rounding_down():
    config = GPTJConfig(n_embd=88, n_head=2, rotary_dim=30, n_positions=96)
    assert int(44 * (30 / 44)) == 29
    assert rotary_size(config) == rotary_size(extend_rope(config, 960, "yarn")) == 30


def test_gemma4_slows_only_the_dimensions_that_turn():
    own = {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 10_000.0}
    config = llama(rope_parameters=own)
    plain = frequencies(config)[0]
    assert plain[6:] == [0.0] * 6
    linear = extend_rope(config, 960, "linear")
    assert linear.rope_parameters["rope_type"] == "proportional"
    assert frequencies(linear)[0] == pytest.approx([each / 10 for each in plain])
    ntk = frequencies(extend_rope(config, 960, "ntk"))[0]
    assert ntk[0] == plain[0]
    assert ntk[5] == pytest.approx(plain[5] / 10, rel=1e-6)


def test_layer_types_are_extended_again_like_a_model_without_them():
    both = Gemma3TextConfig(**SIZES, head_dim=24, layer_types=BOTH, sliding_window=9600)
    one = llama(rope_theta=1e6)
    for target, method in ((240, "pose-yarn"), (960, "yarn")):
        both, one = extend_rope(both, target, method), extend_rope(one, target, method)
    assert frequencies(both, "full_attention") == frequencies(one)


@pytest.mark.parametrize("method", ["none", "ntk"])
@pytest.mark.parametrize("kind", ["longrope", "yarn"])
def test_a_scaling_without_a_factor_does_not_grow_with_the_window(kind, method):
    # transformers takes max_position_embeddings / original_max_position_embeddings instead.
    lists = (
        {"short_factor": [1.0] * 12, "long_factor": [1.5] * 12} if kind == "longrope" else {"factor": None}
    )
    scaled = {"rope_type": kind, "original_max_position_embeddings": 48, "rope_theta": 700.0, **lists}
    config = llama(rope_parameters=scaled)
    extended = extend_rope(config, 960, method)
    assert frequencies(config)[1] > 1.05
    assert frequencies(extended)[1] == frequencies(config)[1]
    if method == "none":
        assert frequencies(extended) == frequencies(config)


def test_phimoes_own_factor_on_cos_and_sin_is_kept():
    scaled = {
        **{"rope_type": "longrope", "short_factor": [1.0] * 12, "long_factor": [1.5] * 12, "factor": 2.0},
        **{"original_max_position_embeddings": 48, "rope_theta": 700.0},
        **{"short_mscale": 1.3, "long_mscale": 1.4},
    }
    extended = extend_rope(PhimoeConfig(**SIZES, rope_parameters=scaled), 960, "linear").rope_parameters
    assert extended["long_factor"] == pytest.approx([15.0] * 12)
    assert (extended["short_mscale"], extended["long_mscale"]) == (1.4, 1.4)


def test_a_head_size_of_none_is_written_out():
    # Stock yarn and longrope fail on it: the model could not be built.
    config = MixtralConfig(**SIZES, sliding_window=None)
    assert config.head_dim is None
    assert extend_rope(config, 960, "yarn").head_dim == 24


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
        (
            "longrope",
            {
                "rope_theta": 500_000.0,
                "original_max_position_embeddings": 96,  # 4.57 looks for it here
                "rope_scaling": {
                    "rope_type": "longrope",
                    "factor": 2.5,
                    "short_factor": [1.5] * 12,
                    "long_factor": [1.5] * 12,
                    "original_max_position_embeddings": 96,
                    "attention_factor": pytest.approx((1 + math.log(2.5) / math.log(96)) ** 0.5),
                },
            },
        ),
    ],
)
def test_older_keys(method, keys):
    config = extend_rope(llama(), 240, method, options_of(method))
    before = copy.deepcopy(config.rope_parameters)
    assert legacy_rope_keys(config) == keys
    assert config.rope_parameters == before
    json.dumps(legacy_rope_keys(config))


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        (PhiConfig(**SIZES, partial_rotary_factor=0.75), {"partial_rotary_factor": 0.75}),
        (
            GPTNeoXConfig(**SIZES, rotary_pct=0.5, rotary_emb_base=700),
            {"rotary_pct": 0.5, "rotary_emb_base": 700, "rope_theta": 700, "partial_rotary_factor": 0.5},
        ),
        (
            Gemma3TextConfig(**SIZES, head_dim=24, layer_types=BOTH, sliding_window=9600),
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        ),
    ],
)
def test_older_names_for_the_share_and_the_base(config, keys):
    extended = extend_rope(config, 960, "yarn")
    older = legacy_rope_keys(extended)
    assert {key: older[key] for key in keys} == keys
    values = extended.to_dict()
    del values["rope_parameters"]
    # Without the newer key, and with it: transformers 5 takes the older ones first.
    for read in (values | older, extended.to_dict() | older):
        assert type(config).from_dict(copy.deepcopy(read)).rope_parameters == extended.rope_parameters


def test_no_older_keys_that_would_say_something_else():
    # ModernBERT reads an older rope_scaling into both of its layer types.
    config = ModernBertDecoderConfig(**SIZES, local_attention=19_200, layer_types=BOTH)
    assert legacy_rope_keys(extend_rope(config, 960, "yarn")) == {}
    assert legacy_rope_keys(GPT2Config()) == {}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (FalconConfig(alibi=True), "no rotary position embeddings"),
        (DeepseekV4Config(max_position_embeddings=4096), "later tokens change earlier ones"),
        (BltConfig(), r"blt has RoPE in several parts \(patcher_config, .*no single one to extend"),
        (BloomConfig(), "^bloom has ALiBi, no rotary"),
        (MptConfig(), "^mpt has ALiBi, no rotary"),
        (MambaConfig(), "^mamba has no rotary"),
        (RoFormerConfig(), "^roformer rotates by a token's place in the row"),
        (RecurrentGemmaConfig(), "^recurrent_gemma attends within windows of 2048 tokens"),
        (Zamba2Config(use_mem_rope=False), "^zamba2 has no rotary"),
    ],
)
def test_models_that_skipped_positions_would_mislead_are_refused(config, reason):
    with pytest.raises(InputError, match=reason):
        extend_rope(config, 4 * 131_072, "linear")


def test_without_a_window_the_true_reason_comes_first():
    with pytest.raises(InputError, match=r"^bloom has ALiBi"):
        model_window(BloomConfig())


def test_positions_within_windows_alone_have_nothing_to_interpolate():
    own = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    config = Gemma3TextConfig(**SIZES, layer_types=["sliding_attention"] * 2, sliding_window=24)
    config.rope_parameters = own
    with pytest.raises(InputError, match="set interpolation to none"):
        extend_rope(config, 960, "yarn")
    longer = extend_rope(config, 960, "none")
    assert longer.max_position_embeddings == 960
    assert longer.rope_parameters["sliding_attention"] == own["sliding_attention"]


@pytest.mark.parametrize(("method", "base"), [("ntk", 700 * 10 ** (24 / 22)), ("abf", 3e6), ("yarn", 700.0)])
def test_the_base_of_each_layer_follows(method, base):
    # Granite's windowed models read this list, not the base beside it; 0: no positions.
    sizes = SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
    config = GraniteSWAConfig(**sizes, layer_rope_theta=[0.0, 700.0])
    extended = extend_rope(config, 960, method, options_of(method))
    assert extended.layer_rope_theta == pytest.approx([0.0, base])
    assert extended.layer_rope_theta[1] == extended.rope_parameters["rope_theta"]


def test_parts_that_take_no_dict_are_kept():
    config = DbrxConfig(d_model=48, n_heads=2, n_layers=2, max_seq_len=96)
    extended = extend_rope(config, 960, "linear")
    assert extended.ffn_config.to_dict() == config.ffn_config.to_dict()
    assert extended.max_seq_len == 960


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(sliding_window=4096),
        Qwen2Config(use_sliding_window=False, sliding_window=4096),
    ],
)
def test_a_sliding_window_is_no_reason_to_refuse(config):  # `models.windows` cuts it by position
    target = 2 * config.max_position_embeddings
    assert extend_rope(config, target, "linear").max_position_embeddings == target
