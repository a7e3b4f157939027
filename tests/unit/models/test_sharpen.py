import copy
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from skipwise.errors import InputError
from skipwise.models.gptj import as_phi
from skipwise.models.load import find_checkpoint, load_model
from skipwise.models.sharpen import sharpen
from skipwise.rope import extend_rope

FACTOR, TARGET = 1.3, 1024
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
LATENT = {
    **{"q_lora_rank": 12, "kv_lora_rank": 12, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1},
    **{"first_k_dense_replace": 2, "head_dim": 8},
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1, "experts_implementation": "eager"}
FAMILIES = {
    "llama": {"num_key_value_heads": 1},
    "llama with biases": {"attention_bias": True},
    "mistral": {"sliding_window": 5, "num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
    "phi": {"partial_rotary_factor": 0.5},
    "phi with norms": {"qk_layernorm": True},
    "stablelm": {"partial_rotary_factor": 0.25, "num_key_value_heads": 2},
    "stablelm with norms": {"qk_layernorm": True, "num_key_value_heads": 1},
    "persimmon": {"qk_layernorm": True},
    "persimmon without norms": {"qk_layernorm": False},
    "cohere": {"use_qk_norm": True, "pad_token_id": 0},
    "gemma": {"head_dim": 16, "num_key_value_heads": 1},
    "gemma2": {"num_key_value_heads": 2, "attn_implementation": "eager"},
    "qwen3": {},
    "olmo2": {},
    "phi3": {"num_key_value_heads": 1, "pad_token_id": 0},
    "gpt_neox": {"rotary_pct": 0.25},
    "gpt_neox_japanese": {"attn_implementation": "eager"},
    "gptj": {"rotary_dim": 6, "attn_implementation": "eager"},
    "deepseek_v3": LATENT,
    "deepseek_v3 without a latent query": LATENT | {"q_lora_rank": None},
    "gpt_oss": EXPERTS | {"num_key_value_heads": 1, "head_dim": 16, "attn_implementation": "eager"},
}
BY_TYPE = {
    "gemma3_text": {"head_dim": 16, "num_key_value_heads": 1},
    "olmo3": {"num_key_value_heads": 1},
}
"""Families with RoPE parameters by layer type."""


@pytest.fixture
def build(make_model):
    """A model whose biases and norms would show a mistake, in float64."""

    def made(name, **changes):
        family = name.partition(" ")[0]
        options = FAMILIES.get(name, {}) | BY_TYPE.get(family, {}) | changes
        return stirred(make_model(family, **options)).double()

    return made


def stirred(model):
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim < 2 or each.shape[0] == 2:
                each.add_(torch.randn(each.shape, generator=random) / 4)
    return model


def logits(model, skip=0):
    tokens = torch.arange(22)[None] * 4 % 97
    positions = torch.arange(22)[None] + skip * (torch.arange(22) > 9)
    with torch.no_grad():
        return model(tokens, position_ids=positions, use_cache=False).logits[0]


def attentions(model):
    return [
        each for each in model.modules() if hasattr(each, "layer_idx") and "Attention" in type(each).__name__
    ]


def with_scale(model, factor):
    """The same weights; every score multiplied by ``factor``."""
    scaled = copy.deepcopy(model)
    for each in attentions(scaled):
        for name in ("scale_attn", "norm_factor", "scaling"):
            if hasattr(each, name):
                setattr(each, name, getattr(each, name) * factor ** (1 if name == "scaling" else -1))
    return scaled


def state(model):
    return {name: each.clone() for name, each in model.state_dict().items()}


def changed(model, before):
    return {name for name, each in model.state_dict().items() if not torch.equal(each, before[name])}


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_multiplied_by_the_factor_squared(build, name):
    model = build(name)
    plain, expected = logits(model), logits(with_scale(model, FACTOR**2))
    before = state(model)
    sharpen(model, FACTOR)
    assert (expected - plain).abs().max() > 0.1 * plain.std()
    # GPT-J multiplies queries and keys in float32
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=float(1e-5 * plain.std()))
    assert 2 <= len(changed(model, before)) <= 4  # in each of 2 layers: a weight, and a bias if there is one


def test_attention_by_hand(build):
    """One Llama layer in float64: softmax(f^2 q k / sqrt(d)) v, everything but attention from the model."""
    model = build("llama", num_hidden_layers=1, num_key_value_heads=2)
    layer, tokens = model.model.layers[0], torch.arange(9)[None] * 7
    with torch.no_grad():
        hidden = model.model.embed_tokens(tokens)
        normed = layer.input_layernorm(hidden)[0]
        query, key, value = (
            getattr(layer.self_attn, f"{each}_proj")(normed).view(9, 2, 16).transpose(0, 1) for each in "qkv"
        )
        angles = torch.arange(9.0)[:, None] * 10000.0 ** (-torch.arange(8) / 8.0)
        turn = torch.polar(torch.ones(9, 8, dtype=torch.float64), angles.double())
        query, key = (torch.view_as_real(turn * torch.complex(*each.split(8, -1))) for each in (query, key))
        scores = FACTOR**2 * torch.einsum("hqdc,hkdc->hqk", query, key) / math.sqrt(16)
        shares = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf).softmax(-1)
        hidden = hidden + layer.self_attn.o_proj((shares @ value).transpose(0, 1).reshape(1, 9, 32))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        expected = model.lm_head(model.model.norm(hidden))
        plain = model(tokens).logits
        sharpen(model, FACTOR)
        found = model(tokens).logits
    assert (expected - plain).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # the model's angles are float32


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2 + windows", *BY_TYPE])
def test_the_same_as_yarns_own_factor(build, name):
    """Stock YaRN, whose factor is in the config, against its frequencies alone and the factor in the weights.

    Layers with windows too: untouched where they have parameters of their own, else like the others.
    """
    windows = MIXED | ({"use_sliding_window": True, "num_key_value_heads": 2} if "qwen2" in name else {})
    model = build(name, **(windows if name in BY_TYPE or "windows" in name else {}))
    yarn, plain, found = (under(model, each) for each in ("yarn", "ntk-by-parts", "ntk-by-parts"))
    before = state(found)
    sharpen(found, 0.1 * math.log(TARGET / 64) + 1)
    expected = logits(yarn, skip=600)
    assert (logits(plain, skip=600) - expected).abs().max() > 0.02
    # cos and sin are scaled in float32, twice
    torch.testing.assert_close(logits(found, skip=600), expected, rtol=0, atol=1e-4)
    layers = {each.split(".")[2] for each in changed(found, before)}
    assert layers == ({"1"} if name in BY_TYPE else {"0", "1"})


def under(model, method):
    """``model`` with another interpolation."""
    config = extend_rope(model.config, TARGET, method)
    made = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double()
    made.load_state_dict(model.state_dict())
    return made.eval()


def test_gptj_after_its_conversion(build):
    model = build("gptj")
    expected = logits(with_scale(model, FACTOR**2))
    phi = as_phi(model, model.config, "sdpa").eval()
    before = state(phi)
    sharpen(phi, FACTOR)
    torch.testing.assert_close(logits(phi), expected, rtol=0, atol=1e-4)
    assert len(changed(phi, before)) == 2
    assert not any(
        each.any() for name, each in phi.named_parameters() if ".self_attn." in name and "bias" in name
    )


def test_stock_transformers_reads_it(build, tmp_path):
    model = build("qwen2").float()
    sharpen(model, FACTOR)
    model.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(stock), logits(model))
    assert stock.config.rope_parameters == AutoConfig.for_model("qwen2").rope_parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_text"])
def test_weights_are_rounded_once(build, name, dtype):
    model = build(name, **(MIXED if name == "gemma3_text" else {})).to(dtype)
    before = state(model)
    sharpen(model, FACTOR)
    touched = changed(model, before)
    added = float(name == "gemma3_text")
    assert len(touched) == {"llama": 2, "qwen2": 4, "gemma3_text": 1}[name]
    for each in touched:
        expected = (before[each].double() + added) * FACTOR**2 - added
        torch.testing.assert_close(
            model.state_dict()[each].double(), expected, rtol=torch.finfo(dtype).eps, atol=2e-7
        )


def test_what_is_around_the_weights_stays(build):
    model = build("qwen2", attention_dropout=0.5).train()
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    scales, flags = ([x.scaling for x in attentions(model)], [x.requires_grad for x in model.parameters()])
    random = torch.get_rng_state()
    sharpen(model, FACTOR)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert [x.scaling for x in attentions(model)] == scales
    assert [x.requires_grad for x in model.parameters()] == flags
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    assert model.model.layers[1].self_attn.q_proj.weight.grad.any()


def test_a_tensor_that_layers_share_is_multiplied_once(build):
    model = build("qwen2")
    first, second = (each.self_attn.q_proj for each in model.model.layers)
    second.weight = first.weight
    second.bias = torch.nn.Parameter(first.bias.data)  # another parameter, the same storage
    expected = logits(with_scale(model, FACTOR**2))
    before = first.weight.clone()
    sharpen(model, FACTOR)
    torch.testing.assert_close(first.weight, before * FACTOR**2)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-9)


class OnePlus(torch.nn.LayerNorm):
    """As of Nemotron: multiplies by 1 + weight, and adds a bias."""

    def forward(self, given):
        return torch.nn.functional.layer_norm(given, self.normalized_shape, self.weight + 1, self.bias)


def test_a_norm_that_adds_one_to_its_weight_and_has_a_bias(build):
    model = build("qwen3", head_dim=16)
    for each in attentions(model):
        each.q_norm = stirred(OnePlus(16)).double()
    expected = logits(with_scale(model, FACTOR**2))
    sharpen(model, FACTOR)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-9)


def refuse(model, words="cannot be sharpened in the weights.*interpolation to yarn"):
    """InputError in one line, and the model as it was."""
    before, expected = state(model), logits(model)
    scales = [getattr(each, "scaling", None) for each in attentions(model)]
    with pytest.raises(InputError, match=words) as raised:
        sharpen(model, FACTOR)
    assert "\n" not in str(raised.value)
    assert changed(model, before) == set()
    assert [getattr(each, "scaling", None) for each in attentions(model)] == scales
    assert torch.equal(logits(model), expected)


LLAMA4 = {"intermediate_size_mlp": 48, "pad_token_id": 0, "no_rope_layers": [1, 1], "num_key_value_heads": 1}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("nanochat", {}),  # queries are normalised last, without a weight
        (
            "llama4_text",
            EXPERTS | LLAMA4 | {"layer_types": ["full_attention"] * 2, "head_dim": 16},
        ),  # so are these
        ("olmo", {"clip_qkv": 50.0}),  # far above what the short row reaches
        ("falcon", {}),  # nothing to compare with
        ("gpt2", {}),
    ],
)
def test_families_in_which_it_would_be_wrong_are_refused(build, family, options):
    refuse(build(family, **options), rf"^{family}: its attention cannot be sharpened")


def double(module, inputs, output):
    return output * 2


def normalise(module, inputs, output):
    return output / output.norm(dim=-1, keepdim=True)


def add_one(module, inputs, output):
    return output + 1


def queries_last(module, inputs, output):
    return output.roll(-16, dims=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "module", "hook"),
    [
        ("llama", "self_attn.q_proj", normalise),
        ("llama", "self_attn.q_proj", add_one),
        ("qwen3", "self_attn.q_norm", add_one),
        ("phi3", "self_attn.qkv_proj", queries_last),
        ("gpt_neox", "attention.query_key_value", queries_last),
        ("gemma3_text", "self_attn.q_norm", add_one),
    ],
)
def test_a_family_that_does_something_else_is_caught(build, name, module, hook, dtype):
    """In one layer of two, after the query's last linear map."""
    model = build(name).to(dtype)
    model.base_model.layers[1].get_submodule(module).register_forward_hook(hook)
    refuse(model)


def test_any_linear_map_behind_it_is_fine(build):
    model = build("llama")
    model.model.layers[1].self_attn.q_proj.register_forward_hook(double)
    expected = logits(with_scale(model, FACTOR**2))
    sharpen(model, FACTOR)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-9)


def test_a_query_weight_that_is_a_key_weight_too_is_caught(build):
    model = build("llama", num_key_value_heads=2)
    attention = model.model.layers[0].self_attn
    attention.k_proj.weight = attention.q_proj.weight
    refuse(model)


def test_a_norm_that_queries_and_keys_share_is_caught(build):
    model = build("qwen3")
    attention = model.model.layers[0].self_attn
    attention.k_norm = attention.q_norm
    refuse(model)


def test_a_layer_whose_query_is_not_known_is_caught(build, monkeypatch):
    model = build("llama")
    attention = model.model.layers[1].self_attn
    attention.asked = attention.q_proj
    del attention.q_proj
    attention.register_forward_pre_hook(lambda module, _: module.__dict__.update(q_proj=module.asked))
    refuse(model)
    monkeypatch.setattr(
        "skipwise.models.sharpen._agree", lambda *_: True
    )  # a deep model hides one of its layers
    refuse(model)


@pytest.mark.parametrize("hook", [double, normalise])
def test_a_scale_that_is_not_used_is_caught(build, hook):
    """Also where nothing changes either way."""
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(hook)
        fixed = layer.self_attn.scaling
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, inputs, fixed=fixed: module.__dict__.update(scaling=fixed), with_kwargs=True
        )
    refuse(model)


def test_weights_come_back_when_the_row_fails(build):
    model = build("llama").train()
    before, calls = state(model), []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError

    model.lm_head.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        sharpen(model, FACTOR)
    assert changed(model, before) == set()
    assert model.training


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_no_factor(build, factor):
    with pytest.raises(InputError, match=r"^attention_factor = .*must be a positive number$"):
        sharpen(build("llama"), factor)


def test_quantised_weights_are_refused(build):
    model = build("llama")
    model.is_quantized = True
    with pytest.raises(InputError, match=r"^llama: .*quantise afterwards$"):
        sharpen(model, FACTOR)


def test_windows_cut_by_position_are_no_obstacle(build, tmp_path):
    build("mistral").float().save_pretrained(tmp_path)
    model = load_model(find_checkpoint(str(tmp_path)))
    assert model.model._forward_pre_hooks
    expected = logits(with_scale(model, FACTOR**2))
    sharpen(model, FACTOR)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)
