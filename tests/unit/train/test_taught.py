"""Trainings in which some rows are taught by the untouched model, through the engine."""

import gc
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from skipwise.config import AdapterRecipe, TrainingRecipe
from skipwise.data.blend import Blend
from skipwise.data.collate import SkipCollator
from skipwise.data.skips import Contiguous, PoSE
from skipwise.models.repairs import repair
from skipwise.train.adapters import add_adapter, merged
from skipwise.train.engine import train

LENGTH, TARGET = 16, 64


class Counting:
    """Passages of consecutive numbers: a text that a tiny model learns in a few steps."""

    def __len__(self):
        return 5

    def draw(self, epoch, example, rng):
        return (np.arange(40) + example * 7) % 97


class PlugPulledError(Exception):
    """Ends a run in the middle, as a lost machine would."""


class Rows(Blend):
    """Rows of ``first`` and contiguous ones, 5 to 3, up to ``last``; then nothing but an error."""

    last = 10**9

    def __init__(self, recipe, taught=(1,), first=PoSE):
        super().__init__(
            [Counting()] * 2,
            [first(LENGTH, TARGET), Contiguous(LENGTH, TARGET)],
            [Fraction(5, 8), Fraction(3, 8)],
            steps=recipe.steps,
            rows_per_step=recipe.rows_per_step,
            seed=3,
            taught=taught,
        )

    def __getitem__(self, index):
        if index > self.last:
            raise PlugPulledError
        return super().__getitem__(index)


def make_recipe(**changes):
    """Of 4 rows in a step, 1 or 2 are taught: beside micro-batches of one kind there are mixed ones."""
    values = {"steps": 8, "rows_per_step": 4, "micro_batch": 2, "learning_rate": 3e-3, "warmup_steps": 2}
    return TrainingRecipe(**values | {"report_to": (), "logits_chunk": 8} | changes)


@pytest.fixture
def disturbed(make_model):
    """``disturbed()``: the untouched model with some noise on its weights."""

    def make(size=0.05):
        model, random = make_model(), torch.Generator().manual_seed(7)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(size * torch.randn(weight.shape, generator=random))
        return model

    return make


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def divergence(model, teacher):
    """Nats a token on other rows of such text."""
    tokens = (torch.arange(LENGTH) + 11 * torch.arange(7)[:, None] + 3) % 97
    with torch.no_grad():
        found, known = (each.eval()(tokens).logits.double().log_softmax(-1) for each in (model, teacher))
    return float(kl_div(found, known, reduction="sum", log_target=True)) / tokens.numel()


def test_taught_rows_without_a_teacher_are_refused(make_model, tmp_path):
    recipe = make_recipe()
    with pytest.raises(ValueError, match="give it as teacher"):
        train(make_model(), Rows(recipe), recipe, tmp_path / "run", seed=0)
    assert not (tmp_path / "run").exists()


def test_the_untouched_model_pulls_a_disturbed_copy_back(make_model, disturbed, tmp_path):
    """The text of the same rows drives it away instead."""
    recipe = make_recipe(steps=40)
    teacher, found = make_model(), []
    before = divergence(disturbed(), teacher)
    for taught in ((0, 1), ()):
        model, rows = disturbed(), Rows(recipe, taught, Contiguous)
        train(model, rows, recipe, tmp_path / str(len(taught)), seed=0, teacher=teacher if taught else None)
        found.append(divergence(model, teacher))
    assert same(weights(teacher), weights(make_model()))
    assert found[0] < 0.7 * before < before < found[1]


def losses_by_hand(model, teacher, rows):
    """Of one step: every token that has a label counts once, whatever it is learned from."""
    given = SkipCollator()(list(rows))
    labels, taught = given.pop("labels")[:, 1:], given.pop("taught")
    counted = labels != -100
    with torch.no_grad():
        found, known = (each(**given).logits.double().log_softmax(-1)[:, :-1] for each in (model, teacher))
    text = -found.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    apart = (known.exp() * (known - found)).sum(-1)
    return float((torch.where(taught[:, None], apart, text) * counted).sum())


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_of_any_kind_add_up_to_one_step(make_model, disturbed, tmp_path, micro_batch):
    recipe = make_recipe(steps=1, micro_batch=micro_batch, max_grad_norm=1e9)
    rows, teacher, model = Rows(recipe), make_model(), disturbed(0.2)
    assert sum(row.taught for row in rows) in (1, 2)
    expected = losses_by_hand(model, teacher, rows)
    result = train(model, rows, recipe, tmp_path, seed=0, teacher=teacher)
    labelled = int((SkipCollator()(list(rows))["labels"][:, 1:] != -100).sum())
    assert result.curve[0]["loss"] == pytest.approx(expected / labelled, rel=1e-5)


def test_a_resumed_run_is_the_uninterrupted_run(make_model, disturbed, tmp_path):
    recipe = make_recipe(save_every=3)
    whole = disturbed()
    expected = train(whole, Rows(recipe), recipe, tmp_path / "whole", seed=0, teacher=make_model())
    rows = Rows(recipe)
    rows.last = 5 * 4
    with pytest.raises(PlugPulledError):
        train(disturbed(), rows, recipe, tmp_path / "cut", seed=0, teacher=make_model())
    assert (tmp_path / "cut" / "checkpoint-3").is_dir()
    model = make_model(seed=1)  # its weights come from the checkpoint
    result = train(model, Rows(recipe), recipe, tmp_path / "cut", seed=0, teacher=make_model())
    assert same(weights(model), weights(whole))
    assert result.curve == expected.curve


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_model_comes_back_stock_and_the_teacher_is_let_go(make_model, disturbed, tmp_path, precision):
    looks = []

    def retrieval(model):
        model.generate(torch.arange(5)[None], max_new_tokens=2, do_sample=False)
        looks.append(model(torch.arange(9)[None]).logits.shape)
        return 0.0

    recipe = make_recipe(
        steps=2, save_every=1, retrieval={"every": 1, "keep_best": False}, precision=precision
    )
    model, teacher = disturbed(), make_model()
    gone = weakref.ref(teacher)
    options = {"seed": 0, "retrieval": retrieval, "teacher": teacher}
    train(model, Rows(recipe), recipe, tmp_path / "run", **options)
    assert looks == [(1, 9, 97)] * 2
    assert not {"forward", "_original_forward"} & vars(model).keys()
    assert isinstance(model(torch.arange(9)[None], return_dict=False), tuple)
    del teacher, options
    gc.collect()
    assert gone() is None
    model.save_pretrained(tmp_path / "saved")
    tokens = torch.arange(31)[None]
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(model.eval()(tokens).logits, stock(tokens).logits)


def test_adapters_are_taught_by_the_model_below_them(make_model, disturbed, tmp_path):
    recipe = make_recipe(steps=40, learning_rate=1e-2, adapter={"rank": 4, "alpha": 8.0})
    teacher, base = make_model(), disturbed()
    before = divergence(base, teacher)
    model = add_adapter(base, AdapterRecipe(rank=4, alpha=8.0))
    rows = Rows(recipe)
    train(model, rows, recipe, tmp_path, seed=0, teacher=teacher)
    assert divergence(merged(model), teacher) < before
    assert same(weights(teacher), weights(make_model()))


@pytest.mark.parametrize("values", [{"weights": "bfloat16"}, {"precision": "bfloat16"}])
def test_half_precision_is_near_float32(make_model, disturbed, tmp_path, values):
    curves = []
    for name, each in (("float32", {}), ("half", values)):
        recipe = make_recipe(steps=2, **each)
        model, teacher = disturbed(), make_model()
        for half in [model] * ("weights" in each) + [teacher] * bool(each):
            half.to(torch.bfloat16)
            repair(half)  # its rotary frequencies
        curves.append(train(model, Rows(recipe), recipe, tmp_path / name, seed=0, teacher=teacher).curve)
    assert curves[0][1]["loss"] != curves[1][1]["loss"]
    assert curves[1][1]["loss"] == pytest.approx(curves[0][1]["loss"], rel=0.02)
