"""`skipwise train` as a user meets it: a real run, a dry one, the schema, and mistakes in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from skipwise.cli.train import train
from skipwise.config import load_recipe, recipe_schema

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(train)
SHIPPED = Path(__file__).parents[2] / "recipes" / "smollm2-135m-128k.yaml"

RECIPE = """\
# yaml-language-server: $schema=recipes/schema.json
model: tiny
target_length: 256
data:
  files: [text]
training:
  steps: 4
  rows_per_step: 2
  learning_rate: 1e-3
  save_every: 2
  report_to: []
"""


@pytest.fixture
def here(make_model, demo_base, tmp_path, monkeypatch):
    """A folder to be in, with a tiny model of 128 tokens, text, and a recipe."""
    monkeypatch.chdir(tmp_path)
    make_model(vocab_size=2048, max_position_embeddings=128).save_pretrained("tiny")
    AutoTokenizer.from_pretrained(demo_base).save_pretrained("tiny")
    Path("text").mkdir()
    for number in range(10):
        lines = [f"def function_{number}_{line}(x):\n    return x + {line}\n\n" for line in range(40)]
        Path("text", f"{number}.txt").write_text("".join(lines))
    Path("my.yaml").write_text(RECIPE)
    return tmp_path


def run(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.utils.logging._tqdm_active", False)
        return CliRunner().invoke(app, [*map(str, arguments)])


def test_a_recipe_becomes_a_checkpoint(here):
    done = run("my.yaml", "training.steps=3", "sampler.chunks=3", "interpolation=ntk")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == "Run folder: runs/my"
    assert done.stdout.splitlines()[-1] == "Checkpoint runs/my/checkpoint"
    model = AutoModelForCausalLM.from_pretrained("runs/my/checkpoint")
    assert model.config.max_position_embeddings == 256
    record = json.loads(Path("runs/my/run.json").read_text())
    (curve,) = record["training"].values()
    assert [step["step"] for step in curve] == [1, 2, 3]
    assert not Path("runs/my/scores.json").exists()
    resolved = load_recipe(Path("runs/my/recipe.yaml"))
    assert (resolved.training.steps, resolved.sampler.chunks, resolved.interpolation) == (3, 3, "ntk")
    assert resolved.training.warmup_steps == 10  # defaults are spelled out

    before = Path("runs/my/checkpoint/model.safetensors").stat().st_mtime_ns
    again = run("my.yaml", "training.steps=3", "sampler.chunks=3", "interpolation=ntk")
    assert again.exit_code == 0, again.output
    assert Path("runs/my/checkpoint/model.safetensors").stat().st_mtime_ns == before
    other = run("my.yaml", "training.steps=2")
    assert (other.exit_code, other.stderr.count("\n")) == (2, 1)
    assert "runs/my holds a run of another recipe" in other.stderr
    fresh = run("my.yaml", "training.steps=2", "--fresh")
    assert fresh.exit_code == 0, fresh.output
    assert load_recipe(Path("runs/my/recipe.yaml")).training.steps == 2


def test_a_dry_run_leaves_nothing_and_fits_80_columns(here):
    before = {path for path in here.rglob("*") if "cache" not in str(path)}
    done = run("my.yaml", "--dry-run", "training.adapter={}", "training.compile=true", "seed=7")
    assert done.exit_code == 0, done.output
    assert {path for path in here.rglob("*") if "cache" not in str(path)} == before
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    table = lines.index("Model      llama, 128 -> 256 tokens by yarn")
    said = yaml.safe_load("\n".join(lines[1 : table - 1]))
    assert said["seed"] == 7
    assert said["training"] == {
        **{"steps": 4, "rows_per_step": 2, "learning_rate": 1e-3, "adapter": {}, "compile": True},
        **{"save_every": 2, "report_to": []},
    }
    assert lines[table + 1 : table + 5] == [
        "Rows       PoSE, 128 tokens",
        "Budget     4 steps of 2 rows, 1,024 tokens in all",
        "Tried      on a tiny model of the same config, with the settings of the recipe:",
        "           probed at the target: every probe holds",
    ]
    assert lines[table + 5].startswith("           trained 2 steps: loss ")
    assert lines[table + 7 :] == ["Not tried  torch.compile: takes longer than a dry run"]


def test_several_kinds_of_text(here):
    answers = "".join(json.dumps({"said": f"{n} times {n} is {n * n}."}) + "\n" for n in range(50))
    Path("short.jsonl").write_text(answers)
    beside = "data.beside=[{files: [short.jsonl], share: 0.25, text_column: said%s}]"
    packed = beside % ", sampler: contiguous, pack: true, taught: true"
    tried = run("my.yaml", packed, "--dry-run")
    assert tried.exit_code == 0, tried.output
    lines = [" ".join(line.split()) for line in tried.stdout.splitlines()]
    table = lines.index("Rows 75 % PoSE, 25 % Contiguous, 128 tokens")
    assert lines[table + 1 : table + 3] == [
        "Text 75 % PoSE: text",
        "25 % Contiguous, packed, taught: short.jsonl",
    ]
    done = run("my.yaml", packed)
    assert done.exit_code == 0, done.output
    said = [line.strip() for line in done.stdout.splitlines() if "training text" in line]
    assert said == [
        "training text (data.files, 75 % of the rows, PoSE): 5 documents",
        "training text (data.beside.0, 25 % of the rows, Contiguous): 50 documents, packed, "
        "taught by the untouched model",
    ]
    model = AutoModelForCausalLM.from_pretrained("runs/my/checkpoint")
    assert model.config.max_position_embeddings == 256
    assert model(torch.arange(200)[None]).logits.isfinite().all()
    record = json.loads(Path("runs/my/run.json").read_text())
    seen = "tokens seen in training (75 % PoSE, 25 % Contiguous)"
    assert [record["data"][f"{part}{seen}"] for part in ("", "data.files: ", "data.beside.0: ")] == [
        8 * 128,
        6 * 128,
        2 * 128,
    ]
    unpacked = run("my.yaml", beside % "", "--output", "runs/other")
    assert unpacked.exit_code == 2
    assert unpacked.stderr.startswith("skipwise: data.beside.0: a row needs 128 tokens of one document")
    assert "or set pack: true" in unpacked.stderr


def test_a_dry_run_of_the_command_itself(here):
    """In a process of its own, where no test has set anything."""
    script = "import typer; from skipwise.cli.train import train; typer.run(train)"
    command = [sys.executable, "-c", script, "my.yaml", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "exported, and read back by transformers with the same logits" in done.stdout
    assert "Not tried" not in done.stdout
    assert "Loading weights" not in done.stderr


def test_the_schema_needs_no_recipe():
    done = run("--schema")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads(json.dumps(recipe_schema()))


def test_a_shipped_recipe_with_another_model(here):
    AutoConfig.for_model("mistral", sliding_window=None).save_pretrained("config")
    done = run(SHIPPED, "model=config", "target_length=256k", "data.files=[text/3.txt]", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "Model      mistral, 128k -> 256k tokens by yarn" in done.stdout
    assert "text:" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no recipe: name a file, for example recipes/"),
        (("nowhere.yaml",), "nowhere.yaml cannot be read: No such file or directory"),
        (("my.yaml", "steps"), "'steps': say key=value, such as training.steps=100"),
        (("my.yaml", "training.stepps=3"), "the recipe does not hold: training.stepps = 3: no such key, did"),
        (("my.yaml", "model=nowhere", "--dry-run"), "nowhere: no such checkpoint folder or file"),
        (("my.yaml", "data.files=[nowhere.txt]"), "nowhere.txt: no such file or folder"),
        (("my.yaml", "target_length=128", "--dry-run"), "a target_length of 128 is not larger than"),
        (("my.yaml", "--fresh", "--output", "text"), "text is not a run of skipwise: it is not deleted"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(here, arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"skipwise: {message}")
    assert done.stderr.count("\n") == 1
    assert Path("text", "1.txt").exists()
