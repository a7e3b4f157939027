import importlib
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from skipwise.errors import InputError
from skipwise.models import check
from skipwise.models.check import available_backends, check_checkpoint
from skipwise.models.tiny import save_tiny, tiny

THREE = ["sdpa", "eager", "flex_attention"]
CUT_BY_POSITION = "windows of its attention are cut by position instead of by index"
SOUND = "every probe holds on the stock class as it is"
AS_PHI = "becomes a PhiForCausalLM"


@pytest.fixture
def folder(tmp_path):
    """``folder(family, **changes)``: a checkpoint of that family's real size, without its weights."""

    def write(family, **changes):
        AutoConfig.for_model(family, **changes).save_pretrained(tmp_path / family)
        return str(tmp_path / family)

    return write


@pytest.fixture
def break_masks(monkeypatch):
    """``break_masks(how, *backends)``: Llama's masks are made by ``how(stock, arguments)`` under these."""
    llama = importlib.import_module("transformers.models.llama.modeling_llama")
    stock = llama.create_causal_mask

    def put_in(how, *backends):
        def broken(**arguments):
            meant = arguments["config"]._attn_implementation in backends
            return how(stock, arguments) if meant else stock(**arguments)

        monkeypatch.setattr(llama, "create_causal_mask", broken)

    return put_in


def cut(stock, arguments):
    """The stock mask of a row without a padding mask, in which every jump starts another document."""
    return stock(**arguments | {"attention_mask": None})


def see_all(stock, arguments):
    return torch.ones(1, 1, *[arguments["inputs_embeds"].shape[1]] * 2, dtype=torch.bool)


def fail(stock, arguments):
    raise NotImplementedError("no such kernel\nand a second line")


@pytest.mark.parametrize(
    ("family", "verdict", "reason"),
    [
        ("llama", "works", SOUND),
        ("qwen2", "works", SOUND),
        ("qwen3", "works", SOUND),
        ("olmo2", "works", SOUND),
        ("phi", "works", SOUND),
        ("gpt_neox", "works", SOUND),
        ("mixtral", "works", SOUND),
        ("deepseek_v3", "works", SOUND),
        ("gemma3_text", "repaired", CUT_BY_POSITION),
        ("gemma3", "repaired", CUT_BY_POSITION),  # of several parts: its text
        ("gptj", "repaired", AS_PHI),
        ("codegen", "repaired", AS_PHI),
        ("gpt2", "refused", "no rotary position embeddings"),
        ("bloom", "refused", "bloom has ALiBi, no rotary position embeddings"),
        ("mamba", "refused", "no rotary position embeddings"),
    ],
)
def test_families_get_their_verdict_at_their_real_config(folder, family, verdict, reason):
    found = check_checkpoint(folder(family))
    assert (found.family, found.verdict) == (family, verdict)
    assert reason in found.reason
    if verdict == "refused":
        assert (found.backends, found.not_run, found.angle_error) == ({}, {}, None)
        return
    assert list(found.backends) == THREE
    for each in found.backends.values():
        values = each.to_json()
        assert (values["visible"], values["causal"]) == (True, True)
        assert values["oracle_error"] < 1e-4
    assert found.target_length == 4 * found.window
    assert 0 < found.angle_error < 0.1


ONLY_ATTENTION = "its hybrid layers run through a row token by token and take no notice of a skip"
NO_POSITIONS = (
    "distances beyond its windows of 4096 tokens change nothing, since layers that see further have"
)
TOO_SHORT = "distances beyond its windows of 4096 tokens change nothing, since none sees further"


@pytest.mark.parametrize(
    ("family", "verdict", "limit"),
    [
        ("falcon_h1", "works", ONLY_ATTENTION),
        ("cohere2", "repaired", NO_POSITIONS),
        ("mistral", "repaired", TOO_SHORT),
    ],
)
def test_limits_need_a_yes_and_are_named(folder, monkeypatch, family, verdict, limit):
    monkeypatch.setattr(check, "available_backends", lambda: ("sdpa",))
    name = folder(family)
    found = check_checkpoint(name)
    assert found.verdict == "refused"
    assert found.reason.startswith(limit)
    assert found.reason.endswith("; if that is enough, go on with accept_limits (--accept-limits)")
    accepted = check_checkpoint(name, accept_limits=True)
    assert (accepted.verdict, limit in accepted.reason) == (verdict, True)
    assert "--accept-limits" not in accepted.reason
    assert (CUT_BY_POSITION in accepted.reason) == (verdict == "repaired")
    keys = {"family", "verdict", "reason", "backends", "not_run", "angle_error"}
    assert accepted.to_json().keys() == keys | {"window", "target_length", "rope"}
    error = accepted.backends["sdpa"].to_json()["oracle_error"]
    assert (error > 0.1) == (family == "falcon_h1")


def test_a_yes_to_limits_is_none_to_failures(folder, break_masks, monkeypatch):
    monkeypatch.setattr(check, "available_backends", lambda: ("sdpa",))
    break_masks(see_all, "sdpa")
    assert check_checkpoint(folder("llama"), accept_limits=True).verdict == "refused"


def test_a_family_without_sdpa_is_judged_by_eager(folder):
    name = folder("gpt_oss")
    found = check_checkpoint(name)
    assert found.verdict == "repaired"
    assert found.reason == f"{CUT_BY_POSITION}; with eager attention only: transformers has no sdpa for it"
    assert "sdpa" not in found.backends
    assert found.not_run["sdpa"].startswith(f"{name} cannot be loaded: its family has no sdpa attention")
    assert found.angle_error == found.backends["eager"].report.angle_error


def test_a_model_that_cuts_rows_is_refused(folder, break_masks):
    break_masks(cut, *THREE)
    found = check_checkpoint(folder("llama"))
    assert found.verdict == "refused"
    assert found.reason == "token 0 does not reach chunk 2: the attention mask cuts the row at the skip"
    assert [each.to_json()["visible"] for each in found.backends.values()] == [False] * 3
    assert [each.to_json()["causal"] for each in found.backends.values()] == [True] * 3


def test_a_model_that_sees_ahead_is_refused_and_what_would_do_is_named(folder, break_masks):
    break_masks(see_all, "sdpa")
    found = check_checkpoint(folder("llama"))
    assert found.verdict == "refused"
    assert found.reason == (
        "a later token changes an earlier one: the attention is not causal; "
        "eager and flex_attention would do: choose with --attention"
    )
    assert [each.to_json()["causal"] for each in found.backends.values()] == [False, True, True]


def test_another_back_end_changes_no_verdict(folder, break_masks):
    break_masks(cut, "eager")
    found = check_checkpoint(folder("llama"))
    assert (found.verdict, found.reason) == ("works", SOUND)
    assert [each.to_json()["visible"] for each in found.backends.values()] == [True, False, True]


def test_a_back_end_that_does_not_run_is_named_with_its_reason(folder, break_masks):
    break_masks(fail, "flex_attention")
    found = check_checkpoint(folder("llama"))
    assert (found.verdict, list(found.backends)) == ("works", ["sdpa", "eager"])
    reason = "transformers fails under it, NotImplementedError: no such kernel"
    assert found.not_run == {"flex_attention": reason}


def test_a_model_that_runs_under_none_is_refused(folder, break_masks):
    break_masks(fail, *THREE)
    found = check_checkpoint(folder("llama"))
    assert (found.verdict, found.backends, list(found.not_run)) == ("refused", {}, THREE)
    assert "no such kernel" in found.reason


def test_windows_that_a_back_end_cannot_cut_are_its_reason(folder, monkeypatch):
    stock = importlib.import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
    monkeypatch.setitem(stock._global_mapping, "by_index", stock["sdpa"])
    assert available_backends()[:3] == tuple(THREE)
    monkeypatch.setattr(check, "available_backends", lambda: (*THREE, "by_index"))
    found = check_checkpoint(folder("gemma3_text"))
    assert found.verdict == "repaired"
    assert "which by_index cuts by index" in found.not_run["by_index"]


def test_full_probes_the_real_weights(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "available_backends", lambda: ("sdpa", "eager"))  # flex compiles for long
    model = make_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    model.save_pretrained(tmp_path)
    assert check_checkpoint(str(tmp_path)).verdict == "works"
    found = check_checkpoint(str(tmp_path), full=True)
    assert (found.verdict, list(found.backends)) == ("refused", ["sdpa", "eager"])
    assert "token 0 does not reach chunk 2" in found.reason


def test_full_of_a_sound_model_works(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "available_backends", lambda: ("sdpa", "eager"))
    make_model().save_pretrained(tmp_path)
    found = check_checkpoint(str(tmp_path), 4096, interpolation="ntk", full=True)
    assert (found.verdict, found.target_length, found.window) == ("works", 4096, 64)
    assert found.rope["rope_theta"] > 10_000


def test_plain_values_are_json(folder):
    found = json.loads(json.dumps(check_checkpoint(folder("llama")).to_json(), allow_nan=False))
    assert (found["family"], found["verdict"], found["reason"]) == ("llama", "works", SOUND)
    assert list(found["backends"]) == THREE
    assert {frozenset(each) for each in found["backends"].values()} == {
        frozenset({"visible", "causal", "oracle_error"})
    }
    assert found["rope"]["rope_type"] == "yarn"
    assert found["rope"]["factor"] == 4.0
    refused = json.loads(json.dumps(check_checkpoint(folder("gpt2")).to_json(), allow_nan=False))
    assert (refused["verdict"], refused["backends"], refused["angle_error"]) == ("refused", {}, None)


def test_what_is_no_number_is_none_in_json(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "available_backends", lambda: ("sdpa",))
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    found = check_checkpoint(str(tmp_path), full=True).to_json()
    assert found["verdict"] == "refused"
    assert found["backends"]["sdpa"]["oracle_error"] is None
    json.dumps(found, allow_nan=False)


def test_what_is_no_answer_about_the_model_is_an_error(folder):
    name = folder("llama", max_position_embeddings=64)
    with pytest.raises(InputError, match="--target-length 63 is below the model's window of 64 tokens"):
        check_checkpoint(name, 63)
    with pytest.raises(InputError, match="'abf' needs the option 'rope_theta'"):
        check_checkpoint(name, interpolation="abf")
    with pytest.raises(InputError, match="no such checkpoint"):
        check_checkpoint(name + "/nowhere")


def test_a_family_that_cannot_be_made_small_needs_its_weights(folder, monkeypatch):
    def refuse(*arguments, **options):
        raise TypeError("odd sizes\nand more")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", refuse)
    with pytest.raises(
        InputError, match=r"^no tiny model of llama .*TypeError: odd sizes and more\): use --full$"
    ):
        check_checkpoint(folder("llama"))


def test_tiny_keeps_what_decides_masks_and_angles():
    config = AutoConfig.for_model("gemma3_text")
    small = tiny(config)
    for key in ("head_dim", "sliding_window", "rope_parameters", "max_position_embeddings"):
        assert getattr(small, key) == getattr(config, key), key
    assert small.layer_types == ["sliding_attention", "full_attention"]
    assert (small.num_hidden_layers, small.num_attention_heads, small.num_key_value_heads) == (2, 4, 2)
    assert small.hidden_size == 4 * config.head_dim


@pytest.mark.parametrize(("given", "groups"), [(32, 4), (8, 2), (1, 1)])
def test_tiny_keeps_how_heads_are_shared(given, groups):
    small = tiny(AutoConfig.for_model("llama", num_attention_heads=32, num_key_value_heads=given))
    assert (small.num_attention_heads, small.num_key_value_heads, small.hidden_size) == (4, groups, 512)


def test_tiny_keeps_one_layer_of_each_kind_in_order():
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    config = AutoConfig.for_model(
        "smollm3", num_hidden_layers=4, layer_types=kinds, no_rope_layers=[1, 1, 1, 0], sliding_window=7
    )
    small = tiny(config)
    assert small.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    assert small.no_rope_layers == [1, 1, 0]
    assert small.num_hidden_layers == 3


def test_tiny_is_tiny_and_leaves_the_config_alone(tmp_path):
    config = AutoConfig.for_model("mixtral")
    before = config.to_dict()
    small = save_tiny(config, tmp_path)
    assert config.to_dict() == before
    assert (small.num_local_experts, small.num_experts_per_tok, small.vocab_size) == (4, 2, 256)
    assert (tmp_path / "model.safetensors").stat().st_size < 20e6


def test_tiny_weights_are_the_same_each_time_and_make_attention_tell_tokens_apart(tmp_path):
    config = AutoConfig.for_model("llama")
    for name in ("one", "two"):
        save_tiny(config, tmp_path / name)
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    query = one["model.layers.0.self_attn.q_proj.weight"]
    assert query.std() * query.shape[1] ** 0.5 == pytest.approx(1.0, rel=0.02)
