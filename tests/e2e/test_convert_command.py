"""`skipwise convert` as a user meets it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from skipwise.cli.convert import convert

sys.path.append(str(Path(__file__).parents[1] / "reference"))
facts = importlib.import_module("baichuan2")

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(convert)


@pytest.fixture
def source(tmp_path):
    tensors = facts.make_tensors(facts.CONFIG, torch.bfloat16)
    return facts.write_checkpoint(tmp_path / "source", facts.CONFIG, tensors, layout="bin")


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_it_says_what_it_did_and_what_comes_next(source, tmp_path):
    done = run(source, tmp_path / "out")
    assert (done.exit_code, done.stderr) == (0, "")
    first, second, third = done.stdout.splitlines()
    assert (
        first == "Baichuan2-7B as Llama: W_pack split into q, k and v, its head normalized once and for all."
    )
    assert second == f"{tmp_path / 'out'}: 30 tensors, 68.4 KB in 1 file; no tokenizer: it had none."
    assert third == f"Next: skipwise extend {tmp_path / 'out'} --target-length 16k --data YOUR-TEXT"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_an_error_is_one_line_and_exit_code_2(source, tmp_path):
    facts.write_checkpoint(source, facts.THIRTEEN, facts.make_tensors(facts.THIRTEEN), layout="bin")
    done = run(source, tmp_path / "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"skipwise: {source} is a Baichuan model with ALiBi in place of RoPE")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "nowhere", tmp_path / "out").exit_code == 2


def test_the_command_imports_nothing_heavy_until_it_runs():
    script = f"import sys; sys.path[:0] = {sys.path!r}; import skipwise.cli.convert; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert not {"torch", "transformers", "huggingface_hub", "tokenizers"} & set(done.stdout.split())
