"""`skipwise coverage` as a user meets it: table, JSON, figure, and how it ends when something is wrong."""

import json
import os
import resource
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from typer.testing import CliRunner

from skipwise.cli.main import app

LENGTHS = ["--train-length", "2k", "--target-length", "16k"]
SMALL = ["--train-length", "37", "--target-length", "301"]


def run(*arguments):
    return CliRunner().invoke(app, ["coverage", *map(str, arguments)], env={"COLUMNS": "80"})


def test_json_of_the_issue():
    done = run(*LENGTHS, "--sampler", "pose", "--chunks", 2, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["distance"] == list(range(1, 16384))
    probability = dict(zip(document["distance"], document["probability"], strict=True))
    assert probability[1024] == pytest.approx(0.99955, abs=5e-6)
    assert probability[1536] == pytest.approx(0.5529, abs=5e-5)
    assert probability[16000] == pytest.approx(0.0268, abs=5e-5)
    assert document["exact"] is True
    assert set(document["error"]) == {0}
    wait = document["examples_until_seen"]
    assert wait["at_least"] == pytest.approx(14337)
    assert wait["at_most"] == pytest.approx(19864, rel=2e-3)  # 2 ln 2 times the lower bound, nearly
    assert wait["mean"] == pytest.approx(14337, rel=0.01)


def test_it_answers_in_about_a_second_and_without_torch():
    script = f"import sys; sys.path[:0] = {sys.path!r}; from skipwise.cli.main import app\n"
    script += f"try: app(['coverage', *{LENGTHS!r}, '--stride', '999', '--json'])\n"
    script += "finally: print(*sys.modules, file=sys.stderr)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["distance"][:3] == [1, 1000, 1999]
    assert not {"torch", "transformers", "datasets", "matplotlib", "scipy"} & set(done.stderr.split())
    assert after.ru_utime - before.ru_utime < 3  # seconds of the processor; 0.5 where it was written


def test_several_samplers_are_a_list_each_once():
    done = run(
        *SMALL,
        *("--sampler", "pose", "--sampler", "contiguous", "--sampler", "pose:0.8,contiguous:0.2"),
        *("--chunks", 2, "--chunks", 3, "--draws", 500, "--json"),
    )
    documents = json.loads(done.stdout)
    assert [each["sampler"] for each in documents] == [
        "PoSE (2 chunks)",
        "PoSE (3 chunks)",
        "Contiguous",
        "80 % PoSE, 20 % Contiguous (2 chunks)",
        "80 % PoSE, 20 % Contiguous (3 chunks)",
    ]
    assert [each["exact"] for each in documents] == [True, False, True, True, False]
    assert all(len(each["probability"]) == len(each["distance"]) == 300 for each in documents)
    pose, _, contiguous, mixed, _ = (each["probability"] for each in documents)
    assert mixed == pytest.approx(
        [0.8 * a + 0.2 * b for a, b in zip(pose, contiguous, strict=True)], abs=1e-12
    )
    assert contiguous[35:38] == [1, 0, 0]
    assert documents[2]["examples_until_seen"]["never"] is True


@pytest.mark.parametrize("sampler", ["pose", "balanced", "cream", "randpos", "contiguous", "full-length"])
def test_every_sampler_has_a_table(sampler):
    done = run(*SMALL, "--sampler", sampler, "--draws", 500, "--times", 2)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "37 (train length)" in done.stdout
    assert "were seen twice" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_times():
    wait = json.loads(run(*SMALL, "--times", 3, "--json").stdout)["examples_until_seen"]
    assert wait["times"] == 3
    assert wait["at_least"] == pytest.approx(3 * 265)


def test_draws_and_seed_of_the_estimate():
    def probability(draws, seed):
        done = run(*SMALL, "--chunks", 3, "--draws", draws, "--seed", seed, "--json")
        return json.loads(done.stdout)

    assert probability(500, 1) == probability(500, 1)
    assert probability(500, 1)["probability"] != probability(500, 2)["probability"]
    assert max(probability(8000, 1)["error"]) == pytest.approx(max(probability(500, 1)["error"]) / 4, rel=0.1)


@pytest.mark.parametrize("name", ["new folder/coverage.png", "coverage.svg", "COVERAGE.PNG"])
def test_a_figure_of_several(tmp_path, name):
    path = tmp_path / name
    done = run(*SMALL, "--sampler", "pose", "--sampler", "balanced", "--figure", path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"Figure: {path}" in done.stdout
    content = path.read_bytes()
    assert len(content) > 10_000
    if path.suffix == ".svg":
        assert ET.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
    else:
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert content.endswith(b"IEND\xaeB`\x82")
    assert [each for each in path.parent.iterdir() if each.is_file()] == [path]  # nothing left half written


def test_a_figure_says_nothing_in_the_json(tmp_path):
    done = run(*SMALL, "--json", "--figure", tmp_path / "a.png")
    assert json.loads(done.stdout)["sampler"] == "PoSE (2 chunks)"
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no --train-length: say"),
        (["--train-length", "2k"], "no --target-length: say"),
        (
            ["--train-length", "2q", "--target-length", "16k"],
            "--train-length '2q': must be a number of tokens",
        ),
        (["--train-length", "2k", "--target-length", "-1"], "--target-length '-1': must be a number"),
        (["--train-length", "1", "--target-length", "1"], "--target-length 1: must be at least 2"),
        (["--train-length", "0", "--target-length", "9"], "--train-length '0': must be a number of tokens"),
        (
            ["--train-length", "9", "--target-length", "8"],
            "target_length = 8: must be at least train_length = 9",
        ),
        ([*SMALL, "--sampler", "rope"], "sampler = 'rope': must be one of pose"),
        ([*SMALL, "--sampler", "pose:0.8,contiguous:0.1"], "must sum to 1"),
        ([*SMALL, "--sampler", "pose:most"], "must be written as pose:0.8,contiguous:0.2"),
        ([*SMALL, "--chunks", "38"], "chunks = 38: must be from 1 to train_length = 37"),
        ([*SMALL, "--figure", "coverage.pdf"], "--figure coverage.pdf: must end in .png or .svg"),
        (
            [
                *SMALL,
                *["--draws", "100", "--figure", "a.png"],
                *(f"--chunks={number}" for number in range(1, 9)),
            ],
            "8 samplers in one figure: at most 7",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("skipwise: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
