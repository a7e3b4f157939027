import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, TrainerControl, TrainerState

from skipwise.config import TrainingRecipe
from skipwise.data.rows import Rows
from skipwise.data.skips import PoSE
from skipwise.errors import RunError
from skipwise.train.engine import train
from skipwise.train.guards import StopOnBadLoss, StopOnSignal


class Counting:
    def __len__(self):
        return 5

    def draw(self, epoch, example, rng):
        return (np.arange(40) + example * 7) % 97


def make_rows(count):
    return Rows(Counting(), PoSE(16, 64), count=count, seed=3)


def watch(folder, losses, grad_norms=()):
    """Feed a curve to the guard; the steps at which it would have let a checkpoint be saved."""
    guard = StopOnBadLoss(make_rows(3 * len(losses)), 3, folder)
    state, saved = TrainerState(is_world_process_zero=True), []
    for step, loss in enumerate(losses, start=1):
        logs = {"loss": loss, "grad_norm": dict(enumerate(grad_norms, start=1)).get(step, 1.0)}
        state.global_step = step
        state.log_history += [logs | {"step": step}, {"eval_retrieval": 0.5, "step": step}]
        control = TrainerControl(should_save=True)
        guard.on_log(SimpleNamespace(learning_rate=1e-3), state, control, logs)
        saved += [step] * control.should_save
    return saved


def noisy(count, around, spread, seed=0):
    return (around + spread * np.random.default_rng(seed).standard_normal(count)).tolist()


@pytest.mark.parametrize(
    "losses",
    [
        noisy(300, 2.5, 0.5),
        noisy(300, 0.05, 0.03),
        np.linspace(11, 2, 30).tolist(),
        np.linspace(2, 9, 300).tolist(),  # worse and worse, but no explosion
        [*noisy(40, 2.0, 0.1), 9.0, 2.0, 9.0, 9.0, *noisy(40, 2.0, 0.1)],  # odd documents
        [2.0],
        [3.0, 6.9, 6.9, 6.9],
    ],
    ids=["noise", "small", "falling", "rising", "odd documents", "first step", "below the jump"],
)
def test_no_false_alarm(tmp_path, losses):
    watch(tmp_path, losses)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_saved_while_the_loss_lies_high(tmp_path):
    assert watch(tmp_path, [2.0] * 5 + [7.0, 7.0] + [2.0] * 3) == [1, 2, 3, 4, 5, 8, 9, 10]


@pytest.mark.parametrize("before", [1, 4, 60])
def test_an_explosion_stops_at_its_third_step(tmp_path, before):
    losses = [*noisy(before, 2.0, 0.1), 6.5, 8.0, 12.0, 12.0]
    with pytest.raises(RunError) as error:
        watch(tmp_path, losses)
    assert "\n" not in str(error.value)
    assert f"to 12.00 by step {before + 3}: lower training.learning_rate (now 0.001)" in str(error.value)
    assert f"which {tmp_path}/bad_batch.json names" in str(error.value)
    found = json.loads((tmp_path / "bad_batch.json").read_text())
    assert found["steps"] == [before + 1, before + 3]
    assert [row["number"] for row in found["rows"]] == list(range(3 * before, 3 * (before + 3)))
    rows = make_rows(1000)
    assert all(row["first_token_ids"] == rows[row["number"]].token_ids.tolist() for row in found["rows"])
    assert found["seed"] == 3
    assert [each["loss"] for each in found["history"]] == losses[: before + 3][-50:]


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_stops_at_once(tmp_path, name, value):
    curves = {"loss": [2.0, 2.0, 2.0], "grad_norm": [1.0, 1.0, 1.0]}
    curves[name][2] = value
    with pytest.raises(RunError, match=rf"^{name} is {value} at step 3: lower training\.learning_rate"):
        watch(tmp_path, curves["loss"], curves["grad_norm"])
    found = json.loads((tmp_path / "bad_batch.json").read_text())
    assert found["steps"] == [3, 3]
    assert [row["number"] for row in found["rows"]] == [6, 7, 8]


def test_bad_weights_are_not_saved_over_good_ones(make_model, tmp_path):
    """The gradients of step 3 spoil the weights; a checkpoint is due at every step."""
    model, calls = make_model(), []

    def spoil(module, arguments, output):
        calls.extend([1] * torch.is_grad_enabled())  # not the probes
        return output * float("nan") if len(calls) == 5 else output

    model.lm_head.register_forward_hook(spoil)
    recipe = TrainingRecipe(steps=6, rows_per_step=2, save_every=1, logits_chunk=0, report_to=())
    with pytest.raises(RunError, match=r"^loss is nan at step 3"):
        train(model, make_rows(12), recipe, tmp_path, seed=0)
    assert json.loads((tmp_path / "bad_batch.json").read_text())["steps"] == [3, 3]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    for folder in tmp_path.glob("checkpoint-*"):
        assert all(value.isfinite().all() for value in load_file(folder / "model.safetensors").values())


def test_a_second_signal_counts_when_it_is_no_echo_of_the_first(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    guard = StopOnSignal()
    guard._note(signal.SIGINT, None)
    now[0] += 0.1
    guard._note(signal.SIGTERM, None)  # torchrun passes ctrl-C on, which the terminal sent to all already
    assert guard.received == signal.SIGINT
    now[0] += 2
    with pytest.raises(KeyboardInterrupt):
        guard._note(signal.SIGINT, None)


def test_a_signal_that_reached_another_process_first_is_no_second_one(monkeypatch):
    monkeypatch.setattr("skipwise.processes.any_of", lambda flag: True)
    guard, control = StopOnSignal(), TrainerControl()
    guard.on_step_end(None, None, control)
    guard._note(signal.SIGTERM, None)  # during the save
    assert (control.should_save, control.should_training_stop) == (True, True)
    with pytest.raises(KeyboardInterrupt) as error:
        guard.finish()
    assert error.value.args == (signal.SIGTERM,)


def train_here(folder, *, signal_at=-1):
    """Six steps of four rows; whoever reads row ``signal_at`` gets a SIGTERM. Returns the model's weights."""

    class SignalledRows(Rows):
        def __getitem__(self, index):
            if index == signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 97}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    recipe = TrainingRecipe(steps=6, rows_per_step=4, save_every=50, learning_rate=1e-2, report_to=())
    rows = SignalledRows(Counting(), PoSE(16, 64), count=24, seed=3)
    train(model, rows, recipe, folder, seed=0)
    return model.state_dict()


def train_in_two(folder, signal_at):
    """The same in two processes, forked; a process that was stopped leaves the signal's number in a file."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children = []
    for rank in (0, 1):
        children.append(os.fork())
        if not children[-1]:
            signal.alarm(150)  # processes that do not agree wait for each other
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            os.environ |= {key: str(value) for key, value in place.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            try:
                train_here(folder, signal_at=signal_at)
            except KeyboardInterrupt as interrupt:
                (folder / f"stopped-{rank}").write_text(str(interrupt.args[0]))
            except BaseException:  # noqa: BLE001, nothing may return into the parent's code
                traceback.print_exc()
                os._exit(1)
            os._exit(0)  # gloo may abort at the interpreter's exit
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


@pytest.mark.slow
def test_all_processes_stop_and_save_at_the_same_step(tmp_path):
    """One process of two is told to stop in step 3; what was saved goes on in two, and in one."""
    command = [sys.executable, __file__, str(tmp_path / "two"), str(tmp_path / "one")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    stopped = [(tmp_path / "two" / f"stopped-{rank}").read_text() for rank in (0, 1)]
    assert stopped == [str(int(signal.SIGTERM))] * 2
    (checkpoint,) = set((tmp_path / "two").glob("checkpoint-*")) - {tmp_path / "two" / "checkpoint-6"}
    assert 2 <= int(checkpoint.name.removeprefix("checkpoint-")) <= 4  # rows are read ahead by a step at most
    files = {path.name for path in checkpoint.iterdir()}
    assert {"rng_state_0.safetensors", "rng_state_1.safetensors", "complete.json"} <= files
    assert not [name for name in files if name.endswith((".pt", ".pth", ".bin"))]

    expected, one = train_here(tmp_path / "whole"), train_here(tmp_path / "one")
    two = load_file(tmp_path / "two" / "checkpoint-6" / "model.safetensors")
    for name, value in expected.items():
        assert torch.allclose(one[name], value, atol=1e-5), name
        assert torch.allclose(two[name], value, atol=1e-5), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    two, one = map(Path, sys.argv[1:])
    two.mkdir()
    train_in_two(two, signal_at=9)
    shutil.copytree(two, one)
    train_in_two(two, signal_at=-1)
