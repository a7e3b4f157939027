import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from skipwise.config import TrainingRecipe
from skipwise.data.rows import Rows
from skipwise.data.skips import PoSE
from skipwise.errors import InputError
from skipwise.models.gptj import as_phi
from skipwise.models.load import find_checkpoint, load_model
from skipwise.models.repairs import repair
from skipwise.train.engine import train
from skipwise.train.selection import train_only
from skipwise.train.state_files import load_state


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
    return TrainingRecipe(**values | {"logits_chunk": 8, "report_to": (), "weight_decay": 0.1} | changes)


def run(model, folder, *, last=10**9, **changes):
    recipe = make_recipe(**changes)
    rows = FailingRows(Counting(), PoSE(16, 64), count=recipe.steps * recipe.rows_per_step, seed=3)
    rows.last = last
    return train(model, rows, recipe, folder, seed=0)


def state(model):
    return {name: each.clone() for name, each in model.state_dict().items()}


def trained(model):
    return {name for name, each in model.named_parameters() if each.requires_grad}


def check_moved(model, before, part):
    """All of ``part``, and nothing else, bit for bit."""
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) == (part not in name), name


PROJECTIONS = {f"self_attn.{each}_proj.weight" for each in "qkvo"}
NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight"}


def in_layers(names, layers=(0, 1)):
    return {f"model.layers.{layer}.{name}" for layer in layers for name in names}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["self_attn"], in_layers(PROJECTIONS)),
        (["layers.1.self_attn"], in_layers(PROJECTIONS, [1])),
        (["q_proj", "k_proj.weight"], in_layers({"self_attn.q_proj.weight", "self_attn.k_proj.weight"})),
        (["input_layernorm", "post_attention_layernorm", "norm"], in_layers(NORMS) | {"model.norm.weight"}),
        (["lm_head"], {"lm_head.weight"}),
        (["model.norm.weight", "self_attn"], in_layers(PROJECTIONS) | {"model.norm.weight"}),
    ],
)
def test_which_weights_get_gradients(make_model, names, expected):
    model = make_model()
    train_only(model, names)
    assert trained(model) == expected


def test_a_number_is_a_whole_part(make_model):
    model = make_model(num_hidden_layers=11)
    train_only(model, ["layers.1"])
    assert {name.split(".")[2] for name in trained(model)} == {"1"}


def test_without_names_all_are_trained(make_model):
    model = make_model()
    train_only(model, [])
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_what_was_frozen_stays_so():
    """GPT-J's weights in a Phi model, whose biases it never had."""
    stock = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "gptj", vocab_size=97, n_positions=32, n_embd=32, n_head=2, n_layer=1, rotary_dim=8
        )
    )
    model = as_phi(stock, stock.config, "sdpa")
    train_only(model, ["self_attn"])
    assert trained(model) == {
        f"model.layers.0.self_attn.{each}.weight" for each in ("q_proj", "k_proj", "v_proj", "dense")
    }
    with pytest.raises(InputError, match=r"no part 'q_proj\.bias' to train"):
        train_only(model, ["q_proj.bias"])


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_tied_embeddings_are_trained_under_either_name(make_model, name):
    model = make_model(tie_word_embeddings=True)
    train_only(model, [name])
    assert trained(model) == {"model.embed_tokens.weight"}
    assert model.lm_head.weight.requires_grad


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("self_atn", r"'self_atn' to train; did you mean self_attn\?$"),
        ("proj", r"'proj' to train; did you mean .*v_proj"),
        ("attn", r"'attn' to train; did you mean self_attn\?$"),
        ("layers.7", r"'layers.7' to train; did you mean layers\?$"),
        ("xyz", r"'xyz' to train; it has down_proj, embed_tokens, .*weight$"),
        ("", r"'' to train; it has down_proj"),
    ],
)
def test_a_name_that_fits_nothing(make_model, name, words):
    model = make_model()
    with pytest.raises(InputError, match=r"^training\.only: llama has no part " + words) as raised:
        train_only(model, ["q_proj", name])
    assert "\n" not in str(raised.value)
    assert trained(model) == {each for each, _ in model.named_parameters()}


@pytest.mark.parametrize("logits_chunk", [0, 8])
@pytest.mark.parametrize("tied", [True, False])
def test_the_rest_stays_bit_for_bit(make_model, tmp_path, tied, logits_chunk):
    model = make_model(tie_word_embeddings=tied)
    before = state(model)
    train_only(model, ["self_attn"])
    curve = run(model, tmp_path, steps=20, logits_chunk=logits_chunk).curve
    check_moved(model, before, "self_attn")
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_gradient_checkpointing_changes_nothing(make_model, tmp_path):
    """Frozen embeddings give layers inputs without gradients: their weights must get theirs all the same."""
    make_model(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    found = []
    for checkpointing in (False, True):
        model = load_model(find_checkpoint(str(tmp_path / "base")), gradient_checkpointing=checkpointing)
        before = state(model)
        train_only(model, ["self_attn"])
        assert model.model.gradient_checkpointing == checkpointing
        curve = run(model, tmp_path / str(checkpointing)).curve
        check_moved(model, before, "self_attn")
        found.append((state(model), [line["loss"] for line in curve]))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    for name, weight in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_the_uninterrupted_run(make_model, tmp_path, dtype):
    weights = {"save_every": 3, "weights": str(dtype).removeprefix("torch.")}

    def fresh(seed=0):
        model = make_model(seed=seed, tie_word_embeddings=True)
        repair(model)
        model.to(dtype)
        train_only(model, ["self_attn"])
        return model

    whole, resumed = fresh(), fresh(seed=1)  # its weights come from the checkpoint
    before = state(whole)
    expected = run(whole, tmp_path / "whole", **weights)
    with pytest.raises(PlugPulledError):
        run(fresh(), tmp_path / "cut", last=4 * 4, **weights)
    assert (tmp_path / "cut" / "checkpoint-3").is_dir()
    found = run(resumed, tmp_path / "cut", **weights)
    assert found.curve == expected.curve
    check_moved(resumed, before, "self_attn")
    assert all(torch.equal(each, state(whole)[name]) for name, each in state(resumed).items())
    assert {each.dtype for each in resumed.parameters()} == {dtype}


def test_moments_are_kept_for_what_is_trained_alone(make_model, tmp_path):
    model = make_model()
    train_only(model, ["self_attn"])
    run(model, tmp_path, steps=3, save_every=3)
    saved = load_state(tmp_path / "checkpoint-3" / "optimizer.safetensors", torch.device("cpu"))
    assert len(saved["state"]) == len(trained(model)) == 8
