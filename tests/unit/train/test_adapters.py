import sys
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from skipwise.config import AdapterRecipe, TrainingRecipe
from skipwise.data.rows import Rows
from skipwise.data.skips import PoSE
from skipwise.errors import InputError, RunError
from skipwise.models.load import Checkpoint, load_model
from skipwise.models.probes import check
from skipwise.models.repairs import repair
from skipwise.train.adapters import add_adapter, loaded_dtype, merged, quantization
from skipwise.train.engine import train

TARGET = 256
SMALL = {"rank": 3, "alpha": 6.0}


class Counting:
    """Passages of consecutive numbers: a text that a tiny model learns in a few steps."""

    def __len__(self):
        return 5

    def draw(self, epoch, example, rng):
        return (np.arange(40) + example * 7) % 97


class PlugPulledError(Exception):
    """Ends a run in the middle, as a lost machine would."""


class FailingRows(Rows):
    """Rows up to ``last``, then nothing but an error."""

    last = 10**9

    def __getitem__(self, index):
        if index > self.last:
            raise PlugPulledError
        return super().__getitem__(index)


def make_recipe(**changes):
    values = {"steps": 6, "rows_per_step": 4, "micro_batch": 2, "learning_rate": 1e-2, "warmup_steps": 1}
    return TrainingRecipe(**values | {"logits_chunk": 8, "report_to": (), "adapter": SMALL} | changes)


def make_rows(recipe, last=10**9):
    rows = FailingRows(Counting(), PoSE(16, TARGET), count=recipe.steps * recipe.rows_per_step, seed=3)
    rows.last = last
    return rows


def trained_names(model):
    return {name.rpartition("model.")[2] for name, each in model.named_parameters() if each.requires_grad}


def logits(model, skip=90):
    positions = torch.arange(16)[None].clone()
    positions[:, 8:] += skip
    with torch.inference_mode():
        return model.eval()(torch.arange(16)[None], position_ids=positions, use_cache=False).logits


def stir(model):
    """Adapters that do something: fresh ones are zero."""
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(torch.randn(each.shape, generator=random) / 8)
    return model


def test_a_fresh_adapter_changes_nothing(make_model):
    expected = logits(make_model())
    model = add_adapter(make_model(), AdapterRecipe(**SMALL, embeddings=True, norms=True))
    assert torch.equal(logits(model), expected)


def test_the_factors_follow_from_the_seed(make_model):
    """Else a run that was killed before its first checkpoint would be another one when it starts again."""
    first, second, other = (
        add_adapter(make_model(), AdapterRecipe(**SMALL), seed=seed).state_dict() for seed in (5, 5, 6)
    )
    random = torch.get_rng_state()
    add_adapter(make_model(), AdapterRecipe(**SMALL))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_only_the_factors_of_the_linear_layers_are_trained(make_model):
    names = trained_names(add_adapter(make_model(), AdapterRecipe(**SMALL)))
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert len(names) == 2 * 2 * 7  # layers, factors, projections
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_targets_embeddings_and_norms(make_model):
    recipe = AdapterRecipe(**SMALL, targets=("q_proj", "v_proj"), embeddings=True, norms=True)
    names = trained_names(add_adapter(make_model("qwen3"), recipe))
    assert {name.split(".")[-4] for name in names if "lora" in name} == {"q_proj", "v_proj"}
    copies = {name.split(".modules_to_save")[0].rpartition(".")[2] for name in names if "to_save" in name}
    norms = {"input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm"}
    assert copies == {"embed_tokens"} | norms


def test_a_target_that_is_not_there(make_model):
    with pytest.raises(InputError, match=r"^training\.adapter: .*q_porj"):
        add_adapter(make_model(), AdapterRecipe(targets=("q_porj",)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_frozen_keeps_its_precision(make_model, dtype):
    recipe = AdapterRecipe(**SMALL, embeddings=True, norms=True)
    model = add_adapter(make_model().to(torch.bfloat16), recipe, dtype=dtype)
    assert {each.dtype for each in model.parameters() if each.requires_grad} == {dtype}
    assert {each.dtype for each in model.parameters() if not each.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_dtype_to_load(device):
    halves = {"cpu": torch.float32, "cuda:0": torch.bfloat16}[device]
    assert loaded_dtype(TrainingRecipe(), device) is torch.float32
    assert loaded_dtype(TrainingRecipe(weights="bfloat16"), device) is torch.bfloat16
    assert loaded_dtype(TrainingRecipe(adapter={}), device) is halves
    assert loaded_dtype(TrainingRecipe(adapter={}, precision="float32"), device) is torch.float32
    assert loaded_dtype(TrainingRecipe(adapter={}, precision="bfloat16"), device) is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_probes_run_on_the_wrapped_model(make_model, family, dtype):
    changes = {"mistral": {"sliding_window": 20, "num_key_value_heads": 2}}.get(family, {})
    model = make_model(family, **changes)
    repair(model)
    check(stir(add_adapter(model.to(dtype), AdapterRecipe(**SMALL), dtype=dtype)), TARGET, accept_limits=True)


def test_a_wrapper_that_drops_the_positions_is_refused(make_model):
    """As PEFT's prompt tuning does."""
    model = add_adapter(make_model(), AdapterRecipe(**SMALL))
    inner = model.forward
    model.forward = lambda position_ids=None, **inputs: inner(**inputs)
    with pytest.raises(RunError, match="the model ignores position_ids"):
        check(model, TARGET)


def test_prompt_tuning_is_refused(make_model):
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(make_model(), config)
        with pytest.raises((RunError, IndexError)):  # it puts its tokens before the row
            check(model, TARGET)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("changes", [{}, {"embeddings": True, "norms": True}])
def test_every_factor_gets_a_gradient(make_model, checkpointing, changes):
    """With frozen embeddings, reentrant checkpointing would cut all of them off."""
    model = make_model()
    if checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(
            {"use_reentrant": False}
        )
    model = stir(add_adapter(model, AdapterRecipe(**SMALL, **changes))).train()
    tokens = torch.arange(32).reshape(2, 16)
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    assert all(each.grad.any() for each in model.parameters() if each.requires_grad)
    assert all(each.grad is None for each in model.parameters() if not each.requires_grad)


@pytest.mark.parametrize("tied", [False, True])
def test_the_merged_model_is_stock_and_computes_the_same(make_model, tmp_path, tied):
    stock = make_model(tie_word_embeddings=tied)
    recipe = AdapterRecipe(**SMALL, embeddings=True, norms=True)
    model = stir(add_adapter(make_model(tie_word_embeddings=tied), recipe))
    expected = logits(model)
    assert (expected - logits(stock)).abs().max() > 0.1
    found = merged(model)
    assert type(found) is type(stock)
    assert list(found.state_dict()) == list(stock.state_dict())
    assert torch.allclose(logits(found), expected, atol=2e-5)
    assert (found.get_input_embeddings().weight is found.get_output_embeddings().weight) is tied
    found.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(found))


def test_a_model_without_adapters_is_merged_already(make_model):
    model = make_model()
    assert merged(model) is model


def test_only_the_adapters_learn_and_the_loss_falls(make_model, tmp_path):
    recipe = make_recipe(steps=30)
    stock, model = make_model(), make_model()
    result = train(add_adapter(model, recipe.adapter), make_rows(recipe), recipe, tmp_path, seed=0)
    assert result.curve[-1]["loss"] < 0.9 * result.curve[0]["loss"]
    before = stock.state_dict()
    kept = {name.replace(".base_layer", ""): each for name, each in model.state_dict().items()}
    assert all(torch.equal(kept[name], weight) for name, weight in before.items())
    assert "forward" not in vars(model)


def test_a_resumed_run_is_the_uninterrupted_run(make_model, tmp_path):
    adapter = SMALL | {"embeddings": True, "dropout": 0.1}
    recipe = make_recipe(save_every=2, adapter=adapter)
    whole = add_adapter(make_model(tie_word_embeddings=True), recipe.adapter)
    train(whole, make_rows(recipe), recipe, tmp_path / "whole", seed=0)
    cut = add_adapter(make_model(tie_word_embeddings=True), recipe.adapter)
    with pytest.raises(PlugPulledError):
        train(cut, make_rows(recipe, last=13), recipe, tmp_path / "cut", seed=0)
    saved = {path.name for path in (tmp_path / "cut" / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in saved)
    again = add_adapter(
        make_model(tie_word_embeddings=True), recipe.adapter, seed=1
    )  # all is in the checkpoint
    train(again, make_rows(recipe), recipe, tmp_path / "cut", seed=0)
    assert torch.equal(logits(merged(again)), logits(merged(whole)))
    assert not torch.equal(logits(whole), logits(make_model(tie_word_embeddings=True)))


def test_without_peft(make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"^training\.adapter needs PEFT: pip install"):
        add_adapter(make_model(), AdapterRecipe())


def test_without_bitsandbytes(monkeypatch):
    monkeypatch.setattr("skipwise.train.adapters.find_spec", lambda name: None)
    recipe = TrainingRecipe(adapter={"quantize": "4bit"})
    with pytest.raises(InputError, match=r"quantize = 4bit needs bitsandbytes: pip install bitsandbytes"):
        quantization(recipe, torch.float32)
    assert quantization(TrainingRecipe(), torch.float32) is None
    assert quantization(TrainingRecipe(adapter={}), torch.float32) is None


@pytest.mark.parametrize("gguf", [False, True])
def test_what_cannot_be_quantised(make_model, tmp_path, gguf, monkeypatch):
    make_model(
        "codegen", attn_implementation="eager", n_embd=32, n_layer=1, n_head=2, n_positions=64, rotary_dim=8
    ).save_pretrained(tmp_path)
    checkpoint = Checkpoint(str(tmp_path), "x.gguf" if gguf else None)
    config = make_model().config if gguf else None
    with pytest.raises(InputError, match=r"cannot be quantised: set adapter\.quantize to none"):
        load_model(checkpoint, config, quantization=object())


@pytest.mark.filterwarnings("ignore")  # bitsandbytes about the CPU
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_nothing_of_the_quantised_weights_is_exported(make_model, tmp_path, kind):
    pytest.importorskip("bitsandbytes")
    make_model(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    recipe = make_recipe(adapter=SMALL | {"quantize": kind, "norms": True})
    checkpoint, dtype = Checkpoint(str(tmp_path)), loaded_dtype(recipe, "cpu")
    model = load_model(checkpoint, dtype=dtype, quantization=quantization(recipe, dtype))
    assert model.is_quantized
    model = add_adapter(model, recipe.adapter)
    with pytest.raises(ValueError, match="give the base"):
        merged(model)
    found = merged(model, load_model(checkpoint))  # adapters that change nothing yet
    assert torch.equal(logits(found), logits(load_model(checkpoint)))
    found = merged(stir(model), load_model(checkpoint))
    exact = add_adapter(load_model(checkpoint), recipe.adapter)
    assert torch.allclose(logits(found), logits(merged(stir_as(exact, model))), atol=1e-5)


def stir_as(model, other):
    theirs = {name: each for name, each in other.named_parameters() if each.requires_grad}
    with torch.no_grad():
        for name, each in model.named_parameters():
            if each.requires_grad:
                each.copy_(theirs[name])
    return model
