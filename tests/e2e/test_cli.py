"""The command line as a user meets it: what it makes, and how it ends when something is wrong."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from skipwise.cli.main import app
from skipwise.scores import Scores

SKIPWISE = [sys.executable, "-m", "skipwise"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
BUDGET = ["--steps", "4", "--rows-per-step", "2", "--trials", "3", "--save-every", "2"]


@pytest.fixture(scope="module")
def place(make_model, demo_base, tmp_path_factory):
    """A folder with a tiny model of 128 tokens, a GPT-2, and a few text files long enough for 256."""
    folder = tmp_path_factory.mktemp("place")
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    sizes = {"vocab_size": 2048, "max_position_embeddings": 128}
    gpt2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128, "vocab_size": 2048}
    for name, model in (("tiny", make_model(**sizes)), ("gpt2", make_model("gpt2", **gpt2))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "text").mkdir()
    for number in range(8):
        lines = [
            f"def function_{number}_{line}(x):\n    return x + {number * line}\n\n" for line in range(30)
        ]
        (folder / "text" / f"{number}.txt").write_text("".join(lines))
    (folder / "empty").mkdir()
    (folder / "empty" / "blank.txt").write_text(" \n")
    (folder / "short.txt").write_text("A few words.")
    (folder / "other").mkdir()
    (folder / "other" / "precious.txt").write_text("not a run")
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def invoke(*arguments):
    """Run a command in this process, without the progress bars of libraries, as in one of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.utils.logging._tqdm_active", False)
        return CliRunner().invoke(app, [str(each) for each in arguments])


def extend(*arguments, model="tiny", target="256", data="text"):
    """The usual command, with changes; None leaves an option out."""
    options = [("--target-length", target), ("--data", data)]
    named = [each for name, value in options if value is not None for each in (name, value)]
    return ["extend", model, *named, *BUDGET, *arguments]


@pytest.mark.parametrize("command", [SKIPWISE, ["skipwise"]], ids=["python -m", "script"])
@pytest.mark.parametrize("arguments", [["--help"], ["extend", "--help"]])
def test_help_is_instant(command, arguments):
    """Counted in seconds of the processor: a busy machine must not fail it."""
    script = Path(sys.executable).with_name("skipwise")
    command = [str(script), *command[1:]] if command == ["skipwise"] else command
    if not Path(command[0]).exists():
        pytest.skip("the script `skipwise` is not installed beside this Python")
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=ENVIRONMENT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert done.returncode == 0
        assert "window" in done.stdout
    assert min(seconds) < 0.5


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from skipwise.cli.main import app; app(['--help'], standalone_mode=False); "
        "print([name for name in ('torch', 'transformers', 'numpy', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


REFUSED = {
    "missing data": (extend(data="nope.txt"), "nope.txt: no such file"),
    "empty corpus": (extend(data="empty"), "empty: holds no text"),
    "short corpus": (extend(data="short.txt"), "too little text"),
    "no data": (extend(data=None), "--data"),
    "target is the window": (extend(target="128"), "a target_length of 128 is not larger"),
    "target below the window": (extend(target="100"), "a target_length of 100 is not larger"),
    "no target": (extend(target=None), "--target-length"),
    "bad length": (extend(target="12q"), "target_length = '12q'"),
    "length of nothing": (extend(target="0"), "target_length"),
    "bad evaluation length": (extend("--eval-lengths", "128,2x"), "'2x'"),
    "evaluation too short for a prompt": (extend("--eval-lengths", "20,128"), "longer lengths"),
    "rows above the window": (extend("--train-length", "200"), "lower it, or allow_longer_rows"),
    "rows above the target": (
        extend("--train-length", "300", "--allow-longer-rows"),
        "a train_length of 300 is larger than the target_length of 256",
    ),
    "unknown sampler": (extend("--sampler", "prose"), "sampler.name = 'prose'"),
    "weights beyond 1": (extend("--sampler", "pose:0.8,cream:0.3"), "must sum to 1, not 1.1"),
    "rows of two lengths": (extend("--sampler", "pose:0.8,full-length:0.2"), "must have one row length"),
    "rows too short for the sampler": (
        extend("--sampler", "cream", "--train-length", "2"),
        "train_length = 2: must be at least 3 tokens",
    ),
    "unknown interpolation": (extend("--interpolation", "cubic"), "interpolation = 'cubic'"),
    "option of another interpolation": (
        extend("--interpolation", "linear", "--interpolation-option", "beta_fast=8"),
        "interpolation 'linear' has no option 'beta_fast'",
    ),
    "option without a value": (extend("--interpolation-option", "beta_fast"), "say KEY=VALUE"),
    "option that is no number": (extend("--interpolation-option", "beta_fast=big"), "beta_fast"),
    "list of the wrong length": (
        extend("--interpolation", "longrope", "--interpolation-option", "long_factor=1,1.5,2"),
        "long_factor has 3 numbers",
    ),
    "too many chunks": (extend("--chunks", "129"), "chunks = 129"),
    "uneven batch": (extend("--rows-per-step", "3", "--micro-batch", "2"), "multiple"),
    "two mistakes": (extend("--sampler", "prose", target="12q"), "prose"),
    "missing model": (extend(model="./nope"), "./nope: no such checkpoint"),
    "model is a text": (extend(model="short.txt"), "short.txt is a file"),
    "model without RoPE": (extend(model="gpt2"), "gpt2 has no rotary position embeddings"),
    "output is no run": (extend("--output", "other"), "other exists and is not a run"),
    "fresh on what is no run": (extend("--output", "other", "--fresh"), "it is not deleted"),
    "output is a file": (extend("--output", "short.txt"), "short.txt exists and is not a run"),
    "fresh on a file": (extend("--output", "short.txt", "--fresh"), "it is not deleted"),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_said_in_one_line(here, tmp_path, arguments, sentence):
    if "--output" not in arguments:
        arguments = [*arguments, "--output", tmp_path / "run"]
    done = invoke(*arguments)
    assert done.exit_code == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("skipwise: ")
    assert sentence in line
    assert "Traceback" not in done.output
    assert (here / "other" / "precious.txt").read_text() == "not a run"
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_two_mistakes_are_reported_together(here, tmp_path):
    done = invoke(*extend("--sampler", "prose", "--output", tmp_path / "run", target="12q"))
    assert "prose" in done.stderr
    assert "12q" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_corrected_command_is_not_held_up_by_the_mistaken_one(here, tmp_path):
    output = tmp_path / "run"
    assert "nope.txt" in invoke(*extend("--output", output, data="nope.txt")).stderr
    assert "gone.txt" in invoke(*extend("--output", output, data="gone.txt")).stderr
    assert "gone.txt" in (output / "recipe.yaml").read_text()


def test_longer_rows_are_allowed_on_request(here, tmp_path):
    done = invoke(
        *extend("--train-length", "200", "--allow-longer-rows", "--output", tmp_path / "run", data="nope.txt")
    )
    assert "nope.txt: no such file" in done.stderr


def test_a_sampler_is_refused_before_the_text_is_read(here, tmp_path):
    command = extend("--sampler", "pose:0.8,cream:0.3", "--output", tmp_path / "run", data="nope.txt")
    assert "must sum to 1" in invoke(*command).stderr
    assert not (tmp_path / "run").exists()


def test_a_mixture_with_its_control(here, tmp_path):
    name = "pose-0.8-contiguous-0.2"  # of files too
    done = invoke(
        *extend("--sampler", "pose:0.8, contiguous:0.2", "--control", "--output", tmp_path / "run"),
        *("--eval-lengths", "128", "--steps", "2"),
    )
    assert done.exit_code == 0, done.stderr
    for title in ("Contiguous control", "80 % PoSE, 20 % Contiguous"):
        assert title in done.stdout
    assert (tmp_path / "run" / "parts" / f"{name}.json").is_file()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["training"].keys() == {"contiguous", name}
    assert run["recipe"]["sampler"]["name"] == "pose:0.8,contiguous:0.2"


def test_words_without_data_are_refused(here):
    done = invoke("extend", "tiny", "more.txt", "--target-length", "256")
    assert done.exit_code == 2
    assert done.stderr == "skipwise: unexpected 'more.txt': name text files after --data\n"


def test_debug_shows_where(here, tmp_path):
    done = invoke(*extend("--debug", "--output", tmp_path / "run", data="nope.txt"))
    assert done.exit_code != 0
    assert type(done.exception).__name__ == "InputError"


def test_a_process_ends_with_the_exit_code_and_no_traceback(here, tmp_path):
    """The same in a process of its own: a hub name that cannot be reached."""
    command = [*SKIPWISE, *extend("--output", str(tmp_path / "run"), model="someone/nope")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("skipwise: someone/nope cannot be loaded")


@pytest.mark.slow
def test_debug_shows_the_traceback(here, tmp_path):
    command = [*SKIPWISE, *extend("--debug", "--output", str(tmp_path / "run"), model="./nope")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "./nope: no such checkpoint" in done.stderr


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """A finished run with a control, its output folder and the command that made it."""
    output = tmp_path_factory.mktemp("runs") / "run"
    texts = sorted((place / "text").glob("*.txt"))
    command = extend(*texts[1:], "--control", "--output", output, model=place / "tiny", data=texts[0])
    done = invoke(*command)
    assert done.exit_code == 0, done.stderr
    return output, command, done


class TestFinished:
    def test_every_promised_file_is_there(self, finished):
        output = finished[0]
        files = ["recipe.yaml", "scores.json", "run.json", "report.html", "checkpoint/config.json"]
        assert all((output / name).is_file() for name in [*files, "controls/contiguous/config.json"])
        assert len(list((output / "figures").glob("*.png"))) >= 5
        assert not list(output.rglob("*.partial"))
        assert not list(output.rglob("checkpoint-*"))

    def test_paths_and_tables_are_printed(self, finished):
        output, _, done = finished
        for name in ("report.html", "scores.json", "checkpoint"):
            assert str(output / name) in done.stdout
        for title in ("Untouched", "Interpolated", "Contiguous control", "PoSE"):
            assert title in done.stdout

    def test_further_words_are_further_data(self, finished):
        recipe = yaml.safe_load((finished[0] / "recipe.yaml").read_text())
        assert [name.rpartition("/")[2] for name in recipe["data"]["files"]] == [f"{i}.txt" for i in range(8)]
        assert (recipe["target_length"], recipe["training"]["steps"]) == (256, 4)

    def test_scores_are_complete(self, finished):
        found = json.loads((finished[0] / "scores.json").read_text())
        assert found.keys() == {"schema", "subjects", "evaluations", "scores"}
        assert found["schema"] == 2
        scores = Scores.read(finished[0])
        assert [each.name for each in scores.subjects] == ["untouched", "interpolated", "contiguous", "pose"]
        assert scores.subjects[3].rope_parameters["rope_type"] == "yarn"
        for score in scores.scores:
            assert len(score.samples) == score.n > 0
            assert (score.start is None) == (score.task != "perplexity_bucket")
        for task in ("passkey", "perplexity", "perplexity_last_quarter"):
            assert [
                (score.model, score.length)
                for score in scores.scores
                if score.task == task and score.depth is None
            ] == [
                (model, length)
                for model in ("untouched", "interpolated", "contiguous", "pose")
                for length in (128, 256)
            ]

    def test_the_record_of_the_run_is_complete(self, finished):
        run = json.loads((finished[0] / "run.json").read_text())
        assert (run["window"], run["train_length"], run["target_length"]) == (128, 128, 256)
        assert run["recipe"] == json.loads(
            json.dumps(yaml.safe_load((finished[0] / "recipe.yaml").read_text()))
        )
        assert [model["name"] for model in run["models"]] == [
            "untouched",
            "interpolated",
            "contiguous",
            "pose",
        ]
        assert {name: len(curve) for name, curve in run["training"].items()} == {"contiguous": 4, "pose": 4}
        assert {"torch", "transformers", "skipwise"} <= run["versions"].keys()
        assert run["hardware"]["cores"] >= 1
        assert run["peak_memory_gib"] > 0

    def test_the_checkpoint_is_stock_and_was_trained(self, finished, place):
        model = AutoModelForCausalLM.from_pretrained(finished[0] / "checkpoint")
        assert model.config.max_position_embeddings == 256
        assert model.config.rope_parameters["rope_type"] == "yarn"
        weights = {
            name: load_file(folder / "model.safetensors")
            for name, folder in (
                ("before", place / "tiny"),
                ("pose", finished[0] / "checkpoint"),
                ("contiguous", finished[0] / "controls" / "contiguous"),
            )
        }
        name = "model.layers.0.self_attn.q_proj.weight"
        assert not torch.equal(weights["before"][name], weights["pose"][name])
        assert not torch.equal(weights["contiguous"][name], weights["pose"][name])

    def test_the_same_command_again_trains_nothing(self, finished, monkeypatch):
        output, command, first = finished
        before = (output / "checkpoint" / "model.safetensors").stat()
        scores = (output / "scores.json").read_bytes()
        monkeypatch.setattr("skipwise.pipeline.training._train", None)
        monkeypatch.setattr("skipwise.pipeline.run._judge", None)
        done = invoke(*command)
        assert done.exit_code == 0, done.stderr
        assert done.stdout.count("finished earlier") == 4
        begin = "Passkey retrieval ("
        tables, tables_before = (each.stdout[each.stdout.index(begin) :] for each in (done, first))
        assert tables == tables_before
        assert (output / "checkpoint" / "model.safetensors").stat() == before
        assert (output / "scores.json").read_bytes() == scores

    def test_another_recipe_is_kept_out(self, finished):
        output, command, _ = finished
        done = invoke(*command, "--seed", "1")
        assert done.exit_code == 2
        assert (
            "holds a run of another recipe: choose another --output, or start over with --fresh"
            in done.stderr
        )
        assert (output / "scores.json").is_file()

    def test_fresh_starts_over(self, finished):
        output, command, _ = finished  # the last test to use it: the run is replaced
        scores = (output / "scores.json").read_bytes()
        weights = (output / "checkpoint" / "model.safetensors").read_bytes()
        (output / "left-over").write_text("")
        done = invoke(*command, "--fresh")
        assert done.exit_code == 0, done.stderr
        assert "finished earlier" not in done.stdout
        assert not (output / "left-over").exists()
        assert (output / "checkpoint" / "model.safetensors").read_bytes() == weights
        assert (output / "scores.json").read_bytes() == scores


def start(command, output, *, steps):
    """Start a command; return its process when the training has written ``steps`` steps down."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    metrics = output / "train" / "pose" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= steps):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def finish(command):
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


@pytest.mark.slow
def test_interrupted_and_killed_runs_end_where_an_uninterrupted_one_does(place, tmp_path):
    def command(name):
        arguments = ["--output", tmp_path / name, "--steps", 150, "--save-every", 20]
        return [
            *SKIPWISE,
            *(str(each) for each in extend(*arguments, model=place / "tiny", data=place / "text")),
        ]

    whole = finish(command("whole"))
    assert whole.returncode == 0, whole.stderr

    process = start(command("cut"), tmp_path / "cut", steps=30)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM

    process = start(command("cut"), tmp_path / "cut", steps=50)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGINT
    folder = tmp_path / "cut" / "train" / "pose"
    saved = max(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))
    # Saved where it stopped, not at the last multiple of 20.
    assert saved == json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    (line,) = [line for line in said.splitlines() if line.startswith("skipwise: ")]
    assert line == "skipwise: interrupted; the same command again goes on from what was saved"
    assert said.rstrip().endswith(line)
    assert "Traceback" not in said
    for name in (
        "checkpoint",
        "scores.json",
        "run.json",
        "report.html",
        "parts/pose.json",
        "train/pose.json",
    ):
        assert not (tmp_path / "cut" / name).exists()

    process = start(command("cut"), tmp_path / "cut", steps=70)
    process.kill()
    process.communicate()
    assert not (tmp_path / "cut" / "checkpoint").exists()
    resumed_from = [path.name for path in (tmp_path / "cut" / "train" / "pose").glob("checkpoint-*")]
    assert resumed_from

    last = finish(command("cut"))
    assert last.returncode == 0, last.stderr
    for name in ("checkpoint/model.safetensors", "checkpoint/config.json", "scores.json"):
        cut, whole = ((tmp_path / each / name).read_bytes() for each in ("cut", "whole"))
        assert cut.replace(b"/cut", b"/whole") == whole  # the commands name their folder
    curves = [json.loads((tmp_path / name / "run.json").read_text())["training"] for name in ("cut", "whole")]
    assert curves[0] == curves[1]
    assert len(curves[0]["pose"]) == 150
