"""The Python examples, commands, options and links of the documentation are what they say."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.main import get_command

import skipwise
from skipwise.cli.main import app

ROOT = Path(__file__).parents[2]
DEMO = Path(skipwise.__file__).parent / "demo" / "demo-base"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("[bde]*/**/*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_of(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_python_example_of_the_readme_runs_and_gives_a_loss(tmp_path, monkeypatch):
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
    (example,) = python_of(ROOT / "README.md")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    names = {"passages": [np.arange(3_000) % 64, np.arange(2_048) % 64]}
    exec(example, names)
    assert names["config"].max_position_embeddings == 131_072
    assert max(row.position_ids.max() for row in names["rows"]) > 2_048
    assert torch.isfinite(names["loss"])


def test_the_python_example_of_the_samplers_page_runs():
    (example,) = python_of(ROOT / "docs" / "samplers.md")
    names = {}
    exec(example, names)
    assert len(names["row"].position_ids) == 2_048


def test_the_python_example_of_the_evaluation_page_runs():
    (example,) = python_of(ROOT / "docs" / "evaluation.md")
    names = {}
    example = example.replace("path/to/model", str(DEMO)).replace('"cuda"', '"cpu"')
    exec(example.replace("[8_192, 131_072]", "[200]").replace("trials=50", "trials=2"), names)
    assert [score.value for score in names["scores"] if score.depth is None] == [1.0]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^    make (\w+)", README, flags=re.MULTILINE))))
def test_every_make_command_of_the_readme_exists(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_exists(page):
    commands = dict(get_command(app).commands)
    commands |= {f"eval {name}": command for name, command in commands.pop("eval").commands.items()}
    options = {
        name: {flag for each in command.params for flag in each.opts} for name, command in commands.items()
    }
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"^    skipwise .*", text, flags=re.MULTILINE):
        _, name, *words = shlex.split(line)
        name = f"{name} {words.pop(0)}" if name == "eval" else name
        used = {word for word in words if word.startswith("--")}
        assert used <= options[name] | {"--help"}, line
    if page.name == "README.md" and page.parent == ROOT:
        ours = re.sub(r"^    torchrun .*", "", text, flags=re.MULTILINE)
        named = set(re.findall(r"--[a-z][a-z-]+", ours))
        assert named <= set().union(*options.values(), {"--help"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_linked_to_exists(page):
    for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
