import errno
import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, AutoTokenizer

from skipwise.errors import RunError
from skipwise.export import checkpoint as checkpoint_module
from skipwise.export.checkpoint import export_checkpoint
from skipwise.rope import extend_rope, legacy_rope_keys

TARGET = 64 * 33


@pytest.fixture(scope="session")
def tokenizer(demo_base):
    return AutoTokenizer.from_pretrained(demo_base)


@pytest.fixture
def make_extended(make_model):
    def make(method="yarn", **changes):
        config = extend_rope(make_model(**changes).config, TARGET, method)
        parameters = {"rope_parameters": config.rope_parameters, "max_position_embeddings": TARGET}
        return make_model(**changes | parameters)

    return make


def far_logits(model):
    tokens = torch.arange(37)[None]
    with torch.inference_mode():
        return model(input_ids=tokens, position_ids=tokens * 57).logits


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_stock_transformers_gives_the_same_logits(make_extended, tokenizer, tmp_path, family, method):
    model = make_extended(method, family=family)
    export_checkpoint(model, tokenizer, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(reloaded) is type(model)
    assert torch.equal(far_logits(reloaded), far_logits(model))


def test_the_scale_of_attention_under_the_names_vllm_reads(make_extended, tokenizer, tmp_path):
    model = make_extended("pose-yarn")
    export_checkpoint(model, tokenizer, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    scale = model.config.rope_parameters["attention_factor"]
    assert scale != 1.0
    for key in ("rope_parameters", "rope_scaling"):
        assert {written[key][name] for name in ("short_mscale", "long_mscale", "attention_factor")} == {scale}
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(far_logits(reloaded), far_logits(model))
    export_checkpoint(make_extended("yarn"), tokenizer, tmp_path / "other")
    assert "mscale" not in (tmp_path / "other" / "config.json").read_text()


def test_a_model_that_a_mixed_precision_trainer_left_wrapped(make_extended, tokenizer, tmp_path):
    model = make_extended()
    expected = far_logits(model)
    AcceleratorState._reset_state()  # one a process: other tests have trained in other precisions
    try:
        Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    finally:
        AcceleratorState._reset_state()
    assert not torch.equal(far_logits(model), expected)
    export_checkpoint(model, tokenizer, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(far_logits(reloaded), expected)


@pytest.mark.parametrize(
    ("method", "theta", "scaling"),
    [
        ("linear", 10000.0, {"rope_type": "linear", "factor": 33.0}),
        ("ntk", 10000.0 * 33.0 ** (16 / 14), None),
        (
            "yarn",
            10000.0,
            {"rope_type": "yarn", "factor": 33.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_the_config_says_it_to_old_and_new_readers(
    make_extended, tokenizer, tmp_path, method, theta, scaling
):
    export_checkpoint(make_extended(method), tokenizer, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["max_position_embeddings"] == TARGET
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == pytest.approx(theta)
    assert config["rope_scaling"] == scaling
    assert (scaling or {}).items() <= config["rope_parameters"].items()
    assert config["use_cache"] is True


def test_the_tokenizer_knows_the_window_and_is_otherwise_the_same(make_extended, tokenizer, tmp_path):
    export_checkpoint(make_extended(), tokenizer, tmp_path / "out")
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert reloaded.model_max_length == TARGET
    assert len(reloaded) == len(tokenizer) == 2048
    assert reloaded("for key in table:\n")["input_ids"] == tokenizer("for key in table:\n")["input_ids"]


def test_weights_are_cast_and_frequencies_are_not(make_extended, tokenizer, tmp_path):
    model = make_extended()
    frequencies = model.model.rotary_emb.inv_freq.clone()
    export_checkpoint(model, tokenizer, tmp_path / "out", dtype=torch.bfloat16)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {weight.dtype for weight in reloaded.parameters()} == {torch.bfloat16}
    for each in (model, reloaded):
        assert torch.equal(each.model.rotary_emb.inv_freq, frequencies)
    assert torch.equal(far_logits(reloaded), far_logits(model))


def test_tied_weights_stay_tied(make_extended, tokenizer, tmp_path):
    model = make_extended(tie_word_embeddings=True)
    export_checkpoint(model, tokenizer, tmp_path / "out", dtype=torch.bfloat16)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert reloaded.lm_head.weight is reloaded.model.embed_tokens.weight
    assert torch.equal(far_logits(reloaded), far_logits(model))


def test_whoever_may_read_the_config_may_read_the_weights(make_extended, tokenizer, tmp_path):
    export_checkpoint(make_extended(), tokenizer, tmp_path / "out")
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


def test_a_training_model_is_given_back_in_training(make_extended, tokenizer, tmp_path):
    model = make_extended().train()
    export_checkpoint(model, tokenizer, tmp_path / "out")
    assert model.training


@pytest.mark.parametrize("step", ["save_pretrained", "tokenizer", "check"])
def test_a_failure_midway_leaves_the_checkpoint_that_was_there(
    make_extended, tokenizer, tmp_path, monkeypatch, step
):
    def fail(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "out"
    export_checkpoint(make_extended(), tokenizer, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = make_extended(seed=1)
    if step == "save_pretrained":
        monkeypatch.setattr(model, "save_pretrained", fail)
    elif step == "tokenizer":
        monkeypatch.setattr(type(tokenizer), "save_pretrained", fail)
    else:
        monkeypatch.setattr(checkpoint_module, "_check_same_logits", fail)
    with pytest.raises(RunError, match=r"^the disk that holds .*/out is full: [^\n]*$"):
        export_checkpoint(model, tokenizer, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("tamper", [{"rope_theta": 10001.0}, {"rope_scaling": {"rope_type": "default"}}])
def test_keys_that_say_something_else_are_noticed(make_extended, tokenizer, tmp_path, monkeypatch, tamper):
    """Readers of the older keys would compute another model than the one that was trained."""
    monkeypatch.setattr(
        checkpoint_module, "legacy_rope_keys", lambda config: legacy_rope_keys(config) | tamper
    )
    with pytest.raises(RunError, match="gives other logits than the trained model"):
        export_checkpoint(make_extended(), tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_changed_while_it_was_saved_is_noticed(make_extended, tokenizer, tmp_path, monkeypatch):
    model = make_extended()
    original = model.save_pretrained

    def save(folder):
        original(folder)
        with torch.no_grad():
            model.lm_head.weight[5, 3] += 1e-3

    monkeypatch.setattr(model, "save_pretrained", save)
    with pytest.raises(RunError, match="other logits"):
        export_checkpoint(model, tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
