"""``kill -9`` at any moment, then the same command: bit for bit the weights of a run never interrupted.

Run as a script, this file imports everything once and forks a child for every attempt.
"""

import contextlib
import hashlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

KILLS = {"train": 20, "extend": 10}
EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}
"""Audit events of Python that stand for an operation on a file."""
GOES_ON = ("complete.json", "train/*.json", "parts/*.json")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("job", KILLS)
def test_killed_runs_end_where_an_uninterrupted_one_does(reports, job):
    found = reports[job]
    assert found["kills"] == KILLS[job]
    assert found["cut"] == [found["whole"]] * len(found["cut"])
    assert len(found["whole"]) == 3  # files that were compared
    assert found["resumed"] > 0


def harness(job: type, folder: Path, wanted: int, seed: int = 7) -> dict:
    """Kill ``job`` ``wanted`` times: at its first file operations, then at random ones and random times.

    A run that finishes in spite of it is compared and a new one begun. Gives the kills, the digests of what
    the uninterrupted run made and of what every other one made, and how often there was something to go on
    from: a checkpoint, a finished training, a judged variant.
    """
    draw, first = random.Random(seed), list(job.first)
    job.prepare(folder)
    attempt(job, folder / "whole", note_to=folder / "noted")  # once for what it imports, once for the time
    noted = json.loads((folder / "noted").read_text())
    for module in noted["modules"]:
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(module)
    started = time.perf_counter()
    assert attempt(job, folder / "again")
    seconds = time.perf_counter() - started
    report = {"kills": 0, "resumed": 0, "whole": job.digests(folder / "whole"), "cut": []}
    while report["kills"] < wanted:
        cut = folder / f"cut-{len(report['cut'])}"
        finished = False
        while not finished:
            if report["kills"] == wanted:
                how = {}
            elif first or draw.random() < 0.5:
                how = {"die_at": first.pop(0) if first else draw.randint(1, noted["operations"])}
            else:
                how = {"after": draw.uniform(0, seconds)}
            report["resumed"] += any(any(cut.rglob(name)) for name in GOES_ON)
            finished = attempt(job, cut, **how)
            report["kills"] += not finished
        report["cut"].append(job.digests(cut))
    return report


def attempt(job, folder: Path, *, after: float | None = None, die_at: int = 0, note_to: Path | None = None):
    """Run ``job`` in a child, killed ``after`` seconds or at an operation; whether it finished."""
    child = os.fork()
    if not child:
        run_and_exit(job, folder, die_at, note_to)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert status == 0, folder.with_suffix(".log").read_text()
    return True


def run_and_exit(job, folder: Path, die_at: int, note_to: Path | None) -> None:
    code, operations = 1, 0

    def note(event, arguments):
        nonlocal operations
        if event in EVENTS and str(arguments[0]).startswith(f"{folder}/"):
            operations += 1
            if operations == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        with folder.with_suffix(".log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        before = set(sys.modules)
        sys.addaudithook(note)
        job.run(folder)
        if note_to:
            modules = [name for name in sys.modules if name not in before]
            note_to.write_text(json.dumps({"operations": operations, "modules": modules}))
        code = 0
    except BaseException:  # noqa: BLE001, nothing may return into the parent's code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def digests(*files: Path) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


class Train:
    """`skipwise.train.engine.train` alone, with dropout, so that the random generator counts too."""

    first = ()

    @staticmethod
    def prepare(folder: Path) -> None:
        import torch
        import transformers  # noqa: F401, for every child

        import skipwise.train.engine  # noqa: F401

        torch.set_num_threads(1)

    @staticmethod
    def run(folder: Path) -> None:
        import numpy as np
        import torch
        from safetensors.torch import save_model
        from transformers import LlamaConfig, LlamaForCausalLM

        from skipwise.config import TrainingRecipe
        from skipwise.data.rows import Rows
        from skipwise.data.skips import PoSE
        from skipwise.train.engine import train

        class Counting:
            def __len__(self):
                return 5

            def draw(self, epoch, example, rng):
                return (np.arange(40) + example * 7) % 97

        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 97}
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, attention_dropout=0.1))
        recipe = TrainingRecipe(
            steps=11, rows_per_step=2, learning_rate=1e-2, save_every=3, warmup_steps=2, report_to=()
        )
        rows = Rows(Counting(), PoSE(16, 64), count=22, seed=3)
        train(model, rows, recipe, folder, seed=0)
        save_model(model, str(folder / "final.safetensors"))

    @staticmethod
    def digests(folder: Path) -> list[str]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        (folder / "curve.json").write_text(json.dumps([[line["step"], line["loss"]] for line in lines]))
        optimizer = folder / "checkpoint-11" / "optimizer.safetensors"
        return digests(folder / "final.safetensors", optimizer, folder / "curve.json")


class Extend:
    """The whole of `skipwise extend`, from the text to the report."""

    first = (1, 2, 3, 4)  # the run folder is claimed

    @staticmethod
    def prepare(folder: Path) -> None:
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        import skipwise
        import skipwise.pipeline

        torch.set_num_threads(1)
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 2048}
        config = LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=128)
        LlamaForCausalLM(config).save_pretrained(folder / "tiny")
        base = Path(skipwise.__file__).parent / "demo" / "demo-base"
        AutoTokenizer.from_pretrained(base).save_pretrained(folder / "tiny")
        (folder / "text").mkdir()
        for number in range(8):
            lines = [f"def function_{number}_{line}(x):\n    return x + {line}\n" for line in range(30)]
            (folder / "text" / f"{number}.txt").write_text("".join(lines))

    @staticmethod
    def run(folder: Path) -> None:
        from skipwise.config import make_recipe
        from skipwise.pipeline import extend

        recipe = make_recipe(
            {
                "model": str(folder.parent / "tiny"),
                "target_length": 256,
                "data": {"files": [str(folder.parent / "text")]},
                "training": {"steps": 6, "rows_per_step": 2, "save_every": 2, "report_to": []},
                "evaluation": {"documents": 2, "trials": 2},
            }
        )
        extend(recipe, folder, command="skipwise extend")

    @staticmethod
    def digests(folder: Path) -> list[str]:
        made = folder / "checkpoint"
        return digests(made / "model.safetensors", made / "config.json", folder / "scores.json")


JOBS = {"train": Train, "extend": Extend}

if __name__ == "__main__":
    found = {}
    for name, job in JOBS.items():
        place = Path(sys.argv[1], name)
        place.mkdir()
        found[name] = harness(job, place, KILLS[name])
    sys.stdout.write(json.dumps(found))
