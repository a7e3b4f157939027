"""`skipwise eval` as a user runs it: tasks that share a folder, interruptions, bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import skipwise
from skipwise.cli.main import app
from skipwise.scores import Scores

ROOT = Path(__file__).parents[2]
DEMO = Path(skipwise.__file__).parent / "demo" / "demo-base"


def start(*arguments, cwd):
    command = [sys.executable, "-m", "skipwise", "eval", *map(str, arguments)]
    variables = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.Popen(
        command, cwd=cwd, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(*arguments, cwd):
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "library.jsonl"
    pieces = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")]
    path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    return path


@pytest.mark.slow
def test_tasks_share_a_folder(tmp_path, text):
    folder = tmp_path / "scores"
    tasks = [
        ("perplexity", "--data", text, "--lengths", "64,256", "--documents", 2),
        ("perplexity", "--data", text, "--lengths", "128", "--stride", "64", "--document-length", "400"),
        ("passkey", "--lengths", "128,256", "--trials", "4", "--seed", "3"),
    ]
    for task in tasks:
        code, out, err = run(task[0], DEMO, *task[1:], "--output", folder, cwd=tmp_path)
        assert code == 0, err
        assert (
            max(len(line) for line in out.splitlines() if not line.startswith(("Scores ", "Report "))) <= 80
        )
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Passkey retrieval" in page
    assert {"passkey_by_length.png", "passkey_by_length.svg"} <= {
        each.name for each in (folder / "figures").iterdir()
    }
    scores = Scores.read(folder)
    assert [each.name for each in scores.subjects] == ["demo-base"]
    assert scores.subjects[0].window == 256
    assert scores.subjects[0].rope_parameters["rope_type"] == "default"
    assert scores.subjects[0].dtype == "float32"
    assert [each.task for each in scores.evaluations] == ["perplexity", "sliding_perplexity", "passkey"]
    assert scores.evaluations[2].seed == 3
    assert scores.evaluations[2].command.startswith("skipwise eval passkey")
    assert {"torch", "transformers", "skipwise"} <= set(scores.evaluations[0].versions)
    found = {(each.task, each.length): each.value for each in scores.scores if each.depth is None}
    assert found["passkey", 256] == 1.0  # the model was trained to find keys within its window
    assert 1 < found["perplexity", 256] < found["perplexity", 64]
    code, out, err = run(*tasks[0][:1], DEMO, *tasks[0][1:], "--output", folder, cwd=tmp_path)
    assert code == 0
    assert Scores.read(folder).scores[0] in scores.scores


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on(tmp_path):
    task = ("passkey", DEMO, "--lengths", "200,256", "--trials", "40", "--output", tmp_path / "run")
    process = start(*task, cwd=tmp_path)
    journal = tmp_path / "run" / "measured" / "demo-base-passkey.jsonl"
    while process.poll() is None and not (journal.is_file() and len(journal.read_text().splitlines()) > 9):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; the same command again goes on from there" in err
    before = journal.read_text().splitlines()
    assert 9 < len(before) < 81
    code, _, err = run(*task, cwd=tmp_path)
    assert code == 0, err
    assert journal.read_text().splitlines()[: len(before)] == before
    assert len(journal.read_text().splitlines()) == 81
    code, _, err = run(*task[:-4], "--trials", "41", *task[-2:], cwd=tmp_path)
    assert code == 2
    assert re.search(
        r"holds results of another setting \(trials was 40, is 41\): choose another --output", err
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("passkey", "/nowhere/model"), "/nowhere/model: no such checkpoint folder or file"),
        (("passkey",), "no model: name a checkpoint, or the address of a server with --base-url"),
        (("passkey", DEMO, "--depth", "deep"), "depth 'deep': must be grid or random"),
        (("passkey", DEMO, "--lengths", "2x"), "--lengths '2x': must be a number of tokens"),
        (("passkey", DEMO, "--lengths", "40"), "a passkey prompt needs 94 tokens with this tokenizer"),
        (("perplexity", DEMO, "--lengths", "64"), "no text: name some with --data"),
        (("perplexity", DEMO, "--data", "/nowhere.txt"), "/nowhere.txt"),
        (("passkey", "--base-url", "http://127.0.0.1:9/v1"), "name the checkpoint that it serves"),
        (("passkey", DEMO, "--tokenizer", "x"), "--tokenizer goes with --base-url"),
        (("passkey", DEMO, "--dtype", "int8"), "--dtype 'int8': must be auto, float32"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("skipwise: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
