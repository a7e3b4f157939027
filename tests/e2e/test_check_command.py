"""`skipwise check` as a user meets it."""

import json
import subprocess
import sys

import pytest
import typer
from transformers import AutoConfig
from typer.testing import CliRunner

from skipwise.cli.check import check

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(check)
KEYS = {"family", "verdict", "reason", "backends", "angle_error", "rope"}


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def folder(tmp_path):
    def write(family):
        AutoConfig.for_model(family).save_pretrained(tmp_path / family)
        return tmp_path / family

    return write


def test_a_sound_model_at_80_columns(demo_base):
    done = run(demo_base, "--target-length", "4k")
    assert done.exit_code == 0
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[:4] == [
        "Family   llama",
        "Verdict  works",
        "Reason   every probe holds on the stock class as it is",
        "Window   256 -> 4k tokens",
    ]
    assert "RoPE     rope_theta 1000, rope_type yarn, factor 16," in lines
    assert [line.split()[:3] for line in lines[-3:]] == [
        ["sdpa", "yes", "yes"],
        ["eager", "yes", "yes"],
        ["flex_attention", "yes", "yes"],
    ]


def test_layer_types_and_a_back_end_that_does_not_run(folder):
    done = run(folder("gpt_oss"))
    assert done.exit_code == 0
    assert "Verdict  repaired" in done.stdout
    assert "\nsdpa: " in done.stdout
    assert max(len(line.rstrip()) for line in done.stdout.splitlines() if str(folder) not in line) <= 80
    nested = run(folder("gemma3_text"))
    assert "sliding_attention: " in nested.stdout
    assert "full_attention: " in nested.stdout


def test_json_of_a_refused_model_and_exit_code_1(folder):
    done = run(folder("gpt2"), "--json")
    assert (done.exit_code, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert found.keys() >= KEYS
    assert (found["family"], found["verdict"], found["backends"]) == ("gpt2", "refused", {})
    in_words = run(folder("gpt2"))
    assert in_words.exit_code == 1
    assert "Verdict  refused" in in_words.stdout


def test_nothing_but_json_on_stdout(folder):
    script = "import typer; from skipwise.cli.check import check; typer.run(check)"
    command = [sys.executable, "-c", script, str(folder("mistral")), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found.keys() >= KEYS
    assert found["verdict"] == "repaired"
    assert found["backends"]["sdpa"].keys() == {"visible", "causal", "oracle_error"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-length", "many"], "--target-length 'many': must be a number of tokens"),
        (["--target-length", "100"], "--target-length 100 is below the model's window of 256 tokens"),
        (["--interpolation", "magic"], "--interpolation 'magic': must be one of linear, ntk"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_exit_code_2(demo_base, options, message):
    done = run(demo_base, *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"skipwise: {message}")
    assert done.stderr.count("\n") == 1


def test_a_missing_folder_is_exit_code_2(tmp_path):
    done = run(tmp_path / "nowhere", "--json")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no such checkpoint" in done.stderr
