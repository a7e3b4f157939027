"""A few trainings of a tiny model, one after the other, by each process that a launcher starts.

    python -m torch.distributed.run --nproc-per-node 2 tests/e2e/train_tiny.py JOBS.json

JOBS.json lists the jobs: ``folder``, ``recipe``, ``taught`` if three of eight rows are (`Blend`) and, for a
run that is cut off, ``stop_at``: the row whose reading fails. Beside the folder of a job its main process
leaves ``<folder>.json`` with the loss curve or the error, and ``<folder>.safetensors`` with the weights;
every process leaves ``<folder>.rows.<rank>``.
"""

import json
import sys
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from skipwise import processes
from skipwise.config import TrainingRecipe
from skipwise.data.blend import Blend
from skipwise.data.rows import Rows
from skipwise.data.skips import Contiguous, PoSE
from skipwise.errors import SkipwiseError
from skipwise.train.engine import train
from skipwise.train.sharding import load_device

torch.set_num_threads(1)


class Counting:
    """Passages of consecutive numbers, which a tiny model learns in a few steps."""

    def __len__(self):
        return 5

    def draw(self, epoch, example, rng):
        return (np.arange(40) + example * 7) % 97


class PlugPulledError(Exception):
    """Ends a run in the middle, as a lost machine would."""


class Noted:
    """Rows that write down which of them were read, and fail at one."""

    stop_at = None

    def __getitem__(self, index):
        if self.stop_at is not None and index >= self.stop_at:
            raise PlugPulledError
        with self.log.open("a") as file:
            file.write(f"{index}\n")
        return super().__getitem__(index)


class NotedRows(Noted, Rows):
    """PoSE rows."""


class NotedBlend(Noted, Blend):
    """PoSE rows, and contiguous ones that are taught."""


def make_rows(recipe, *, taught):
    pose, steps, rows = PoSE(16, 64), recipe.steps, recipe.rows_per_step
    if not taught:
        return NotedRows(Counting(), pose, count=steps * rows, seed=3)
    kinds, shares = [pose, Contiguous(16, 64)], [Fraction(5, 8), Fraction(3, 8)]
    return NotedBlend([Counting()] * 2, kinds, shares, steps=steps, rows_per_step=rows, seed=3, taught=[1])


def make_model(seed=0):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        attn_implementation="sdpa",
        bos_token_id=0,
        eos_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                weight.mul_(8)
    return model


def run(job, device=None):
    """Train as ``job`` says; what came out, for its JSON file."""
    folder = Path(job["folder"])
    recipe = TrainingRecipe(**job["recipe"])
    model = make_model().to(device or load_device(recipe))
    teacher = make_model(seed=1) if job.get("taught") else None
    rows = make_rows(recipe, taught=job.get("taught"))
    rows.stop_at = job.get("stop_at")
    rows.log = folder.with_name(f"{folder.name}.rows.{processes.join().process_index}")
    try:
        result = train(model, rows, recipe, folder, seed=0, teacher=teacher)
    except PlugPulledError:
        return {"cut": True}
    except SkipwiseError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if processes.is_main():
        weights = {name: weight.contiguous() for name, weight in result.model.state_dict().items()}
        save_file(weights, folder.with_name(folder.name + ".safetensors"))
    return {"curve": result.curve}


def without_compiler():
    """DeepSpeed would first compile its own communication for a minute, or fail to."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def main():
    if find_spec("deepspeed"):
        without_compiler()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        found = run(job)
        if processes.is_main():
            folder = Path(job["folder"])
            folder.with_name(folder.name + ".json").write_text(json.dumps(found))
    processes.wait()
    processes.leave()


if __name__ == "__main__":
    main()
