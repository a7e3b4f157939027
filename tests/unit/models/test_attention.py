"""xformers under `transformers`, with a stand-in for the package: its checks, and float64 inside."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedTokenizerFast
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from skipwise.errors import InputError
from skipwise.export.checkpoint import export_checkpoint
from skipwise.models.attention import resolve_attention, xformers_attention
from skipwise.models.check import available_backends
from skipwise.models.load import find_checkpoint, load_model
from skipwise.models.probes import probe
from skipwise.models.repairs import repair

SPAN, LENGTH = 7, 13
MIXED = ["sliding_attention", "full_attention"]
FAMILIES = {
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "phi": {},
    "mistral": {"sliding_window": SPAN, "num_key_value_heads": 1},
    "gemma3_text": {
        **{"sliding_window": SPAN, "layer_types": MIXED, "head_dim": 16, "num_key_value_heads": 1},
        "query_pre_attn_scalar": 5,  # not the head's size: the scaling must be passed on
    },
    "deepseek_v3": {  # values are narrower than keys
        **{"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1},
        **{"q_lora_rank": 16, "kv_lora_rank": 16, "first_k_dense_replace": 2, "num_key_value_heads": 2},
        **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12, "head_dim": 8},
    },
}


class LowerTriangularMask:
    """Query i sees keys 0 .. i."""


KINDS = {"mistral": [torch.Tensor] * 2, "gemma3_text": [torch.Tensor, LowerTriangularMask]}
"""What each layer of a family with windows gets."""


class StandIn:
    """`xformers.ops.memory_efficient_attention` in float64, with the checks that the real one makes."""

    def __init__(self):
        self.calls = []

    def __call__(self, query, key, value, attn_bias=None, p=0.0, scale=None):
        """query (B, M, H, K); key, value (B, N, H, K); attn_bias (B, H, M, N) -> (B, M, H, K)."""
        self.calls.append(SimpleNamespace(bias=attn_bias, p=p, scale=scale, dtype=query.dtype))
        assert query.shape[::2] == key.shape[::2], "no broadcasting of batch and heads"
        assert query.shape[3] == key.shape[3]
        assert key.shape[:3] == value.shape[:3]
        assert query.dtype == key.dtype == value.dtype
        scores = torch.einsum("bmhk,bnhk->bhmn", query.double(), key.double())
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
        if isinstance(attn_bias, LowerTriangularMask):
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -torch.inf)
        elif attn_bias is not None:
            assert attn_bias.shape == scores.shape
            assert attn_bias.dtype == query.dtype
            assert attn_bias.stride(-1) == 1
            assert all(stride % 8 == 0 for stride in attn_bias.stride()[:-1])
            assert attn_bias.isfinite().all()
            scores = scores + attn_bias.double()
        shares = torch.nn.functional.dropout(scores.softmax(-1), p)
        return torch.einsum("bhmn,bnhk->bmhk", shares, value.double()).to(query.dtype)


@pytest.fixture
def kernel(monkeypatch):
    """The stand-in, installed as the package would be; what is registered goes with it."""
    found = StandIn()
    package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    package.__spec__ = ModuleSpec("xformers", None)
    ops.memory_efficient_attention, ops.LowerTriangularMask = found, LowerTriangularMask
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    yield found
    for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        table._global_mapping.pop("xformers", None)


@pytest.fixture(params=FAMILIES)
def pair(request, make_model, kernel):
    """One model under eager attention, and the same under xformers."""
    return both(make_model, request.param)


def both(make_model, family, **changes):
    config = FAMILIES.get(family, {}) | changes
    models = [
        make_model(family, **config, attn_implementation=name)
        for name in ("eager", resolve_attention(AutoConfig.for_model(family), "xformers"))
    ]
    for model in models:
        repair(model)
    return models


def batch(hidden=()):
    """Two rows that skip positions; ``hidden`` tokens of the second are padding."""
    tokens = torch.arange(2 * LENGTH).view(2, -1) * 5 % 97
    mask = torch.ones_like(tokens)
    mask[1, list(hidden)] = 0
    positions = torch.arange(LENGTH) + torch.tensor([[3], [20]]) * (torch.arange(LENGTH) >= 6)
    return {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, "use_cache": False}


@pytest.mark.parametrize("hidden", [(), (0, 1), (-2, -1)], ids=["whole", "left", "right"])
def test_logits_are_those_of_eager(pair, hidden):
    inputs = batch(hidden)
    with torch.no_grad():
        expected, found = (model(**inputs).logits for model in pair)
    seen = inputs["attention_mask"] == 1  # what padding computes is nobody's business, but it is a number
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-4, atol=1e-4)
    assert found.isfinite().all()


@pytest.mark.parametrize("hidden", [(), (0, 1)], ids=["whole", "left"])
def test_gradients_are_those_of_eager(pair, hidden):
    inputs, found = batch(hidden), []
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for model in pair:
        model(**inputs, labels=labels).loss.backward()
        found.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-3, atol=1e-4, msg=name)


def test_the_probes_hold(pair):
    assert probe(pair[1], 64).failures() == []


def test_whole_rows_take_the_causal_kernel_and_others_a_bias(pair, kernel):
    kind = pair[1].config.model_type
    with torch.no_grad():
        pair[1](**batch())
        assert [type(call.bias) for call in kernel.calls] == KINDS.get(kind, [LowerTriangularMask] * 2)
        kernel.calls.clear()
        pair[1](**batch((0, 1)))
    assert {type(call.bias) for call in kernel.calls} == {torch.Tensor}


def test_all_layers_share_the_memory_of_a_bias(make_model, kernel):
    _, model = both(make_model, "mistral")
    with torch.no_grad():
        model(**batch())
    assert len(kernel.calls) == 2
    assert len({call.bias.data_ptr() for call in kernel.calls}) == 1


def test_dropout_and_scaling_are_passed_on(make_model, kernel):
    _, model = both(make_model, "gemma3_text", attention_dropout=0.25)
    with torch.no_grad():
        model.eval()(**batch())
        model.train()(**batch())
    assert [call.p for call in kernel.calls] == [0.0, 0.0, 0.25, 0.25]
    assert {call.scale for call in kernel.calls} == {5**-0.5}


@pytest.mark.parametrize("family", ["mistral", "llama", "qwen3"])
def test_autocast_reaches_queries_keys_and_bias(make_model, kernel, family):
    _, model = both(make_model, family)
    inputs, rows = batch((0, 1)), torch.ones(1, 2, 3, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(**inputs).logits
        assert len({call.bias.data_ptr() for call in kernel.calls}) == 1  # made in that dtype at once
        xformers_attention(torch.nn.Module(), rows, rows, rows, None)  # of float32, as norms leave them
    assert {call.dtype for call in kernel.calls} == {torch.bfloat16}
    with torch.no_grad():
        expected = model(**inputs).logits
    assert (found - expected)[inputs["attention_mask"] == 1].abs().max() < 0.1 * expected.std()


@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_mask_of_numbers_is_added(make_model, kernel, lowest):
    _, model = both(make_model, "llama")
    inputs = batch()
    visible = torch.ones(LENGTH, LENGTH).tril().bool()
    mask = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~visible, lowest)
    with torch.no_grad():
        expected = model(**inputs).logits
        found = model(**inputs | {"attention_mask": mask}).logits
        model.to(torch.bfloat16)(**inputs | {"attention_mask": mask})  # in which that number is infinite
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_generation_is_that_of_eager(pair):
    tokens = batch()["input_ids"]
    options = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 9, "do_sample": False}
    expected, found = (model.generate(tokens, **options) for model in pair)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("family", "what"), [("gemma2", "caps its attention scores"), ("gpt_oss", "has attention sinks")]
)
def test_what_xformers_lacks_is_refused(make_model, kernel, family, what):
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1} if family == "gpt_oss" else {}
    _, model = both(make_model, family, **sizes)
    with pytest.raises(InputError, match=f"^{family}(_text)? {what}, which xformers .*eager$"):
        model(**batch())


def test_tensors_without_a_kernel_are_named_in_one_line(make_model, kernel, monkeypatch):
    def refuse(*arguments, **options):
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`\nckF ...")

    _, model = both(make_model, "llama")
    monkeypatch.setattr(sys.modules["xformers.ops"], "memory_efficient_attention", refuse)
    with pytest.raises(InputError, match=r"^xformers has no kernel for float32 heads of size 8 on cpu: .*$"):
        model(**batch())


def test_a_layer_that_is_not_causal_sees_all(kernel):
    query = torch.randn(1, 2, LENGTH, 8, generator=torch.Generator().manual_seed(0))
    xformers_attention(torch.nn.Module(), query, query, query, None, is_causal=False)
    xformers_attention(torch.nn.Module(), query[:, :, :1], query, query, None)
    assert [call.bias for call in kernel.calls] == [None, None]


def test_a_checkpoint_is_loaded_and_exported_without_a_trace(make_model, kernel, tmp_path):
    assert available_backends()[-1] == "xformers"
    make_model("mistral", **FAMILIES["mistral"]).save_pretrained(tmp_path / "in")
    model = load_model(find_checkpoint(str(tmp_path / "in")), attention="xformers")
    assert model.config._attn_implementation == "xformers"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    export_checkpoint(model, tokenizer, tmp_path / "out")
    assert "xformers" not in json.dumps(json.loads((tmp_path / "out/config.json").read_text()))


def test_a_missing_package_is_one_line_and_asked_for_only_by_name(make_model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "xformers", None)  # any import of it raises
    make_model().save_pretrained(tmp_path)
    checkpoint = find_checkpoint(str(tmp_path))
    assert load_model(checkpoint).config._attn_implementation == "sdpa"
    with pytest.raises(InputError, match=r"^attention xformers needs its package .*: pip install xformers,"):
        load_model(checkpoint, attention="xformers")
    assert "xformers" not in ALL_ATTENTION_FUNCTIONS.valid_keys()


@pytest.mark.filterwarnings("ignore")  # a hundred families' own, as they are imported
def test_auto_is_what_transformers_takes_by_itself():
    found, expected = {}, {}
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        if kind.model_type not in ("gptj", "codegen"):
            model_class = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
            found[kind.model_type] = resolve_attention(kind.__new__(kind))
            expected[kind.model_type] = model_class.__new__(model_class).get_correct_attn_implementation(None)
    assert found == expected
    assert set(found.values()) == {"sdpa", "eager"}
    assert len(found) > 90


def test_families_that_become_phi_have_what_phi_has():
    assert resolve_attention(AutoConfig.for_model("gptj")) == "sdpa"


def test_a_name_is_left_alone():
    config = AutoConfig.for_model("llama")
    assert [resolve_attention(config, name) for name in ("eager", "flex_attention")] == [
        "eager",
        "flex_attention",
    ]
