"""Sizes counted on the meta device, against models that exist and against sums done by hand."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, MixtralConfig
from transformers.utils import logging

from skipwise.errors import InputError
from skipwise.models import size as size_module
from skipwise.models.size import Attention, Cached, model_size
from skipwise.models.trace import RANK, TOKENS, _FusedAttention, liger_kernels
from skipwise.rope import text_config

sys.path.insert(0, str(Path(__file__).parents[2] / "families"))
from tiny_configs import families, tiny_config

ONE_OF_EACH_KIND = ("llama", "qwen3", "gemma3_text", "mixtral", "deepseek_v3", "gpt_neox", "phi3", "gpt_oss")
TINY = {"hidden_size": 24, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6}
LLAMA = LlamaConfig(**TINY, num_key_value_heads=2, vocab_size=101)


def build(config, dtype=torch.float32):
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        warnings.simplefilter("ignore")
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.CRITICAL)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
        logging.set_verbosity(verbosity)
    return model


def kept_on_the_cpu(model, autocast):
    """Bytes of the storages that autograd really keeps of a row, weights and their copies left out."""
    weights = {each.data_ptr() for each in model.parameters()}
    shapes = [tuple(each.shape) for each in model.parameters() if each.ndim > 1]
    copies = {*shapes, *(each[::-1] for each in shapes)}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in copies:
            storages[storage.data_ptr()] = storage.nbytes(), storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), hooks:
        model.base_model(torch.zeros(1, TOKENS, dtype=torch.long), use_cache=True)
    return sum(each for each, _ in storages.values())


@pytest.mark.parametrize("family", ONE_OF_EACH_KIND)
def test_parameters_are_those_of_the_model(family):
    config = tiny_config(family)
    assert model_size(config).parameters == build(config).num_parameters()


@pytest.mark.slow
def test_parameters_of_every_family_that_is_taken():
    docs = Path(__file__).parents[3] / "docs"
    verdicts = json.loads((docs / "families-5.23.0.json").read_text(encoding="utf-8"))["families"]
    taken = [each for each in families() if verdicts.get(each, {}).get("verdict") in ("works", "repaired")]
    untraced = set()
    for family in taken:
        config = tiny_config(family)
        found = model_size(config)
        assert found.parameters == build(text_config(config)).num_parameters(), family
        if not found.traced:
            untraced.add(family)
    assert len(taken) > 90
    assert untraced <= {"dbrx", "jetmoe", "longcat_flash"}


def test_the_parts_of_a_llama_by_hand():
    found = model_size(LLAMA)
    hidden, shared, inner = 24, 8, 56
    matrices = 2 * hidden * hidden + 2 * hidden * shared + 3 * hidden * inner
    assert found.traced
    assert (found.embedding, found.head, found.tied) == (101 * hidden, 101 * hidden, False)
    assert (found.layers, found.layer, found.matrices) == (3, matrices + 2 * hidden, 3 * matrices)
    assert found.parameters == 3 * found.layer + hidden + 2 * found.embedding
    assert found.matrix_sides == 3 * (4 * hidden + 2 * (hidden + shared) + 3 * (hidden + inner))
    assert found.largest_matrix == 101 * hidden
    assert found.flops == pytest.approx(2 * (found.matrices + found.head), rel=1e-3)  # 5.17: and angles
    assert found.attention == (Attention(2 * hidden, None),) * 3
    assert found.cache == (Cached(2 * shared, None),) * 3


def test_ligers_kernels_keep_less_by_hand():
    found = model_size(LLAMA)
    hidden, shared, inner, heads = 24, 8, 56, 6
    core = 2 * (2 * hidden + 2 * shared) + 4 * heads + 2 * 4 + 2 * (3 * inner)  # gate, up and their product
    angles = 2 * (hidden // heads)
    norms = 2 * (2 + 2) * hidden  # what goes in and, as the matrices' input, what comes out
    assert found.liger
    assert found.kept_liger["bfloat16"].largest_layer == core + norms + 2 * angles
    wide = 2 * 4 * hidden + 2 * 5 * hidden  # in float32, then a copy for each of five matrices
    assert found.kept_liger["float32"].largest_layer == core + wide + 4 * angles
    model = size_module._build(LLAMA)
    with liger_kernels(model):
        assert "forward" in vars(model.model.norm)
    assert not any("forward" in vars(each) for each in model.modules())


def test_ligers_kernels_of_a_gate_and_up_in_one_matrix():
    found = model_size(tiny_config("phi3"))
    assert found.traced
    assert found.kept_liger["bfloat16"].everything < found.kept["bfloat16"].everything
    assert not model_size(tiny_config("gpt_neox")).liger


def test_tied_embeddings_count_once():
    tied = model_size(LlamaConfig(**TINY, vocab_size=101, tie_word_embeddings=True))
    apart = model_size(LlamaConfig(**TINY, vocab_size=101))
    assert tied.tied
    assert (tied.head, apart.parameters - tied.parameters) == (101 * 24, 101 * 24)


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "granite", "olmo2"])
def test_what_a_real_forward_pass_keeps(family, weights):
    config = tiny_config(family)
    config.use_cache = True
    model = build(config, getattr(torch, weights))
    real = kept_on_the_cpu(model, autocast=weights == "float32")
    assert model_size(config).kept[weights].everything * TOKENS == pytest.approx(real, rel=0.02)


def test_what_a_llama_keeps_by_hand():
    kept = model_size(LLAMA).kept
    hidden, shared, inner, heads, layers = 24, 8, 56, 6, 3
    # queries, keys, values, output and log-sum-exp of attention; gate, up, activation, product
    core = 2 * (2 * hidden + 2 * shared) + 4 * heads + 2 * 4 * inner
    scales = 2 * 4  # of the two norms
    half = core + 2 * (4 + 2 + 2) * hidden + scales
    wide = core + 2 * (4 + 4) * hidden + 2 * 5 * hidden + scales
    angles = 2 * (hidden // heads)  # cos and sin, which the first layer keeps for all
    assert kept["bfloat16"].largest_layer == half + 2 * angles
    assert kept["float32"].largest_layer == wide + 4 * angles
    final, indices = (4 + 2 + 2) * hidden + 4 - 2 * hidden, 8  # the last norm's output is the caller's
    assert kept["bfloat16"].everything == layers * half + 2 * angles + final + indices
    assert kept["bfloat16"].layer_inputs == layers * 2 * hidden + final + indices


def test_what_adapters_keep_by_hand():
    kept = model_size(LLAMA).kept
    hidden, shared, inner, heads = 24, 8, 56, 6
    core = 2 * (2 * hidden + 2 * shared) + 4 * heads + 2 * (3 * inner)
    norms = 2 * 4 * hidden + 2 * 4
    ranks = 7 * 2 * RANK
    copies = 2 * (3 * hidden + hidden + 2 * hidden + inner)  # of its input for each adapter
    assert kept["lora"].largest_layer == core + norms + ranks + copies
    shared_inputs = 2 * (hidden + hidden + inner)  # o_proj's is attention's output
    assert kept["qlora"].largest_layer == core + norms + ranks + shared_inputs


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss", "gpt_neox", "qwen3_moe"])
def test_the_cache_is_that_of_the_model(family):
    config = tiny_config(family)
    model, cache = build(config).eval(), DynamicCache(config=config)
    with torch.no_grad():
        model(torch.zeros(1, 5, dtype=torch.long), past_key_values=cache, use_cache=True)
    numbers = [(each.keys.numel() + each.values.numel()) // 5 for each in cache.layers]
    found = model_size(config).cache
    assert [each.numbers for each in found] == numbers
    kinds = getattr(config, "layer_types", ["full_attention"] * len(numbers))
    windows = [config.sliding_window if each == "sliding_attention" else None for each in kinds]
    assert [each.window for each in found] == windows


def test_latent_attention_caches_its_latents():
    config = tiny_config("deepseek_v3")
    found = model_size(config).cache
    assert {each.numbers for each in found} == {config.kv_lora_rank + config.qk_rope_head_dim}
    expanded = (Cached(48, None), Cached(48, 7))
    assert size_module._latent(config, expanded) == (Cached(24, None), Cached(24, 7))
    assert size_module._latent(LLAMA, expanded) == expanded


def test_attention_comes_out_in_the_layout_of_its_queries():
    whole = torch.empty(1, 6, 5, 8, device="meta")
    turned = torch.empty(1, 5, 6, 8, device="meta").transpose(1, 2)
    for query in (whole, turned):
        assert _FusedAttention.apply(query, whole, whole).stride() == query.stride()
    narrow = torch.empty(1, 6, 5, 3, device="meta")
    assert _FusedAttention.apply(whole, whole, narrow).shape == narrow.shape


def test_experts_count_in_full_and_compute_in_part():
    config = MixtralConfig(**TINY, vocab_size=101, num_local_experts=5, num_experts_per_tok=2)
    found = model_size(config)
    assert found.traced
    expert = 3 * 24 * 56
    assert found.parameters - found.embedding - found.head > 3 * 5 * expert
    router, experts = 5 * 24, 2 * expert
    met = found.head + 3 * (2 * 24 * 24 + 2 * 24 * 8 * 4 + router + experts)
    assert found.flops == pytest.approx(2 * met, rel=1e-3)


def test_without_a_trace_parameters_are_exact_and_the_rest_is_near(monkeypatch):
    exact = model_size(LLAMA)

    def fail(*_):
        raise NotImplementedError("nonzero on meta")

    monkeypatch.setattr(size_module, "_forward", fail)
    found = model_size(LLAMA)
    assert not found.traced
    assert (found.parameters, found.cache, found.attention) == (
        exact.parameters,
        exact.cache,
        exact.attention,
    )
    assert found.flops == pytest.approx(exact.flops, rel=0.02)
    for training, kept in exact.kept.items():
        assert found.kept[training].everything == pytest.approx(kept.everything, rel=0.25)


def test_a_config_of_which_no_model_can_be_built():
    with pytest.raises(InputError, match="no llama model can be built from this config"):
        model_size(LlamaConfig(**TINY | {"intermediate_size": -1}))
