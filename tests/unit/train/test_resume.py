import errno
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from skipwise.config import TrainingRecipe
from skipwise.data.rows import Rows
from skipwise.data.skips import PoSE
from skipwise.errors import RunError
from skipwise.train import resume, state_files, trainer
from skipwise.train.engine import train
from skipwise.train.resume import MANIFEST, last_complete_checkpoint, resume_point, seal
from skipwise.train.state_files import load_rng_state, load_state, rng_state, save_state

CPU = torch.device("cpu")


class Counting:
    def __len__(self):
        return 5

    def draw(self, epoch, example, rng):
        return (np.arange(40) + example * 7) % 97


def run(model, folder, **changes):
    """Train ``model`` for seven steps with a checkpoint at every second one."""
    recipe = TrainingRecipe(
        **{"steps": 7, "rows_per_step": 2, "learning_rate": 3e-3, "save_every": 2, "report_to": ()} | changes
    )
    rows = Rows(Counting(), PoSE(16, 64), count=recipe.steps * recipe.rows_per_step, seed=3)
    return train(model, rows, recipe, folder, seed=0)


def same(first, second):
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


@pytest.fixture
def checkpoints(tmp_path):
    """A folder with three complete checkpoints of two files each, one of them in a folder of its own."""
    for step in (9, 10, 11):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "deeper").mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(range(100)) * step)
        (folder / "deeper" / "state").write_bytes(b"state")
        seal(folder)
    return tmp_path


@pytest.fixture(scope="module")
def uninterrupted(make_model, tmp_path_factory):
    """A run of seven steps: its folder and the model that came out."""
    folder, model = tmp_path_factory.mktemp("whole"), make_model()
    run(model, folder)
    return folder, model


def test_a_checkpoint_holds_no_pickle(uninterrupted):
    folder, _ = uninterrupted
    assert {path.name for path in (folder / "checkpoint-7").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "scheduler.safetensors",
        "rng_state_0.safetensors",
        "trainer_state.json",
        MANIFEST,
    }
    assert names(folder) == ["checkpoint-6", "checkpoint-7"]


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_state_comes_back_as_it_was(tmp_path, fused):
    def make():
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
        groups = [{"params": [layer.weight], "lr": 0.1 / number} for number, layer in enumerate(layers, 3)]
        return layers, torch.optim.AdamW([*groups, {"params": [layers[0].bias]}], fused=fused)

    def step(layers, optimizer):
        layers(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    first, second = make(), make()
    step(*first)
    save_state(first[1].state_dict(), tmp_path / "optimizer.safetensors")
    assert "state.1.exp_avg" in load_file(tmp_path / "optimizer.safetensors")
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(load_state(tmp_path / "optimizer.safetensors", CPU))
    (tmp_path / "optimizer.safetensors").unlink()
    assert second[1].state_dict()["param_groups"] == first[1].state_dict()["param_groups"]
    assert isinstance(second[1].param_groups[0]["betas"], tuple)
    for each in (first, second):
        step(*each)
    assert all(map(torch.equal, first[0].parameters(), second[0].parameters()))


@torch.compiler.set_stance("force_eager")  # torchao compiles its step
def test_tensor_subclasses_come_back_as_they_were(tmp_path):
    low_bit = pytest.importorskip("torchao.optim")

    def make():
        torch.manual_seed(0)
        layer = torch.nn.Linear(64, 80)
        return layer, low_bit.AdamW8bit(layer.parameters(), bf16_stochastic_round=False)

    def step(layer, optimizer):
        layer(torch.ones(4, 64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    first, second = make(), make()
    step(*first)
    save_state(first[1].state_dict(), tmp_path / "optimizer.safetensors")
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(load_state(tmp_path / "optimizer.safetensors", CPU))
    kinds = [
        [type(value) for state in optimizer.state.values() for value in state.values()]
        for _, optimizer in (first, second)
    ]
    assert kinds[0] == kinds[1]
    assert len({*kinds[0]}) > 1  # the subclass is among them
    for each in (first, second):
        step(*each)
    assert all(map(torch.equal, first[0].parameters(), second[0].parameters()))


@pytest.mark.parametrize(("limit", "extra_files"), [(100, 3), (10_000, 0)])
def test_a_large_state_is_divided_and_shared_memory_written_out(tmp_path, monkeypatch, limit, extra_files):
    monkeypatch.setattr(state_files, "_FILE_BYTES", limit)
    base = torch.arange(40.0)
    state = {
        3: [base, base[:7], base.view(5, 8).T, None, True],
        "kind": torch.bfloat16,
        (1, "a"): {"x": float("inf"), "empty": torch.zeros(0)},
    }
    save_state(state, tmp_path / "big.safetensors")
    files = sorted(path.name for path in tmp_path.iterdir())
    extra = [f"big-{number}.safetensors" for number in range(1, extra_files + 1)]
    assert files == [*extra, "big.safetensors"]
    found = load_state(tmp_path / "big.safetensors", CPU)
    assert list(found) == list(state)
    assert all(map(torch.equal, found[3][:3], state[3][:3]))
    assert found[3][3:] == [None, True]
    assert found["kind"] is torch.bfloat16
    assert found[1, "a"]["x"] == float("inf")


def test_what_only_pickle_could_store_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"^state\.0 is a function: only pickle"):
        save_state({"state": [tmp_path.exists.__func__]}, tmp_path / "x.safetensors")


def test_a_file_cannot_name_any_class(tmp_path):
    tree = {"subclass": ["subprocess", "Popen"], "inner": {}, "context": None, "size": [], "stride": []}
    with pytest.raises(TypeError, match="is no tensor class"):
        state_files._unpack(tree, {})


def test_random_generators_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), float(torch.rand(1))

    before = rng_state(CPU)
    draw()
    save_state(rng_state(CPU), tmp_path / "rng.safetensors")
    expected = draw()
    load_rng_state(load_state(tmp_path / "rng.safetensors", CPU))
    assert draw() == expected
    load_rng_state(before)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": (lambda folder: truncate(folder / "weights"), "weights has 1099 bytes of 1100"),
    "altered": (lambda folder: alter(folder / "weights"), "weights was altered"),
    "missing": (lambda folder: (folder / "deeper" / "state").unlink(), "deeper/state is missing"),
    "unfinished": (lambda folder: (folder / MANIFEST).unlink(), "it was not finished"),
    "manifest": (lambda folder: truncate(folder / MANIFEST) or truncate(folder / MANIFEST), "is damaged"),
    "empty manifest": (lambda folder: (folder / MANIFEST).write_text(""), "complete.json is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(checkpoints, damage, caplog):
    assert last_complete_checkpoint(checkpoints) == checkpoints / "checkpoint-11"
    assert caplog.text == ""
    spoil, reason = DAMAGES[damage]
    spoil(checkpoints / "checkpoint-11")
    assert last_complete_checkpoint(checkpoints) == checkpoints / "checkpoint-10"
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{checkpoints}/checkpoint-11 is skipped: ")
    assert record.getMessage().endswith(reason)


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_a_damaged_one(checkpoints, monkeypatch):
    def broken(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(resume, "_checksum", broken)
    with pytest.raises(RunError, match=r"checkpoint-11/.* cannot be read: Input/output error$"):
        resume_point(checkpoints)
    assert len(names(checkpoints)) == 3


def test_what_is_not_complete_is_removed_before_a_run_goes_on(checkpoints):
    truncate(checkpoints / "checkpoint-11" / "weights")
    (checkpoints / "checkpoint-9" / MANIFEST).unlink()
    for name in ("checkpoint-20", "checkpoint-final", "other"):
        (checkpoints / name).mkdir()
    assert resume_point(checkpoints) == checkpoints / "checkpoint-10"
    assert names(checkpoints) == ["checkpoint-10", "checkpoint-final", "other"]
    assert resume_point(checkpoints / "other") is None


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (2, None, [10, 11]),
        (1, None, [11]),
        (2, 9, [9, 11]),
        (2, 11, [10, 11]),
        (1, 9, [9, 11]),
        (3, 9, [9, 10, 11]),
        (None, 9, [9, 10, 11]),
    ],
)
def test_old_checkpoints_are_deleted_but_not_the_best(checkpoints, limit, best, kept):
    (checkpoints / "checkpoint-8").mkdir()  # what a killed deletion left
    resume._delete_old(checkpoints, limit, best and f"checkpoint-{best}")
    assert {*names(checkpoints)} == {f"checkpoint-{step}" for step in kept}


def test_a_complete_checkpoint_is_always_there(make_model, tmp_path, monkeypatch):
    counts = []

    def count_first(checkpoint):
        counts.append(len(list(tmp_path.glob("checkpoint-*/complete.json"))))
        seal(checkpoint)

    monkeypatch.setattr(resume, "seal", count_first)
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-4").mkdir()  # leftovers must not be counted
    run(make_model(), tmp_path, steps=4, save_every=1)
    assert counts == [0, 1, 2, 2]
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize("file", ["model", "optimizer", "scheduler", "rng_state_0"])
def test_a_run_goes_on_from_before_a_truncated_file(make_model, uninterrupted, tmp_path, caplog, file):
    folder, expected = uninterrupted
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    truncate(tmp_path / "checkpoint-7" / f"{file}.safetensors")
    model = make_model(seed=1)
    curve = run(model, tmp_path).curve
    assert "checkpoint-7 is skipped: " in caplog.text
    assert same(model, expected)
    assert [line["step"] for line in curve] == list(range(1, 8))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in PEFT
def test_adapters_alone_are_saved_and_go_on(make_model, tmp_path):
    peft = pytest.importorskip("peft")

    def make():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.3)
        return peft.get_peft_model(make_model(), config)

    whole, cut = make(), make()
    run(whole, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "cut" / "checkpoint-6")
    saved = {path.name for path in (tmp_path / "cut" / "checkpoint-6").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert "model.safetensors" not in saved
    assert not [name for name in saved if name.endswith((".bin", ".pt", ".pth"))]
    run(cut, tmp_path / "cut")
    assert same(cut, whole)


STEPS_OF_A_SAVE = [
    (trainer, "save_state"),
    (state_files, "save_file"),
    (resume, "flush"),
    (resume, "write_json"),
    (resume, "_checksum"),
]


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize(("module", "name"), STEPS_OF_A_SAVE, ids=[name for _, name in STEPS_OF_A_SAVE])
def test_a_full_disk_leaves_the_checkpoint_before(
    make_model, uninterrupted, tmp_path, monkeypatch, module, name, call
):
    """Every step of the second save fails in turn, at its first or second call in it."""
    calls, working = [], getattr(module, name)

    def fill_up(*args, **options):
        if list(tmp_path.glob("checkpoint-2/complete.json")):
            calls.append(1)
            if len(calls) == call:
                raise SafetensorError("I/O error: No space left on device (os error 28)")
        return working(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fill_up)
        try:
            run(make_model(), tmp_path)
        except RunError as error:
            assert str(error).startswith(f"the disk that holds {tmp_path}/checkpoint-")  # noqa: PT017
            assert "free some space, then run the same command" in str(error)  # noqa: PT017
        assert len(calls) >= call
    before = last_complete_checkpoint(tmp_path)
    assert (
        names(tmp_path) == ["checkpoint-2", before.name] if before.name != "checkpoint-2" else [before.name]
    )
    model = make_model(seed=1)
    run(model, tmp_path)
    assert same(model, uninterrupted[1])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "skipwise-test", str(place)]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full(make_model, uninterrupted, small_disk):
    """Less and less room for the second checkpoint: from none at all to all but a little."""
    folder = small_disk / "run"
    size = sum(path.stat().st_size for path in (uninterrupted[0] / "checkpoint-6").iterdir())
    run(make_model(), folder, steps=2)
    state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    for share in (0.0, 0.1, 0.4, 0.7, 0.95):
        free = shutil.disk_usage(small_disk).free
        (small_disk / "filler").write_bytes(bytes(max(0, free - 8192 - int(share * size))))
        with pytest.raises(RunError, match=r"is full: free some space, then run the same command$"):
            run(make_model(seed=1), folder)
        assert names(folder) == ["checkpoint-2"]
        (small_disk / "filler").unlink()
    model = make_model(seed=1)
    run(model, folder)
    assert Path(folder / "checkpoint-7" / MANIFEST).is_file()


def test_progress_bars_of_a_save_are_silent_and_come_back(monkeypatch):
    from transformers.utils import logging

    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)
    with trainer._no_progress_bars():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()
