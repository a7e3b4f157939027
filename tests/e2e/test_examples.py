"""The scripts in `examples/` run as they are, and the model inside each trainer really meets the skips.

Each script runs once, in a process of its own, under a spy that keeps what the collator gave and what the
transformer of the model was then given. A trainer that drops the positions or the mask on the way, or makes
other labels, is caught by that and by the loss it prints.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from skipwise import extend_rope

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
FAST = {"plain_loop"}  # one of them is enough for `make test-fast`
WINDOW, TARGET = 256, 4096
STEPS, BATCH = 2, 4

SPY = """
import functools, runpy, sys
import torch
from transformers import LlamaModel
from skipwise import SkipCollator

notes, *sys.argv = sys.argv[1:]
collated, met = [], []

def keep(function, note):
    @functools.wraps(function)
    def spy(*args, **kwargs):
        result = function(*args, **kwargs)
        note(result, kwargs)
        return result
    return spy

def note_batch(batch, _):
    collated.append({name: tensor.clone() for name, tensor in batch.items()})

def note_inputs(_, inputs):
    if torch.is_grad_enabled():  # the probes run without
        met.append({name: inputs.get(name) for name in ("input_ids", "position_ids", "attention_mask")})

SkipCollator.__call__ = keep(SkipCollator.__call__, note_batch)
LlamaModel.forward = keep(LlamaModel.forward, note_inputs)
runpy.run_path(sys.argv[0], run_name="__main__")
torch.save({"collated": collated, "met": met}, notes)
"""


def run_script(name, output, *, steps, **options):
    """Run an example under the spy; what it printed, what the spy saw, and the checkpoint's folder."""
    notes = output.with_suffix(".pt")
    options |= {"output": output, "steps": steps, "batch": BATCH}
    command = [sys.executable, "-c", SPY, notes, EXAMPLES / f"{name}.py"]
    command += [f"--{option}={value}" for option, value in options.items()]
    quiet = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(stdout=done.stdout, checkpoint=output / "checkpoint", **torch.load(notes))


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in SCRIPTS],
)
def run(request, tmp_path_factory):
    # In workers of its own, a loader's collator would be out of the spy's sight.
    workers = {"workers": 0} if request.param == "streaming" else {}
    return run_script(request.param, tmp_path_factory.mktemp(request.param) / "out", steps=STEPS, **workers)


@pytest.fixture(scope="module")
def extended(demo_base):
    """The embedded model as every example has it before the first step."""
    config = AutoModelForCausalLM.from_pretrained(demo_base).config
    return AutoModelForCausalLM.from_pretrained(demo_base, config=extend_rope(config, TARGET, "yarn"))


def test_its_last_line_says_what_was_made(run):
    last = run.stdout.strip().splitlines()[-1]
    assert last == f"{run.checkpoint}: {WINDOW} -> {TARGET} tokens"


def test_the_checkpoint_is_a_stock_one_with_the_long_window(run, demo_base):
    model = AutoModelForCausalLM.from_pretrained(run.checkpoint)
    assert model.config.max_position_embeddings == TARGET
    assert AutoTokenizer.from_pretrained(run.checkpoint).model_max_length == TARGET
    before = AutoModelForCausalLM.from_pretrained(demo_base).state_dict()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_the_model_is_given_what_the_collator_made(run):
    made = run.collated[-STEPS:]  # chat.py shows one more, before
    for met, batch in zip(run.met, made, strict=True):
        for name, tensor in met.items():
            assert tensor.dtype == torch.int64
            assert tensor.shape == batch["labels"].shape
            assert len(tensor) == BATCH
            assert torch.equal(tensor, batch[name]), name


def test_the_positions_skip_and_every_token_is_seen(run):
    rows = [
        positions[mask == 1]
        for met in run.met
        for positions, mask in zip(met["position_ids"], met["attention_mask"], strict=True)
    ]
    assert all(row[0] == 0 and row.diff().min() == 1 for row in rows)
    assert all(len(row) <= WINDOW and row[-1] < TARGET for row in rows)
    assert max(row[-1] for row in rows) > TARGET / 2
    assert len({tuple(row.tolist()) for row in rows}) == STEPS * BATCH


def test_the_loss_is_that_of_the_row_with_its_skips(run, extended):
    """One logit that ignored the skips, or one label more, would move the loss by more than it is rounded."""
    printed = float(re.search(r"loss\W+([\d.]+)", run.stdout)[1])
    batch = run.collated[-STEPS]
    near = torch.arange(batch["labels"].shape[1]).expand_as(batch["position_ids"])
    every = torch.where(batch["attention_mask"] == 1, batch["input_ids"], -100)
    assert printed == pytest.approx(_loss(extended, batch), abs=6e-4)
    assert printed != pytest.approx(_loss(extended, batch | {"position_ids": near}), abs=2e-3)
    assert printed != pytest.approx(_loss(extended, batch | {"labels": every}), abs=2e-3)


@torch.inference_mode()
def _loss(model, batch):
    return float(model(**batch).loss)


@pytest.mark.slow
def test_a_stopped_stream_goes_on_where_it_was(tmp_path):
    """Bit for bit, with rows made ahead by two workers."""
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    first = run_script("streaming", stopped, steps=1)
    second = run_script("streaming", stopped, steps=3)
    whole = run_script("streaming", straight, steps=3)
    assert _steps(first) + _steps(second) == _steps(whole)
    assert len(_steps(whole)) == 3
    weights = [each.checkpoint / "model.safetensors" for each in (second, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def _steps(run):
    return [line for line in run.stdout.splitlines() if line.startswith("step ")]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["chat"], indirect=True)
def test_only_the_assistant_is_learned_in_chats(run):
    tokenizer = AutoTokenizer.from_pretrained(run.checkpoint)
    for batch in run.collated:
        learned = tokenizer.decode(batch["labels"][batch["labels"] != -100])
        assert re.fullmatch(r"(\n(Noted|It is \d+|The key of box \d+ is \d+)\.\x03)+", learned), learned


def test_the_readme_names_every_example():
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\[`(\w+)\.py`\]\(\1\.py\)", readme)) == set(SCRIPTS)
