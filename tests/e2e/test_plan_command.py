"""`skipwise plan` as a user meets it."""

import json
import subprocess
import sys

import pytest
import typer
from transformers import LlamaConfig
from typer.testing import CliRunner

from skipwise.cli.plan import plan

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(plan)


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The config of Llama-2-7B, without weights."""
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "vocab_size": 32_000}
    LlamaConfig(**sizes, num_attention_heads=32, max_position_embeddings=4_096).save_pretrained(folder)
    return folder


def test_the_table_at_80_columns(llama):
    done = run(llama, "--target-length", "128k", "--hardware", "4090")
    assert done.exit_code == 0, done.output
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["Model", "llama,", "6.74", "B", "parameters"]
    assert "Rows      PoSE 4k tokens, full-length 128k" in lines
    table = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    assert table["weights"] == ["25.1", "25.1", "12.7", "12.7", "3.7", "3.7"]
    fits = next(line.split()[1:] for line in lines if line.startswith("fits"))
    assert fits == ["no", "no", "yes", "no", "yes", "no"]
    words = " ".join(lines)
    assert "full, PoSE rows: does not fit on 1 x RTX 4090 (24 GiB): needs" in words
    assert "; with LoRA: " in words
    assert "weights 12.6 + cache 64.0 = 76.6 GiB, does not fit on 1 x RTX 4090" in words


def test_everything_fits_on_enough_gpus(llama):
    done = run(llama, "--target-length", "16k", "--hardware", "h200", "--gpus", "4", "--train-length", "2k")
    assert done.exit_code == 0
    assert "does not fit" not in done.stdout
    assert "4 x H200 (141 GiB), 3.50 dollars a GPU and hour" in done.stdout


def test_json_keys(llama):
    done = run(llama, "--target-length", "32k", "--json", "--price", "2", "--weights", "bfloat16")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found.keys() == {
        *("family", "parameters", "traced", "hardware", "price", "target_length", "train_length"),
        *("steps", "rows_per_step", "runs", "inference"),
    }
    assert (found["target_length"], found["train_length"], found["price"]) == (32_768, 4_096, 2.0)
    assert [(each["method"], each["rows"], each["row_length"]) for each in found["runs"]] == [
        (method, rows, length)
        for method in ("full", "lora", "qlora")
        for rows, length in (("pose", 4_096), ("full-length", 32_768))
    ]
    for each in found["runs"]:
        memory = each["memory"]
        assert memory["total"] == pytest.approx(sum(memory.values()) - memory["total"])
        assert each.keys() >= {"fits", "way_out", "seconds", "cost", "mfu", "settings", "peak_at"}
    assert found["runs"][0]["settings"]["weights"] == "bfloat16"
    assert found["inference"]["cache"] == 2 * 32 * 2 * 4_096 * 32_768


def test_in_a_process_of_its_own_nothing_but_json_is_printed(demo_base):
    script = "import typer; from skipwise.cli.plan import plan; typer.run(plan)"
    command = [sys.executable, "-c", script, str(demo_base), "--target-length", "4k", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(each["fits"] for each in json.loads(done.stdout)["runs"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no target: say --target-length, for example 32k"),
        (["--target-length", "many"], "--target-length 'many': must be a number of tokens"),
        (["--target-length", "2k"], "rows of 4096 tokens are longer than the target of 2048"),
        (["--target-length", "8k", "--hardware", "h20"], "--hardware h20: did you mean h200?"),
        (
            ["--target-length", "8k", "--weights", "int8"],
            "--weights 'int8': must be one of float32, bfloat16",
        ),
        (["--target-length", "8k", "--gpus", "3"], "16 rows in a step cannot be divided over 3 GPUs"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_exit_code_2(llama, options, message):
    done = run(llama, *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"skipwise: {message}")
    assert done.stderr.count("\n") == 1
