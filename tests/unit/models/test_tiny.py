"""Further facts about `tiny` (most are in test_check.py): nothing is shared, no long table is built."""

import importlib

import pytest
from transformers import AutoConfig

from skipwise.errors import InputError
from skipwise.models.tiny import save_tiny, tiny
from skipwise.rope import extend_rope

TARGET = 2**20


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "deepseek_v3", "llama4_text"])
def test_the_small_config_shares_nothing_with_the_one_it_is_made_of(family):
    config = AutoConfig.for_model(family)
    before = config.to_dict()
    small = tiny(config)
    for value in vars(small).values():
        empty(value)
    assert config.to_dict() == before


def empty(value):
    """Take everything out of a list or dict, and out of all that are inside."""
    if isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            empty(inner)
        value.clear()


@pytest.mark.parametrize("family", ["gptj", "codegen"])
def test_no_long_table_is_built(family, tmp_path, monkeypatch):
    """Of a million positions it would take a quarter of a gigabyte in every layer."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    stock, rows = module.create_sinusoidal_positions, []

    def watch(num_pos, dim):
        rows.append(num_pos)
        return stock(num_pos, dim)

    monkeypatch.setattr(module, "create_sinusoidal_positions", watch)
    config = extend_rope(AutoConfig.for_model(family), TARGET, "yarn")
    small = save_tiny(config, tmp_path)
    assert set(rows) == {1}
    assert small.max_position_embeddings == TARGET
    assert small.rope_parameters == config.rope_parameters


def test_a_reason_of_several_lines_becomes_one(tmp_path):
    config = AutoConfig.for_model("bamba")  # whose sizes are tied in a way of its own
    with pytest.raises(InputError, match=r"^no tiny model of bamba [^\n]*Mamba[^\n]*: use --full$"):
        save_tiny(config, tmp_path)
