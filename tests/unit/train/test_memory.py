"""The search for a micro-batch, and what an out-of-memory error says."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from skipwise.config import TrainingRecipe
from skipwise.errors import RunError
from skipwise.models.size import model_size
from skipwise.plan.hardware import USABLE
from skipwise.plan.memory import training_memory
from skipwise.train import memory
from skipwise.train.memory import explain_out_of_memory, micro_batch_for
from skipwise.train.planned import needs, settings_of, wants_checkpointing


class OnGPU:
    """A model that says it is on a GPU, and runs out of memory above so many rows."""

    device = torch.device("cuda")
    training = False

    def __init__(self, most, most_taught=0):
        self.most, self.most_taught = most, most_taught
        self.tried, self.kinds = [], []

    def __call__(self, input_ids, **inputs):
        self.tried.append(tuple(input_ids.shape))
        taught = inputs.get("taught", torch.zeros(len(input_ids), dtype=torch.bool))
        assert len(set(taught.tolist())) == 1
        self.kinds.append(bool(taught.any()))
        if len(input_ids) > (self.most_taught if taught.any() else self.most):
            raise torch.OutOfMemoryError("no room")
        return type("Outputs", (), {"loss": torch.ones((), requires_grad=True)})

    def train(self, mode=True):
        self.training = mode

    def zero_grad(self, set_to_none):
        assert set_to_none


@pytest.fixture
def on_gpu(monkeypatch):
    """The search, with tensors on the CPU in place of the GPU and nothing to set aside."""
    for name in ("zeros", "arange"):
        made = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, made=made, **k: made(*a, **k | {"device": "cpu"}))
    monkeypatch.setattr(memory, "_set_aside", lambda model, recipe: torch.no_grad())
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: torch.enable_grad())


@pytest.mark.parametrize(("most", "found"), [(1, 1), (3, 3), (5, 4), (12, 12), (100, 12)])
def test_the_largest_divisor_that_fits(on_gpu, most, found):
    model = OnGPU(most)
    recipe = TrainingRecipe(rows_per_step=12, micro_batch="auto")
    assert micro_batch_for(model, recipe, 7) == found
    assert all(length == 7 for _, length in model.tried)
    rows = [rows for rows, _ in model.tried]
    assert rows == sorted(rows)  # nothing is tried after a size that failed
    assert sum(each > most for each in rows) <= 1
    assert not model.training


@pytest.mark.parametrize(("most", "most_taught", "found"), [(12, 3, 3), (4, 12, 4), (12, 12, 12), (6, 6, 6)])
def test_rows_of_both_kinds_must_fit(on_gpu, most, most_taught, found):
    model = OnGPU(most, most_taught)
    recipe = TrainingRecipe(rows_per_step=12, micro_batch="auto")
    assert micro_batch_for(model, recipe, 7, taught=True) == found
    assert set(model.kinds) == {False, True}
    alone = OnGPU(most)
    micro_batch_for(alone, recipe, 7)
    assert set(alone.kinds) == {False}


def test_a_number_is_taken_and_a_cpu_gets_one(make_model):
    assert micro_batch_for(make_model(), TrainingRecipe(rows_per_step=12, micro_batch=3), 7) == 3
    assert micro_batch_for(make_model(), TrainingRecipe(rows_per_step=12, micro_batch="auto"), 7) == 1


def test_out_of_memory_in_one_line_with_numbers(make_model):
    recipe = TrainingRecipe(rows_per_step=8, micro_batch=4)
    with pytest.raises(RunError) as caught, explain_out_of_memory(make_model(), recipe, 4, 2048):
        raise torch.OutOfMemoryError("CUDA out of memory")
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("out of memory")
    assert "in a step of 4 x 2048 tokens: lower training.micro_batch" in said
    assert "planned are" in said
    for words in ("gradient checkpointing", "micro_batch 1", "bfloat16 weights", "LoRA", "QLoRA"):
        assert f"{words} 0." in said
    with pytest.raises(KeyError), explain_out_of_memory(make_model(), recipe, 4, 2048):
        raise KeyError("other errors go on")


def test_the_plan_is_told_what_the_recipe_says(make_model):
    assert needs(make_model(), TrainingRecipe(), 8192, 4).startswith("planned are ")
    full = settings_of(TrainingRecipe(rows_per_step=8), 64, 2)
    assert (full.method, full.accumulates, full.loss, full.logits_chunk) == ("full", True, "chunked", 1024)
    small = TrainingRecipe(rows_per_step=2, adapter={"rank": 3, "quantize": "4bit"}, logits_chunk=0)
    found = settings_of(small, 64, 2)
    assert (found.method, found.rank, found.accumulates, found.loss) == ("qlora", 3, False, "whole")


@pytest.mark.parametrize(
    ("said", "memory_gib", "wanted"),
    [
        ("auto", 0.001, True),
        ("auto", 100, False),
        ("auto", None, False),
        (True, 100, True),
        (False, 0.001, False),
    ],
)
def test_activations_are_kept_where_they_fit(make_model, monkeypatch, said, memory_gib, wanted):
    properties = SimpleNamespace(total_memory=(memory_gib or 0) * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: memory_gib is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    recipe = TrainingRecipe(gradient_checkpointing=said, rows_per_step=4, micro_batch="auto")
    assert wants_checkpointing(make_model().config, recipe, 512) is wanted


def test_the_untouched_model_is_counted_where_it_teaches(make_model, monkeypatch):
    """In bfloat16, whole on each GPU: two bytes a parameter."""
    model = make_model()
    size, count = model_size(model.config), sum(each.numel() for each in model.parameters())
    for sharding in ("none", "fsdp2"):
        recipe = TrainingRecipe(sharding=sharding, rows_per_step=8)
        alone, beside = (
            training_memory(size, replace(settings_of(recipe, 64, 2, taught=taught), gpus=2))
            for taught in (False, True)
        )
        assert beside.total - alone.total == 2 * count
    monkeypatch.setattr("skipwise.train.planned._GIB", 1024)  # it is a tiny model
    assert needs(model, recipe, 8192, 4, taught=True) != needs(model, recipe, 8192, 4)


def test_activations_are_not_kept_if_the_teacher_takes_their_place(make_model, monkeypatch):
    model, recipe = make_model(), TrainingRecipe(rows_per_step=4, micro_batch=1)
    needed = training_memory(model_size(model.config), settings_of(recipe, 512, 1)).total
    properties = SimpleNamespace(total_memory=(needed + 1000) / USABLE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert not wants_checkpointing(model.config, recipe, 512)
    assert wants_checkpointing(model.config, recipe, 512, taught=True)
