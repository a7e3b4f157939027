"""The cos and sin that stock models compute from `extend_rope`'s config, against the papers in float64."""

import numpy as np
import pytest
import rope_formulas as paper
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PhiConfig

from skipwise.rope import extend_rope, legacy_rope_keys

FACTORS = (1, 2.5, 16, 64)
WINDOWS = (96, 300)
METHODS = ("linear", "ntk", "yarn", "none")
THETA = 500_000.0
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


def expected(method, d, base, alpha, window, **options):
    """Frequencies in float64 and the factor on cos and sin."""
    if method == "yarn":
        return paper.yarn(d, base, alpha, window, **options), paper.yarn_attention(alpha)
    frequencies = {
        "linear": lambda: paper.linear(d, base, alpha),
        "ntk": lambda: paper.ntk(d, base, alpha),
        "none": lambda: paper.plain(d, base),
    }[method]()
    return frequencies, 1.0


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
    config = extend_rope(llama(window), int(window * factor), method)
    assert config.max_position_embeddings == window * factor
    assert_like_the_paper(config, *expected(method, 24, THETA, factor, window))


@pytest.mark.parametrize(
    ("make", "rotary"),
    [
        (lambda: GPTNeoXConfig(**TINY, rotary_pct=0.25, max_position_embeddings=300), 6),
        (
            lambda: GPTNeoXConfig(**TINY, rotary_pct=0.75, rotary_emb_base=700, max_position_embeddings=300),
            18,
        ),
        (lambda: PhiConfig(**TINY, partial_rotary_factor=0.5, max_position_embeddings=300), 12),
    ],
    ids=["gpt_neox-6", "gpt_neox-18", "phi-12"],
)
@pytest.mark.parametrize("method", METHODS)
def test_partial_rotary_sizes(make, rotary, method):
    # NTK and YaRN depend on the number of dimensions that rotate, not on the size of the head.
    config = make()
    base = config.rope_parameters["rope_theta"]
    assert_like_the_paper(extend_rope(config, 4800, method), *expected(method, rotary, base, 16, 300))


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
        untouched, computed(extend_rope(llama(300), 300, method), positions), strict=True
    ):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("method", METHODS)
def test_the_older_keys_say_the_same(method):
    # A config.json with the older keys only, as engines that know nothing of rope_parameters read it.
    config = extend_rope(llama(300), 4800, method)
    values = config.to_dict()
    del values["rope_parameters"]
    older = LlamaConfig.from_dict(values | legacy_rope_keys(config))
    for new, old in zip(computed(config, [0, 7, 4799]), computed(older, [0, 7, 4799]), strict=True):
        np.testing.assert_array_equal(old, new)


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
