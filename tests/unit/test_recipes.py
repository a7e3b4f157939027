"""The shipped recipes: each parses, says what it is, and passes its dry run on its model's true config."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from transformers import AutoConfig

from skipwise.config import Recipe, load_recipe, recipe_keys
from skipwise.pipeline.dry_run import dry_run
from skipwise.rope import extend_rope, frequencies, model_window

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NAMES = [path.stem for path in RECIPES]
PAPER = [name for name in NAMES if re.match("llama-7b|llama2|gpt-j|baichuan2", name)]

LLAMA_7B = {
    **{"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"vocab_size": 32_000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
}
MODELS = {
    "huggyllama/llama-7b": ("llama", LLAMA_7B),
    "meta-llama/Llama-2-7b-hf": ("llama", LLAMA_7B | {"max_position_embeddings": 4096}),
    "Baichuan2-7B-Base-Llama": (
        "llama",
        LLAMA_7B | {"vocab_size": 125_696, "max_position_embeddings": 4096},
    ),
    "EleutherAI/gpt-j-6b": (
        "gptj",
        {"n_embd": 4096, "n_layer": 28, "n_head": 16, "n_positions": 2048, "rotary_dim": 64},
    ),
    "meta-llama/Llama-3.1-8B": (
        "llama",
        LLAMA_7B
        | {"intermediate_size": 14_336, "num_key_value_heads": 8, "vocab_size": 128_256}
        | {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-5}
        | {
            "rope_parameters": {
                **{"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "original_max_position_embeddings": 8192,
            }
        },
    ),
    "Qwen/Qwen3-8B": (
        "qwen3",
        {
            **{"hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36, "head_dim": 128},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151_936},
            **{"max_position_embeddings": 40_960, "tie_word_embeddings": False},
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        "llama",
        {
            **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152},
            **{"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192},
            **{"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
            "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        },
    ),
}
"""The configs of the models that the recipes name, as their publishers give them."""


def recipe_file(name):
    return ROOT / "recipes" / f"{name}.yaml"


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """A folder with nothing but the config for each model, by its name in the recipes."""
    folder = tmp_path_factory.mktemp("configs")
    for number, (family, values) in enumerate(MODELS.values()):
        AutoConfig.for_model(family, **values).save_pretrained(folder / str(number))
    return {name: folder / str(number) for number, name in enumerate(MODELS)}


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("recipe_table", ROOT / "tools" / "recipe_table.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_models_of_the_paper_and_current_ones_are_all_there():
    assert {load_recipe(path).model for path in RECIPES} == set(MODELS)
    targets = {(recipe.model, recipe.target_length) for recipe in map(load_recipe, RECIPES)}
    llama = {("huggyllama/llama-7b", length * 1024) for length in (16, 32, 96, 128)}
    others = ("meta-llama/Llama-2-7b-hf", "EleutherAI/gpt-j-6b", "Baichuan2-7B-Base-Llama")
    assert targets >= llama | {(name, 16_384) for name in others}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is(name):
    text = recipe_file(name).read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    header = text[: text.index("\nmodel:")]
    for word in ("Settings: ", "measured", "Hardware: ", f"skipwise train recipes/{name}.yaml "):
        assert word in header
    assert max(map(len, text.splitlines())) <= 110
    assert f"]({name}.yaml)" in (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    needs_torchrun = load_recipe(recipe_file(name)).training.sharding != "none"
    assert ("torchrun" in header) == needs_torchrun


@pytest.mark.parametrize("name", PAPER)
def test_the_settings_of_the_paper(name):
    recipe = load_recipe(recipe_file(name))
    window = MODELS[recipe.model][1].get("max_position_embeddings", 2048)
    assert recipe.train_length == window
    assert (recipe.sampler.name, recipe.sampler.chunks, recipe.sampler.content) == ("pose", 2, "uniform")
    training = recipe.training
    assert (training.steps, training.rows_per_step, training.warmup_steps) == (1000, 64, 10)
    assert (training.learning_rate, training.schedule, training.weight_decay) == (2e-5, "linear", 0.0)
    assert training.rows_per_step % (8 * training.micro_batch) == 0  # over its 8 GPUs


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn", "pose-yarn"])
@pytest.mark.parametrize("name", PAPER)
def test_every_method_of_the_paper_fits_its_models(name, method, configs):
    recipe = load_recipe(recipe_file(name), [f"interpolation={method}"])
    config = AutoConfig.from_pretrained(configs[recipe.model])
    extended = extend_rope(config, recipe.target_length, recipe.interpolation)
    assert model_window(extended) == recipe.target_length
    assert frequencies(extended)[0][-1] < frequencies(config)[0][-1]


@pytest.mark.parametrize("name", NAMES)
def test_the_dry_run_of_a_recipe(name, configs):
    model = load_recipe(recipe_file(name)).model
    recipe = load_recipe(recipe_file(name), [f"model={configs[model]}"])
    found = dry_run(recipe)
    assert found.family == MODELS[model][0]
    assert found.row_length == recipe.train_length <= found.window < recipe.target_length
    assert found.tokens == recipe.training.steps * recipe.training.rows_per_step * recipe.train_length
    assert len(found.loss) == 2
    assert "text: YOUR-TEXT: no such file or folder" in found.not_tried
    assert f"the tokenizer: {configs[model]} has none that can be loaded" in found.not_tried
    sharded = [reason for reason in found.not_tried if reason.startswith("sharding")]
    assert bool(sharded) == (recipe.training.sharding == "fsdp2")


def test_the_page_and_the_schema_are_current(tool):
    again = "run `python tools/recipe_table.py`"
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), again
    assert json.loads(tool.SCHEMA.read_text(encoding="utf-8")) == json.loads(tool.schema()), again


def test_the_page_has_every_key(tool):
    page = tool.page()
    for key in recipe_keys():
        section, _, name = key.rpartition(".")
        assert f"| `{name}` |" in page or f"## `{key}`" in page
        assert not section or f"## `{section}`" in page


def test_values_in_words(tool):
    rows = {key: tool.row(key, field) for key, field in Recipe.model_fields.items() if not tool.inner(field)}
    assert rows["target_length"] == "| `target_length` | tokens, at least 1 | needed | The window wanted. |"
    assert rows["train_length"].startswith("| `train_length` | tokens | empty |")
    assert "| whole number, at least 0, less than 4294967296 | `0` |" in rows["seed"]
