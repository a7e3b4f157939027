"""FSDP2 on the GPUs of one machine: the run of one process, divided, gathered, and gone on with elsewhere.

python -m pytest tests/gpu/test_several_gpus.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

WORKER = Path(__file__).parents[1] / "e2e" / "train_tiny.py"
CUT = 4 * 8 + 4  # in step 5, with the checkpoints of steps 2 and 4 on the disk
RECIPE = {
    "steps": 6,
    "rows_per_step": 8,
    "micro_batch": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "save_every": 2,
    "precision": "float32",
    "report_to": [],
}


def launch(processes, folder, jobs):
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, f"--nproc-per-node={processes}", str(WORKER), str(file)],
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-5000:]


def job(folder, stop_at=None, **changes):
    return {"folder": str(folder), "stop_at": stop_at, "recipe": RECIPE | changes}


def found(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run whole, sharded, cut off and gone on with, by two processes and by one."""
    folder = tmp_path_factory.mktemp("runs")
    fsdp = {"sharding": "fsdp2"}
    launch(
        2,
        folder,
        [
            job(folder / "copies"),
            job(folder / "fsdp", **fsdp),
            job(folder / "two-two", CUT, **fsdp),
            job(folder / "two-two", **fsdp),
            job(folder / "two-one", CUT, **fsdp),
            job(folder / "bf16", precision="bfloat16", **fsdp),
            job(folder / "bf16-copies", precision="bfloat16"),
        ],
    )
    launch(1, folder, [job(folder / "alone"), job(folder / "two-one", **fsdp)])
    return folder


@pytest.mark.parametrize("name", ["copies", "fsdp", "two-two", "two-one"])
def test_the_run_of_one_gpu(runs, name):
    curve, alone = found(runs, name)["curve"], found(runs, "alone")["curve"]
    assert [line["step"] for line in curve] == list(range(1, 7))
    for line, other in zip(curve, alone, strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    weights, expected = (load_file(runs / f"{each}.safetensors") for each in (name, "alone"))
    assert weights.keys() == expected.keys()
    assert all((weights[key] - expected[key]).abs().max() < 1e-4 for key in weights)


def test_float32_masters_under_bfloat16(runs):
    """What is gathered are the masters, not bfloat16 copies of them; the loss is that of whole copies."""
    weights = load_file(runs / "bf16.safetensors")
    assert any((weight != weight.bfloat16().float()).any() for weight in weights.values())
    for line, other in zip(found(runs, "bf16")["curve"], found(runs, "bf16-copies")["curve"], strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=0.02)
