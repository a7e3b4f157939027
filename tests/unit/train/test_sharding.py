import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from skipwise import processes
from skipwise.config import TrainingRecipe
from skipwise.errors import InputError, RunError
from skipwise.train.arguments import _accumulation, _deepspeed, training_arguments
from skipwise.train.sharding import (
    check_sharded,
    empty_copy,
    is_sharded,
    load_device,
    share_held,
    train_device,
    whole_model,
)

RECIPES = Path(__file__).parents[3] / "recipes"


def stand_in(model=None, **changes):
    """What the checks look at of a Trainer."""
    values = {
        "args": SimpleNamespace(world_size=1, n_gpu=0, device=torch.device("cpu")),
        "accelerator": SimpleNamespace(is_fsdp2=False, unwrap_model=lambda model: model),
        "is_fsdp_enabled": False,
        "is_deepspeed_enabled": False,
        "model": model,
        "model_wrapped": model,
        "callbacks": [],
    }
    trainer = SimpleNamespace(**values | changes)
    trainer.add_callback = trainer.callbacks.append
    return trainer


def test_a_whole_run_passes():
    trainer = stand_in()
    check_sharded(trainer, TrainingRecipe())
    assert not trainer.callbacks


@pytest.mark.parametrize(
    ("asked", "changes", "message"),
    [
        ({"sharding": "fsdp2"}, {}, "training.sharding = fsdp2, but Accelerate does not shard on cpu"),
        ({"deepspeed": "zero.json"}, {}, "training.deepspeed = zero.json, but Accelerate does not use"),
        ({}, {"is_fsdp_enabled": True}, "the launcher asks for FSDP or DeepSpeed, but the recipe does not"),
        ({}, {"is_deepspeed_enabled": True}, "the launcher asks for FSDP or DeepSpeed, but the recipe"),
        ({}, {"args": SimpleNamespace(world_size=1, n_gpu=3)}, "Trainer would copy the model to 3 GPUs"),
        ({}, {"args": SimpleNamespace(world_size=2, n_gpu=1)}, "1 processes were started, but Accelerate"),
    ],
)
def test_what_is_not_divided_as_asked_stops(asked, changes, message):
    with pytest.raises(RunError) as caught:
        check_sharded(stand_in(**changes), TrainingRecipe(**asked))
    assert str(caught.value).startswith(message)


def test_weights_that_every_process_holds_stop_the_run_before_its_first_step(make_model):
    trainer = stand_in(make_model(), accelerator=SimpleNamespace(is_fsdp2=True))
    check_sharded(trainer, TrainingRecipe(sharding="fsdp2"))
    (look,) = trainer.callbacks
    look.on_train_begin(SimpleNamespace(world_size=1), None, None)  # there is nobody to share with
    with pytest.raises(RunError, match="a process holds 100% of what 2 should divide"):
        look.on_train_begin(SimpleNamespace(world_size=2), None, None)


def test_deepspeed_goes_on_with_as_many_processes(tmp_path):
    recipe = TrainingRecipe(deepspeed="zero.json")
    pieces = tmp_path / "global_step4"
    pieces.mkdir()
    for rank in range(2):
        (pieces / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
        (pieces / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").touch()
    trainer = stand_in(is_deepspeed_enabled=True)
    with pytest.raises(RunError, match=r"was saved by 2 processes and there are 1 now: .* start 2 "):
        check_sharded(trainer, recipe, tmp_path)
    (pieces / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    check_sharded(trainer, recipe, tmp_path)


@pytest.mark.parametrize(
    "changes", [{"sharding": "fsdp2"}, {"deepspeed": str(RECIPES / "deepspeed-zero3.json")}]
)
def test_sharding_without_a_launcher_is_refused(tmp_path, changes):
    recipe = TrainingRecipe(**changes)
    with pytest.raises(InputError, match=r"over the processes of a launcher: torchrun --nproc-per-node GPUS"):
        training_arguments(recipe, tmp_path, micro_batch=1, seed=0, device=torch.device("cpu"))


def test_rows_are_divided_over_processes(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 4)
    assert _accumulation(48, 2) == 6
    with pytest.raises(InputError, match="over 4 devices in micro-batches of 2: make it a multiple of 8"):
        _accumulation(20, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no DeepSpeed config in JSON"),
        ("[1]", "is no DeepSpeed config in JSON"),
        ("{}", "divides nothing: set zero_optimization.stage"),
        ('{"zero_optimization": {"stage": 0}}', "divides nothing"),
        ('{"zero_optimization": {"stage": 2}, "train_batch_size": 8}', "train_batch_size is the recipe's"),
    ],
)
def test_a_deepspeed_file_that_would_not_do_is_refused(tmp_path, text, message):
    file = tmp_path / "zero.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError) as caught:
        _deepspeed(str(file))
    assert message in str(caught.value)


@pytest.mark.parametrize("stage", [2, 3])
def test_shipped_deepspeed_files_leave_the_batch_to_the_recipe(monkeypatch, stage):
    monkeypatch.setattr("skipwise.train.arguments.is_deepspeed_available", lambda: True)
    file = RECIPES / f"deepspeed-zero{stage}.json"
    config = _deepspeed(str(file))
    assert config["zero_optimization"]["stage"] == stage
    assert config.items() >= json.loads(file.read_text()).items()
    assert config["gradient_accumulation_steps"] == config["train_micro_batch_size_per_gpu"] == "auto"


def test_a_model_to_shard_waits_on_the_cpu(monkeypatch, make_model):
    monkeypatch.setattr("skipwise.train.sharding.default_device", lambda: "cuda:1")
    whole, sharded = TrainingRecipe(), TrainingRecipe(sharding="fsdp2")
    assert not is_sharded(whole)
    assert load_device(whole) == "cuda:1"
    assert train_device(make_model(), whole).type == "cpu"  # where it was put
    assert is_sharded(sharded)
    assert load_device(sharded) == "cpu"
    assert train_device(make_model(), sharded) == torch.device("cuda:1")


@pytest.fixture
def one_process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("tied", [False, True])
def test_a_sharded_model_is_put_together_again(make_model, one_process_group, tied):
    """With torch's own ``fully_shard``, over one process."""
    model = make_model(tie_word_embeddings=tied)
    expected = make_model(tie_word_embeddings=tied)
    tokens = torch.arange(31)[None]
    empty = empty_copy(model)
    assert all(each.is_meta for each in empty.parameters())
    mesh = dist.init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(each, DTensor) for each in model.parameters())
    trainer = stand_in(model)
    assert share_held(trainer) == 1.0
    with torch.no_grad():
        for each in (*model.parameters(), *expected.parameters()):
            each.mul_(1.5)  # the training
    whole = whole_model(trainer, empty)
    assert type(whole) is type(expected)
    assert not any(isinstance(each, DTensor) for each in whole.parameters())
    assert (whole.lm_head.weight is whole.model.embed_tokens.weight) == tied
    with torch.inference_mode():
        assert torch.equal(whole.eval()(tokens).logits, expected(tokens).logits)
    assert whole.model.layers[0].self_attn.q_proj.weight.requires_grad


def test_frozen_weights_stay_frozen_and_keep_their_dtype(make_model):
    model = make_model()
    model.lm_head.weight.requires_grad_(False)
    model.model.norm.bfloat16()
    whole = whole_model(stand_in(model), empty_copy(model))
    assert not whole.lm_head.weight.requires_grad
    assert whole.model.norm.weight.dtype == torch.bfloat16
    assert whole.lm_head.weight.data_ptr() != model.lm_head.weight.data_ptr()
    assert torch.equal(whole.lm_head.weight, model.lm_head.weight)
