"""Recipes: lengths as people write them, every mistake in one line, and a file that reads back the same."""

from fractions import Fraction

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from skipwise.config import (
    Recipe,
    format_length,
    load_recipe,
    make_recipe,
    parse_length,
    recipe_keys,
    recipe_schema,
    save_recipe,
)
from skipwise.errors import InputError

LEAST = {"model": "some/model", "target_length": 4096}
TAUGHT = {"files": ["a"], "share": 0.1, "sampler": "contiguous", "taught": True}


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        (4097, 4097),
        ("4097", 4097),
        ("128k", 131_072),
        ("3K", 3072),
        ("1M", 1_048_576),
        ("2m", 2_097_152),
        (" 16k ", 16_384),
        ("0", 0),
    ],
)
def test_lengths_as_people_write_them(written, tokens):
    assert parse_length(written) == tokens


@pytest.mark.parametrize("written", ["", "k", "1.5k", "-3", "4kk", "4 k", "12g", "0x10", None, 2.5, [1]])
def test_what_is_no_length_is_left_to_the_caller(written):
    assert parse_length(written) is written


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (0, "0"),
        (300, "300"),
        (1023, "1023"),
        (1024, "1k"),
        (1536, "1536"),
        (131_072, "128k"),
        (2**20 + 1024, "1025k"),
        (3 * 2**20, "3M"),
    ],
)
def test_lengths_for_people(tokens, text):
    assert format_length(tokens) == text


@given(st.one_of(st.integers(0, 2**40), st.integers(0, 2**20).map(lambda n: n * 1024)))
def test_formatting_is_the_inverse_of_parsing(tokens):
    assert parse_length(format_length(tokens)) == tokens


def test_lengths_in_a_recipe():
    recipe = make_recipe(
        {"model": "m", "target_length": "128k", "train_length": "2k", "evaluation": {"lengths": ["1k", 300]}}
    )
    assert (recipe.target_length, recipe.train_length, recipe.evaluation.lengths) == (
        131_072,
        2048,
        (1024, 300),
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"modle": "m"}, ("modle = 'm': no such key, did you mean model?",)),
        ({"sampler": {"chunk": 3}}, ("sampler.chunk = 3: no such key, did you mean sampler.chunks?",)),
        ({"training": {"chunks": 3}}, ("training.chunks = 3: no such key, did you mean sampler.chunks?",)),
        ({"steps": 3}, ("steps = 3: no such key, did you mean training.steps?",)),
        ({"qqqq": 3}, ("qqqq = 3: no such key",)),
        ({"training": {"micro_batch": "x"}}, ("training.micro_batch = 'x': must be a number of rows",)),
        (
            {"training": {"gradient_checkpointing": "maybe"}},
            ("training.gradient_checkpointing = 'maybe': must be true, false or auto",),
        ),
        ({"training": {"micro_batch": 0}}, ("training.micro_batch = 0: must be a number of rows",)),
        ({"training": {"sharding": "fsdp2", "deepspeed": "z.json"}}, ("choose one",)),
        (
            {"training": {"save_every": 20, "retrieval": {"every": 30}}},
            ("training.retrieval.every = 30: must be a multiple of training.save_every = 20",),
        ),
        ({"training": {"steps": 0}}, ("training.steps = 0", "greater than or equal to 1")),
        ({"target_length": "1.5k"}, ("target_length = '1.5k'", "valid integer")),
        ({"target_length": 0}, ("target_length = 0", "greater than or equal to 1")),
        ({"evaluation": {"lengths": ["1k", "x"]}}, ("evaluation.lengths.1 = 'x'", "valid integer")),
        ({"interpolation": "dynamic"}, ("interpolation = 'dynamic'", "'linear', 'ntk', 'abf', 'yarn'")),
        (
            {"data": {"beside": [{"files": ["a"], "share": 0.7}, {"files": ["b"], "share": 0.3}]}},
            ("data.beside: the shares sum to 1, which leaves no rows to data.files: lower one",),
        ),
        ({"data": {"beside": [{"files": ["a"], "share": 0}]}}, ("data.beside.0.share = 0", "greater than 0")),
        ({"data": {"beside": [{"files": ["a"]}]}}, ("data.beside.0.share: Field required",)),
        ({"data": {"beside": [{"files": [], "share": 0.1}]}}, ("data.beside.0.files = []", "at least 1")),
        (
            {"data": {"beside": [{"files": ["a"], "share": 0.1, "sampler": "poes"}]}},
            ("data.beside.0.sampler = 'poes': must be one of pose",),
        ),
        (
            {"data": {"beside": [{"files": ["a"], "share": 0.1, "packed": True}]}},
            ("data.beside.0.packed = True: no such key, did you mean data.beside.pack?",),
        ),
        (
            {"data": {"beside": [TAUGHT, TAUGHT | {"sampler": None}]}},
            ("data.beside.1: taught rows are short ones: set its sampler to contiguous",),
        ),
        (
            {"data": {"beside": [TAUGHT | {"sampler": "contiguous:0.5,pose:0.5"}]}},
            ("data.beside.0: taught rows are short ones: set its sampler to contiguous",),
        ),
        (
            {"sampler": {"name": "full-length"}, "data": {"beside": [TAUGHT]}},
            ("data.beside: taught rows are short ones, and beside full-length rows all are: leave it out",),
        ),
        (
            {"training": {"sharding": "fsdp2"}, "data": {"beside": [TAUGHT]}},
            ("data.beside: taught needs the untouched model whole: leave it out with shards",),
        ),
        (
            {"training": {"deepspeed": "zero.json"}, "data": {"beside": [TAUGHT]}},
            ("data.beside: taught needs the untouched model whole",),
        ),
        ({"data": {"fiels": ["a"]}}, ("data.fiels = ['a']: no such key, did you mean data.files?",)),
        (
            {"training": {"rows_per_step": 7, "micro_batch": 3}},
            ("training.rows_per_step = 7: must be a multiple of training.micro_batch = 3",),
        ),
    ],
)
def test_a_mistake_names_the_key_the_value_and_the_rule(values, words):
    with pytest.raises(InputError) as error:
        make_recipe(LEAST | values)
    line = str(error.value)
    assert line.startswith("the recipe does not hold: ")
    assert "\n" not in line
    for word in words:
        assert word in line
    assert line.count(";") == 0  # one mistake, reported once


def test_all_mistakes_in_one_line():
    values = {
        "target_length": "long\nlong",
        "smapler": {},
        "sampler": {"name": "poes", "chunks": 0},
        "training": {"learning_rate": -1.0},
        "seed": -1,
    }
    with pytest.raises(InputError) as error:
        make_recipe(values)
    line = str(error.value)
    assert "\n" not in line
    mistakes = line.removeprefix("the recipe does not hold: ").split("; ")
    named = {mistake.split(":")[0].split(" = ")[0] for mistake in mistakes}
    assert named == {
        "model",
        "target_length",
        "smapler",
        "sampler.name",
        "sampler.chunks",
        "training.learning_rate",
        "seed",
    }
    assert len(mistakes) == 7


def test_a_missing_key_is_named_without_the_rest_of_the_recipe():
    with pytest.raises(InputError) as error:
        make_recipe({"target_length": 4096})
    assert str(error.value) == "the recipe does not hold: model: Field required"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("full-length", "full-length"),
        ("pose:0.8,contiguous:0.2", "pose:0.8,contiguous:0.2"),
        ("pose:.8, contiguous: 0.2", "pose:.8,contiguous:0.2"),
        ("cream:1", "cream:1"),
    ],
)
def test_samplers_and_mixtures_by_name(written, name):
    assert make_recipe(LEAST | {"sampler": {"name": written}}).sampler.name == name


@pytest.mark.parametrize(
    "name",
    ["prose", "", "pose:", "pose:0.8,contiguous", "pose:0.8;cream:0.2", "pose:nan", "../pose:1", "pose:1\n"],
)
def test_what_names_no_sampler(name):
    with pytest.raises(InputError) as error:
        make_recipe(LEAST | {"sampler": {"name": name}})
    names = "pose, randpos, contiguous, full-length, cream, balanced"
    rule = f"must be one of {names}, or a mixture such as pose:0.8,contiguous:0.2"
    assert str(error.value) == f"the recipe does not hold: sampler.name = {name!r}: {rule}"


def test_taught_parts_that_can_be():
    two = [TAUGHT, TAUGHT | {"sampler": None}, TAUGHT | {"sampler": "pose", "taught": False}]
    recipe = make_recipe(LEAST | {"sampler": {"name": "contiguous"}, "data": {"beside": two}})
    assert [each.taught for each in recipe.data.beside] == [True, True, False]
    assert make_recipe(LEAST | {"data": {"beside": [TAUGHT]}}).sampler.name == "pose"


def test_shares_are_exact():
    beside = [{"files": ["a"], "share": share} for share in (0.1, 0.2, 1e-5)]
    shares = make_recipe(LEAST | {"data": {"beside": beside}}).data.shares
    assert shares == (Fraction(69_999, 100_000), Fraction(1, 10), Fraction(1, 5), Fraction(1, 100_000))
    assert make_recipe(LEAST).data.shares == (1,)


@pytest.mark.parametrize(("rows", "micro"), [(1, 1), (7, 7), (12, 3)])
def test_batches_that_divide(rows, micro):
    training = make_recipe(LEAST | {"training": {"rows_per_step": rows, "micro_batch": micro}}).training
    assert training.rows_per_step % training.micro_batch == 0


def test_seeds_that_every_library_takes():
    # transformers.set_seed seeds numpy's legacy generator, which takes 32 bits.
    assert make_recipe(LEAST | {"seed": 2**32 - 1}).seed == 2**32 - 1
    with pytest.raises(InputError, match="seed = 4294967296"):
        make_recipe(LEAST | {"seed": 2**32})


FULL = LEAST | {
    "train_length": 300,
    "interpolation": "ntk",
    "interpolation_options": {"beta_fast": 8.5},
    "data": {
        **{"files": ["a b.txt", "größe: #1.jsonl", "no"], "text_column": "1e3"},
        "beside": [{"files": ["c"], "share": 0.25, "sampler": "pose:0.5, cream:0.5", "pack": True}],
    },
    "sampler": {"name": "randpos", "chunks": 3, "content": "aligned", "headroom": 7},
    "training": {"learning_rate": 1e-07, "rows_per_step": 9, "micro_batch": 3, "precision": "float32"},
    "evaluation": {"lengths": ["1k", 77], "trials": 3},
    "control": True,
    "seed": 12345,
}


@pytest.mark.parametrize("values", [LEAST, FULL], ids=["least", "full"])
def test_a_saved_recipe_reads_back_the_same(tmp_path, values):
    recipe = make_recipe(values)
    path = tmp_path / "recipe.yaml"
    path.write_text("what was there", encoding="utf-8")
    save_recipe(recipe, path)
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert make_recipe(loaded) == recipe
    assert loaded == recipe.model_dump(mode="json")
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]
    assert set(loaded) == set(Recipe.model_fields)  # every default spelled out


def test_a_recipe_cannot_be_changed():
    recipe = make_recipe(LEAST)
    for section, field in ((recipe, "seed"), (recipe.training, "steps"), (recipe.sampler, "chunks")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(section, field, 3)


def test_a_recipe_file_with_overrides(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ntarget_length: 16k\ntraining: {steps: 7, micro_batch: 2}\n", encoding="utf-8")
    overrides = ["training.steps=9", "training.learning_rate=1e-4", "sampler.name=randpos", "model=a=b"]
    recipe = load_recipe(path, [*overrides, "evaluation.lengths=[1k, 77]", "training.adapter={rank: 3}"])
    assert (recipe.training.steps, recipe.training.micro_batch) == (9, 2)
    assert recipe.training.learning_rate == 1e-4
    assert (recipe.sampler.name, recipe.model) == ("randpos", "a=b")
    assert recipe.evaluation.lengths == (1024, 77)
    assert recipe.training.adapter is not None
    assert recipe.training.adapter.rank == 3


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("a: [", (), "is no YAML file"),
        ("- a", (), "is no recipe: it holds list"),
        ("", (), "is no recipe: it holds NoneType"),
        ("model: m", ("steps",), "'steps': say key=value"),
        ("model: m", ("model.x=3",), "'model.x=3': model is no section"),
        ("model: m\ntarget_length: 4", ("training.stesp=3",), "did you mean training.steps?"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, overrides, words):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_recipe(path, overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "r.yaml")


def test_every_field_is_described():
    schema = recipe_schema()
    sections = {"Recipe": schema, **schema["$defs"]}
    for title, section in sections.items():
        for name, field in section["properties"].items():
            assert field.get("description") or "$ref" in field, f"{title}.{name}"
    assert "training.retrieval.every" in set(recipe_keys())
