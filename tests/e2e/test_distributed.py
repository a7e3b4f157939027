"""Several processes on the CPU, started as a user starts them: the run is that of one process.

Each launch costs some ten seconds of imports, so that one does several trainings (`train_tiny`).
"""

import email
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import train_tiny
import yaml
from safetensors.torch import load_file

from skipwise import pipeline
from skipwise.config import load_recipe

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE = {
    "steps": 6,
    "rows_per_step": 8,
    "micro_batch": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "save_every": 2,
    "report_to": [],
}
ROWS = list(range(6 * 8))
CUT = 4 * 8 + 4
"""The row at which a run is cut off: in step 5, with the checkpoints of steps 2 and 4 on the disk. Each of
two processes meets it with its second micro-batch: one that waited for the other would wait for ever."""

DEEPSPEED = Path(__file__).parents[2] / ".deepspeed"
"""Where `make` installs it: nothing that does not ask for it shall import it."""
needs_deepspeed = pytest.mark.skipif(
    not DEEPSPEED.is_dir() and find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


def launch(processes, folder, jobs):
    """Run ``train_tiny`` in so many processes."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    start(processes, [train_tiny.__file__, str(file)])


def start(processes, command):
    """Run ``command`` in so many processes under torchrun; what a person would read."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, f"--nproc-per-node={processes}", *command],
        env=os.environ
        | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        | {"PYTHONWARNINGS": "ignore"}  # of torch about DeepSpeed
        | {"PYTHONPATH": os.pathsep.join(filter(None, (str(DEEPSPEED), os.environ.get("PYTHONPATH"))))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout + done.stderr


def job(folder, stop_at=None, *, taught=False, **changes):
    return {"folder": str(folder), "stop_at": stop_at, "taught": taught, "recipe": RECIPE | changes}


def found(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def rows_read(folder, name):
    """The rows each process read, in its order."""
    files = sorted(folder.glob(f"{name}.rows.*"))
    return [[int(line) for line in file.read_text().split()] for file in files]


def assert_same_run(folder, name, alone):
    """To 1e-5 (losses, gradient norms) and 1e-6 (weights): sums over processes are rounded otherwise."""
    expected, expected_weights = alone
    curve = found(folder, name)["curve"]
    assert [line["step"] for line in curve] == [line["step"] for line in expected]
    for line, other in zip(curve, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-5)
    weights = load_file(folder / f"{name}.safetensors")
    assert weights.keys() == expected_weights.keys()
    for key, weight in weights.items():
        assert (weight - expected_weights[key]).abs().max() < 1e-6, key


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Curve and weights of the run of one process, without a launcher."""
    folder = tmp_path_factory.mktemp("alone")
    curve = train_tiny.run(job(folder / "whole"), "cpu")["curve"]
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
    return curve, load_file(folder / "whole.safetensors")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes with whole copies, and what they make of a run that one process began."""
    folder = tmp_path_factory.mktemp("two")
    assert train_tiny.run(job(folder / "one-two", CUT), "cpu") == {"cut": True}
    jobs = [
        job(folder / "whole"),
        job(folder / "two-one", CUT),
        job(folder / "one-two"),
        job(folder / "fsdp", sharding="fsdp2"),
        job(folder / "thirds", rows_per_step=9, micro_batch=1),
        job(folder / "taught", taught=True),
    ]
    launch(2, folder, jobs)
    return folder


def test_two_processes_train_as_one(two, alone):
    assert_same_run(two, "whole", alone)


def test_rows_taught_by_another_model_in_two_processes(two):
    """A process meets micro-batches of either kind while the other one meets mixed ones."""
    curve = train_tiny.run(job(two / "taught-alone", taught=True), "cpu")["curve"]
    assert_same_run(two, "taught", (curve, load_file(two / "taught-alone.safetensors")))


def test_each_row_is_read_by_one_process(two):
    first, second = rows_read(two, "whole")
    assert sorted(first + second) == ROWS
    assert len(first) == len(second)
    assert sorted(first[:4] + second[:4]) == ROWS[:8]  # the rows of step 1


def test_two_go_on_where_one_was_cut_off(two, alone):
    assert_same_run(two, "one-two", alone)
    first, second = rows_read(two, "one-two")
    assert sorted(first[-8:] + second) == ROWS[32:]  # from the checkpoint of step 4, and no others


def test_one_goes_on_where_two_were_cut_off(two, alone):
    assert found(two, "two-one") == {"cut": True}
    before = len(rows_read(two, "two-one")[0])
    again = train_tiny.run(job(two / "two-one"), "cpu")
    (two / "two-one.json").write_text(json.dumps(again))
    assert_same_run(two, "two-one", alone)
    assert rows_read(two, "two-one")[0][before:] == ROWS[32:]


def test_fsdp_on_a_cpu_stops_instead_of_copying_the_model(two):
    assert found(two, "fsdp")["error"].startswith(
        "RunError: training.sharding = fsdp2, but Accelerate does not shard on cpu"
    )
    assert not rows_read(two, "fsdp")


def test_rows_that_do_not_divide_are_refused(two):
    assert found(two, "thirds")["error"] == (
        "InputError: training.rows_per_step = 9 cannot be divided over 2 devices in micro-batches of 1: "
        "make it a multiple of 2"
    )


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Two processes under DeepSpeed."""
    folder = tmp_path_factory.mktemp("sharded")
    three, two = (str(RECIPES / f"deepspeed-zero{stage}.json") for stage in (3, 2))
    jobs = [
        job(folder / "zero3", deepspeed=three),
        job(folder / "cut3", CUT, deepspeed=three),
        job(folder / "cut3", deepspeed=three),
        job(folder / "zero2", deepspeed=two),
        job(folder / "left3", CUT, deepspeed=three),
    ]
    launch(2, folder, jobs)
    return folder


@needs_deepspeed
@pytest.mark.parametrize("name", ["zero3", "zero2", "cut3"])
def test_a_sharded_run_is_the_run_of_one_process(sharded, alone, name):
    assert_same_run(sharded, name, alone)


@needs_deepspeed
def test_a_sharded_run_goes_on_bit_by_bit(sharded):
    whole, cut = (load_file(sharded / f"{name}.safetensors") for name in ("zero3", "cut3"))
    assert all((whole[key] == cut[key]).all() for key in whole)
    first, second = rows_read(sharded, "cut3")
    assert sorted(first[-8:] + second[-8:]) == ROWS[32:]


@needs_deepspeed
def test_deepspeed_in_one_process(sharded, alone, tmp_path):
    """It goes on there too, but not with what two processes left."""
    three = str(RECIPES / "deepspeed-zero3.json")
    jobs = [
        job(tmp_path / "one", CUT, deepspeed=three),
        job(tmp_path / "one", deepspeed=three),
        job(sharded / "left3", deepspeed=three),
    ]
    launch(1, tmp_path, jobs)
    assert_same_run(tmp_path, "one", alone)
    assert "checkpoint-4 was saved by 2 processes and there are 1 now" in found(sharded, "left3")["error"]


@pytest.fixture
def recipe_file(tmp_path, demo_base):
    """A few steps of the embedded model on the standard library's e-mail package."""
    recipe = {
        "model": str(demo_base),
        "target_length": 1024,
        "data": {"files": [str(Path(email.__file__).parent / "*.py")]},
        "training": RECIPE | {"steps": 2, "learning_rate": 1e-3},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def test_the_command_in_two_processes(recipe_file, tmp_path):
    """The line of docs/distributed.md: one checkpoint, one record, everything said once."""
    run = tmp_path / "run"
    command = ["-m", "skipwise", "train", str(recipe_file), "--output", str(run)]
    said = start(2, command)
    assert (said.count("training text"), said.count("Checkpoint ")) == (1, 1)
    curve = json.loads((run / "run.json").read_text())["training"]["pose"]
    pipeline.train(load_recipe(recipe_file), tmp_path / "alone", command="", say=lambda _: None)
    expected = json.loads((tmp_path / "alone" / "run.json").read_text())["training"]["pose"]
    for line, other in zip(curve, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-5)
    weights, others = (
        load_file(each / "checkpoint" / "model.safetensors") for each in (run, tmp_path / "alone")
    )
    assert all((weight.float() - others[key].float()).abs().max() < 1e-5 for key, weight in weights.items())
