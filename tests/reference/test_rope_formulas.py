"""The cos and sin that stock models compute from `extend_rope`'s config, against the papers in float64."""

import numpy as np
import pytest
import rope_formulas as paper
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from skipwise.rope import extend_rope, legacy_rope_keys

FACTORS = (1, 2.5, 16, 64)
WINDOWS = (96, 300)
METHODS = ("linear", "ntk", "abf", "yarn", "ntk-by-parts", "pose-yarn", "llama3", "longrope", "none")
THETA = 500_000.0
BOTH = ["sliding_attention", "full_attention"]
TINY = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 61,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def llama(window, **more):
    heads = {"head_dim": 24, "num_key_value_heads": 1, "rope_theta": THETA}
    return LlamaConfig(**TINY, **heads, max_position_embeddings=window, **more)


def options_of(method, d):
    """What a method cannot do without; the list rises unevenly, so that a wrong order shows."""
    given = {
        "abf": {"rope_theta": 3e6},
        "longrope": {"long_factor": [1 + 0.3 * j**1.1 for j in range(d // 2)]},
    }
    return given.get(method, {})


def expected(method, d, base, alpha, window, **ramp):
    """Frequencies in float64 and the factor on cos and sin."""
    frequencies = {
        "linear": lambda: paper.linear(d, base, alpha),
        "ntk": lambda: paper.ntk(d, base, alpha),
        "abf": lambda: paper.plain(d, 3e6),
        "yarn": lambda: paper.yarn(d, base, alpha, window, **ramp),
        "ntk-by-parts": lambda: paper.yarn(d, base, alpha, window, **ramp),
        "pose-yarn": lambda: paper.pose_yarn(d, base, alpha, window, **ramp),
        "llama3": lambda: paper.llama3(d, base, alpha, window),
        "longrope": lambda: paper.longrope(d, base, options_of("longrope", d)["long_factor"]),
        "none": lambda: paper.plain(d, base),
    }[method]()
    attention = {
        "yarn": paper.yarn_attention(alpha),
        "pose-yarn": paper.yarn_attention(alpha),
        "longrope": paper.longrope_attention(alpha, window),
    }
    return frequencies, attention.get(method, 1.0)


def computed(config, positions):
    """inv_freq of the model, and the cos and sin that reach the attention of its last layer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    layer = [module for name, module in model.named_modules() if name.endswith(("self_attn", "attention"))][
        -1
    ]
    seen = {}
    hook = layer.register_forward_pre_hook(lambda _, args, inputs: seen.update(inputs), with_kwargs=True)
    tokens = torch.arange(len(positions))[None] % config.vocab_size
    with torch.no_grad():
        model(
            input_ids=tokens,
            position_ids=torch.tensor(positions)[None],
            attention_mask=torch.ones_like(tokens),
            use_cache=False,
        )
    hook.remove()
    rotary = next(module for module in model.modules() if hasattr(module, "inv_freq"))
    cos, sin = (each[0].double().numpy() for each in seen["position_embeddings"])
    return rotary.inv_freq.double().numpy(), cos, sin


def some_positions(target):
    """Odd places over the whole target, its last position among them."""
    found = np.unique(np.concatenate([np.arange(7), np.geomspace(7, target - 1, 41).astype(int)]))
    return [*found[found < target - 1].tolist(), target - 1]


def assert_like_the_paper(config, frequencies, attention):
    positions = some_positions(config.max_position_embeddings)
    inv_freq, cos, sin = computed(config, positions)
    # float32 gives base^x to about ln(base) half units in the last place: 2e-6 is twice that for 500,000.
    np.testing.assert_allclose(inv_freq, frequencies, rtol=2e-6, atol=0)
    angles = np.array(positions)[:, None] * frequencies
    angles = np.concatenate([angles, angles], axis=1)  # both halves of the rotated pairs
    assert cos.shape == sin.shape == angles.shape
    allowed = attention * (2e-6 * angles + 1e-6)
    assert (np.abs(cos - attention * np.cos(angles)) <= allowed).all()
    assert (np.abs(sin - attention * np.sin(angles)) <= allowed).all()


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("method", METHODS)
def test_a_llama_computes_what_the_paper_says(method, window, factor):
    config = extend_rope(llama(window), int(window * factor), method, options_of(method, 24))
    assert config.max_position_embeddings == window * factor
    frequencies, attention = expected(method, 24, THETA, factor, window)
    if factor == 1:
        frequencies, attention = paper.plain(24, THETA), 1.0
    assert_like_the_paper(config, frequencies, attention)


@pytest.mark.parametrize(
    "options", [{"beta_fast": 8.0}, {"beta_slow": 2.5}, {"beta_fast": 5.5, "beta_slow": 0.5}]
)
def test_yarn_ramp_options(options):
    config = extend_rope(llama(300), 4800, "yarn", options)
    names = {"beta_fast": "fast", "beta_slow": "slow"}
    ramp = {names[key]: value for key, value in options.items()}
    frequencies = paper.yarn(24, THETA, 16, 300, **ramp)
    assert not np.allclose(frequencies, paper.yarn(24, THETA, 16, 300))  # the option matters at this size
    assert_like_the_paper(config, frequencies, paper.yarn_attention(16))


@pytest.mark.parametrize("stretch", [1.0, 2.5, 40.0])
def test_ntk_factor_option(stretch):
    config = extend_rope(llama(300), 4800, "ntk", {"factor": stretch})
    assert_like_the_paper(config, paper.ntk(24, THETA, stretch), 1.0)


def test_yarn_attention_option():
    config = extend_rope(llama(300), 4800, "yarn", {"attention_factor": 1.5})
    assert_like_the_paper(config, paper.yarn(24, THETA, 16, 300), 1.5)


@pytest.mark.parametrize("method", METHODS)
def test_factor_one_is_the_untouched_model_bit_for_bit(method):
    positions = some_positions(300)
    untouched = computed(llama(300), positions)
    for before, after in zip(
        untouched,
        computed(extend_rope(llama(300), 300, method, options_of(method, 24)), positions),
        strict=True,
    ):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("method", METHODS)
def test_the_older_keys_say_the_same(method):
    # A config.json with the older keys only, as engines that know nothing of rope_parameters read it.
    config = extend_rope(llama(300), 4800, method, options_of(method, 24))
    values = config.to_dict()
    del values["rope_parameters"]
    older = LlamaConfig.from_dict(values | legacy_rope_keys(config))
    for new, old in zip(computed(config, [0, 7, 4799]), computed(older, [0, 7, 4799]), strict=True):
        np.testing.assert_array_equal(old, new)


IDS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
MLA = {
    **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "q_lora_rank": 16, "kv_lora_rank": 16},
    **{"first_k_dense_replace": 2, "n_routed_experts": 4},
}
FAMILIES = {
    "llama": (24, {"head_dim": 24}),
    "mistral": (24, {"sliding_window": None}),
    "mixtral": (24, {"num_local_experts": 2}),
    "qwen2": (24, {}),
    "qwen3": (32, {"head_dim": 32}),
    "gemma": (16, {"head_dim": 16}),
    "gemma2": (16, {"head_dim": 16, "sliding_window": 9600}),
    "olmo2": (24, {}),
    "phi": (12, {"partial_rotary_factor": 0.5, "num_key_value_heads": 2}),
    "phi3": (24, {}),
    "phimoe": (24, {"num_local_experts": 2}),
    "gpt_neox": (18, {"rotary_pct": 0.75, "rotary_emb_base": 700}),
    "stablelm": (6, {"partial_rotary_factor": 0.25}),
    "persimmon": (12, {"partial_rotary_factor": 0.5}),
    "granite": (24, {}),
    "deepseek_v2": (8, MLA | {"num_key_value_heads": 2}),
    "deepseek_v3": (8, MLA | {"num_key_value_heads": 2}),
    "glm4": (8, {"head_dim": 16, "partial_rotary_factor": 0.5}),
    "cohere": (24, {}),
    "starcoder2": (24, {"sliding_window": None}),
    "smollm3": (24, {}),
    "gemma3_text": (16, {"head_dim": 16, "sliding_window": 9600, "layer_types": BOTH}),
    "olmo3": (24, {"sliding_window": 9600, "layer_types": BOTH}),
    "modernbert-decoder": (24, {"local_attention": 19200, "layer_types": BOTH, **IDS}),
}
"""The rotary size of each, and what makes its config tiny or awkward: no head_dim, part of a head, MLA."""


def family_config(family):
    _, awkward = FAMILIES[family]
    given = TINY | {"num_key_value_heads": 1, "max_position_embeddings": 300} | awkward
    return AutoConfig.for_model(family, **given)


def heard(config, positions):
    """cos and sin as the rotary module of a whole model returns them: by layer type, each ``(n, d / 2)``."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    rotary = next(
        module for name, module in model.named_modules() if "rotary" in name.rpartition(".")[2].lower()
    )
    found = {}

    def listen(_, args, inputs, output):
        layer_type = inputs.get("layer_type", args[2] if len(args) > 2 else None)
        found[layer_type] = (output.real, output.imag) if torch.is_tensor(output) else output

    hook = rotary.register_forward_hook(listen, with_kwargs=True)
    tokens = torch.arange(len(positions))[None] % config.vocab_size
    with torch.no_grad():
        for _ in range(2):  # longrope changes its tables on the way: the second row must find the same
            model(input_ids=tokens, position_ids=torch.tensor(positions)[None], use_cache=False)
    hook.remove()
    return {name: [each[0].double().numpy() for each in pair] for name, pair in found.items()}


def assert_angles(pair, positions, frequencies, attention):
    angles = np.array(positions)[:, None] * frequencies
    for each, function in zip(pair, (np.cos, np.sin), strict=True):
        layouts = [angles, np.tile(angles, 2), np.repeat(angles, 2, axis=1)]  # as the family stores pairs
        wrong = [
            np.abs(each - attention * function(layout)) / (attention * (3e-6 * layout + 2e-6))
            for layout in layouts
            if layout.shape == each.shape
        ]
        assert min(error.max() for error in wrong) <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_what_the_paper_says(family, method):
    d, _ = FAMILIES[family]
    config = family_config(family)
    own = config.rope_parameters
    base = own.get("full_attention", own).get("rope_theta")
    positions = some_positions(4800)
    extended = extend_rope(config, 4800, method, options_of(method, d))
    assert extended.max_position_embeddings == 4800
    found = heard(extended, positions)
    frequencies, attention = expected(method, d, base, 16, 300)
    assert_angles(found.get("full_attention", found.get(None)), positions, frequencies, attention)
    if "sliding_attention" in found:  # a layer with a window meets no new distance: it keeps its own
        local = paper.plain(d, own["sliding_attention"]["rope_theta"])
        assert_angles(found["sliding_attention"], positions, local, 1.0)


HALF = {"rope_theta": THETA, "original_max_position_embeddings": 300}
SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": THETA},
    "yarn": {"rope_type": "yarn", "factor": 4.0, **HALF},
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.5, "high_freq_factor": 3.5, **HALF},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 12,
        "long_factor": [1 + 0.25 * j for j in range(12)],
        "factor": 4.0,
        **HALF,
    },
}
"""Models of window 300 that were already stretched 4 times, to 1,200; another 4 go to 4,800."""
ALREADY = {
    "linear": (paper.linear(24, THETA, 4), 1.0),
    "yarn": (paper.yarn(24, THETA, 4, 300), paper.yarn_attention(4)),
    "llama3": (paper.llama3(24, THETA, 4, 300, 1.5, 3.5), 1.0),
    "longrope": (
        paper.longrope(24, THETA, SCALED["longrope"]["long_factor"]),
        paper.longrope_attention(4, 300),
    ),
}
TOGETHER = {
    ("linear", "linear"): (paper.linear(24, THETA, 16), 1.0),
    ("yarn", "yarn"): (paper.yarn(24, THETA, 16, 300), paper.yarn_attention(16)),
    ("yarn", "ntk-by-parts"): (paper.yarn(24, THETA, 16, 300), paper.yarn_attention(4)),
    ("llama3", "llama3"): (paper.llama3(24, THETA, 16, 300, 1.5, 3.5), 1.0),
}
"""Over its own kind a scaling says both with one factor."""


def stretched_base(method):
    return {"ntk": THETA * 4 ** (24 / 22), "abf": 3e6}[method]


def composed(kind, method):
    now, attention = ALREADY[kind]
    if (kind, method) in TOGETHER:
        return TOGETHER[kind, method]
    if method == "none":
        return now, attention
    if method in ("ntk", "abf"):
        base = stretched_base(method)
        rebased = {
            "linear": lambda: paper.linear(24, base, 4),
            "yarn": lambda: paper.yarn(24, base, 4, 300),
            "llama3": lambda: paper.llama3(24, base, 4, 300, 1.5, 3.5),
            "longrope": lambda: paper.longrope(24, base, SCALED["longrope"]["long_factor"]),
        }
        return rebased[kind](), attention
    if method == "longrope":
        return expected("longrope", 24, THETA, 16, 300)
    further, more = expected(method, 24, THETA, 4, 300)
    return now * further / paper.plain(24, THETA), attention * more


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SCALED)
def test_a_scaled_model_is_extended_from_what_it_was_trained_with(kind, method):
    config = LlamaConfig(
        **TINY, head_dim=24, num_key_value_heads=1, max_position_embeddings=1200, rope_parameters=SCALED[kind]
    )
    assert_like_the_paper(config, *ALREADY[kind])
    extended = extend_rope(config, 4800, method, options_of(method, 24))
    assert_like_the_paper(extended, *composed(kind, method))
    same = extend_rope(config, 1200, method, options_of(method, 24))
    assert same.to_dict() == config.to_dict()


def test_the_formulas_at_their_ends():
    frequencies = paper.plain(24, THETA)
    assert frequencies[0] == 1
    # NTK: the highest frequency is kept, the lowest divided by alpha; as a base it is b alpha^(d/(d-2)).
    assert paper.ntk(24, THETA, 16)[[0, -1]] == pytest.approx([1, frequencies[-1] / 16])
    np.testing.assert_allclose(paper.ntk(24, THETA, 16), paper.plain(24, THETA * 16 ** (24 / 22)), rtol=1e-13)
    # YaRN in a long window: many turns are kept, fewer than one turn are divided, in between it falls.
    ratio = frequencies / paper.yarn(24, THETA, 16, 8192)
    turns = 8192 * frequencies / (2 * np.pi)
    assert ratio[turns > 64] == pytest.approx(1)
    assert ratio[turns < 0.25] == pytest.approx(16)
    assert (np.diff(ratio) >= -1e-9).all()
    assert paper.yarn_attention(1) == 1
