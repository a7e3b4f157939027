"""The README's Python example and its commands are what they say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs_and_gives_a_loss(tmp_path, monkeypatch):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2_048,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    names = {"passages": [np.arange(3_000) % 64, np.arange(2_048) % 64]}
    exec(example, names)
    assert names["config"].max_position_embeddings == 131_072
    assert max(row.position_ids.max() for row in names["rows"]) > 2_048
    assert torch.isfinite(names["loss"])


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^    make (\w+)", README, flags=re.MULTILINE))))
def test_every_make_command_of_the_readme_exists(target):
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_every_option_of_the_readme_exists():
    from skipwise.cli.main import app

    options = {name for command in app.registered_commands for name in _option_names(command.callback)} | {
        "--help"
    }
    named = set(re.findall(r"--[a-z][a-z-]+", README))
    assert named <= options, named - options


def _option_names(callback) -> set[str]:
    return {"--" + name.replace("_", "-") for name in callback.__annotations__}


def test_every_file_the_readme_links_to_exists():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (Path(__file__).parents[2] / link).exists(), link
