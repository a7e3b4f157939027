"""`skipwise demo`, once, and the figures it is there to show."""

import os
import re
import subprocess
import sys

import pytest

from skipwise.scores import Scores

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LENGTHS = (256, 512, 1024, 2048, 4096)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "skipwise", "demo", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def value(demo):
    scores = [score for score in Scores.read(demo).scores if score.depth is None]
    return {(score.model, score.task, score.length): score.value for score in scores}


def test_the_untouched_model_finds_the_key_in_its_window_only(value):
    assert value["untouched", "passkey", 256] >= 0.95
    assert all(value["untouched", "passkey", length] <= 0.05 for length in LENGTHS[1:])


def test_the_extended_model_finds_the_key_at_every_length(value):
    found = {length: value["pose", "passkey", length] for length in LENGTHS}
    assert min(found.values()) >= 0.90, found


def test_the_extended_model_reads_long_text_no_worse_than_short(value):
    last = value["pose", "perplexity_last_quarter", 4096]
    assert last <= value["pose", "perplexity", 256]


def test_the_short_window_is_kept(value):
    assert value["pose", "perplexity", 256] <= 1.03 * value["untouched", "perplexity", 256]


@pytest.mark.parametrize("task", ["passkey", "perplexity", "perplexity_last_quarter"])
def test_the_control_stands_beside_it(value, task):
    for model in ("untouched", "interpolated", "contiguous", "pose"):
        assert all((model, task, length) in value for length in LENGTHS)


def test_the_checkpoint_loads_in_stock_transformers(demo):
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokens = AutoTokenizer.from_pretrained(sys.argv[1])('def main():', return_tensors='pt')\n"
        "model.generate(**tokens, max_new_tokens=3)\n"
        "print(model.config.max_position_embeddings, 'skipwise' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(demo / "checkpoint")], capture_output=True, text=True
    )
    assert done.stdout.split() == ["4096", "False"], done.stderr


def test_the_report_stands_alone(demo):
    page = (demo / "report.html").read_text()
    assert "PoSE" in page
    loaded = re.findall(
        r"""(?:\bsrc|\bhref|\burl|@import|\bsrcset)\s*[=(]?\s*["']?\s*(\w+://[^"')\s]+)""", page
    )
    assert loaded == []
