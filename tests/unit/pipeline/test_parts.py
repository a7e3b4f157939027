"""Several kinds of text in one training: what each variant makes of them, and what the run says."""

import json
import re
from itertools import pairwise

import pytest
import torch
from transformers import AutoTokenizer

from skipwise.config import make_recipe
from skipwise.data.skips import Contiguous, FullLength, PoSE
from skipwise.errors import InputError
from skipwise.pipeline import extend, train
from skipwise.pipeline.base import find_base
from skipwise.pipeline.corpus import read_corpus
from skipwise.pipeline.parts import blend
from skipwise.pipeline.variants import variants
from skipwise.train import engine

ANSWERS = 40


@pytest.fixture
def text(tmp_path):
    """Eight long documents, three long ones of another kind, and forty answers that are short."""
    (tmp_path / "long").mkdir()
    for number in range(8):
        lines = [f"def function_{number}_{line}(x):\n    return x + {line}\n" for line in range(90)]
        (tmp_path / "long" / f"{number}.txt").write_text("".join(lines))
    recall = [{"text": "".join(f"{i}: {i * number}\n" for i in range(300))} for number in range(3)]
    short = [{"said": f"The answer to question {number} is {number * number}."} for number in range(ANSWERS)]
    for name, rows in (("recall", [*recall, {"text": "too short"}]), ("short", short)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe_of(demo_base, text, *, pack=True, sampler="contiguous", taught=False, **values):
    beside = [
        {"files": [str(text / "recall.jsonl")], "share": 0.2},
        {"files": [str(text / "short.jsonl")], "share": 0.3, "text_column": "said"}
        | {"sampler": sampler, "pack": pack, "taught": taught},
    ]
    return make_recipe(
        {
            "model": str(demo_base),
            "target_length": 1024,
            "train_length": 128,
            "data": {"files": [str(text / "long")], "beside": beside},
            "training": {"steps": 4, "rows_per_step": 5, "report_to": []},
            "evaluation": {"lengths": [256], "documents": 2, "trials": 2},
            **values,
        }
    )


def rows_of(recipe, text, number=-1):
    base = find_base(recipe)
    corpus = read_corpus(recipe, base, text / "cache")
    return blend(recipe, corpus.parts, variants(recipe, base, text)[number].samplers)


def test_a_comparison_of_several_kinds_of_text(demo_base, text, tmp_path, monkeypatch):
    given, teachers, train, said = [], [], engine.train, []

    def note(model, rows, *args, teacher, **options):
        given.append(rows)
        teachers.append((teacher.config.max_position_embeddings, model.config.max_position_embeddings))
        assert all(map(torch.equal, teacher.state_dict().values(), model.state_dict().values()))
        return train(model, rows, *args, teacher=teacher, **options)

    monkeypatch.setattr(engine, "train", note)
    recipe = recipe_of(demo_base, text, taught=True, control=True)
    extend(recipe, tmp_path / "run", command="", say=said.append)
    control, wanted = given
    assert [type(part.sampler) for part in wanted.parts] == [PoSE, PoSE, Contiguous]
    assert [type(part.sampler) for part in control.parts] == [Contiguous] * 3
    # 5 rows a step of which 20 % and 30 % are beside: 2.5, 1 and 1.5
    for rows in given:
        assert [len(part) for part in rows.parts] == [10, 4, 6]
        assert len({part.seed for part in rows.parts}) == 3
        assert all(part.seed == part.passages.seed for part in rows.parts)
        assert rows.taught == {2}  # of the control as well
        assert sum(row.taught for row in rows) == 6
    assert teachers == [(256, 1024)] * 2  # the model as it was published, each time
    assert [line for line in said if "training text" in line][3:] == [
        "      training text (data.files, 50 % of the rows, PoSE): 6 documents",
        "      training text (data.beside.0, 20 % of the rows, PoSE): 3 documents; "
        "1 shorter than 128 tokens are left out",
        "      training text (data.beside.1, 30 % of the rows, Contiguous): 40 documents, packed, "
        "taught by the untouched model",
    ]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["training"].keys() == {"contiguous", "pose-contiguous"}
    title = "70 % PoSE, 30 % Contiguous"
    assert record["models"][-1]["title"] == title
    assert record["coverage"]["probability"].keys() == {"Contiguous control", title}
    data = record["data"]
    assert data["documents held out"] == 2  # of the main text
    assert data["data.files: documents in training"] == 6
    assert data["data.beside.0: documents shorter than 128 tokens, dropped"] == 1
    assert data["data.beside.1: documents in training"] == ANSWERS
    assert data["data.beside.1: share of the rows"] == 0.3
    assert data[f"data.beside.1: tokens seen in training ({title})"] == 6 * 128
    assert data[f"tokens seen in training ({title})"] == data["tokens seen in training (Contiguous control)"]
    assert data[f"tokens seen in training ({title})"] == 20 * 128
    tokens = data["data.beside.1: tokens in the training documents"] + ANSWERS
    assert data[f"data.beside.1: passes over the text ({title})"] == round(6 * 128 / tokens, 2)


def test_taught_rows_stay_in_the_window_of_the_untouched_model(demo_base, text):
    longer = {"train_length": 512, "allow_longer_rows": True}
    find_base(make_recipe(recipe_of(demo_base, text).model_dump() | longer))
    recipe = make_recipe(recipe_of(demo_base, text, taught=True).model_dump() | longer)
    with pytest.raises(
        InputError, match=r"^data\.beside: taught rows of 512 tokens .* window of 256 in which"
    ):
        find_base(recipe)


def test_no_teacher_is_loaded_for_rows_that_none_teaches(demo_base, text, tmp_path, monkeypatch):
    monkeypatch.setattr("skipwise.pipeline.training._teacher", None)
    recipe = recipe_of(demo_base, text, training={"steps": 1, "rows_per_step": 3, "report_to": []})
    train(recipe, tmp_path / "run", command="", say=lambda _: None)


def test_packed_rows_hold_whole_short_documents(demo_base, text):
    """Between two ends of text lies one answer, word by word, and in one pass every one of them."""
    rows = rows_of(recipe_of(demo_base, text, training={"steps": 60, "rows_per_step": 1}), text).parts[2]
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    stream = [int(token) for row in rows for token in row.token_ids]
    ends = [i for i, token in enumerate(stream) if token == tokenizer.eos_token_id]
    found = [tokenizer.decode(stream[begin + 1 : end]) for begin, end in pairwise([-1, *ends])]
    one_pass = {f"The answer to question {number} is {number * number}." for number in range(ANSWERS)}
    assert len(found) > ANSWERS
    assert set(found[:ANSWERS]) == one_pass
    assert all(row.position_ids.tolist() == list(range(128)) for row in rows)


def test_full_length_parts_are_packed_or_refused(demo_base, text):
    full = {"name": "full-length"}
    rows = rows_of(make_recipe(recipe_of(demo_base, text).model_dump() | {"sampler": full}), text)
    assert [part.sampler for part in rows.parts] == [FullLength(128, 1024)] * 3
    assert len(rows.parts[2][0].token_ids) == 1024
    with pytest.raises(InputError) as error:
        rows_of(recipe_of(demo_base, text, pack=False), text)
    assert re.fullmatch(
        r"data\.beside\.1: a row needs 128 tokens of one document, and the longest of 40 has \d+: "
        r"add longer ones, or set pack: true",
        str(error.value),
    )


def test_the_main_text_alone_is_named_too(demo_base, text):
    recipe = make_recipe(
        recipe_of(demo_base, text).model_dump()
        | {"sampler": {"name": "full-length"}, "target_length": 65_536, "train_length": 128}
    )
    with pytest.raises(InputError, match=r"data\.files: a row needs 65536 .* has \d+: add longer ones$"):
        rows_of(recipe, text)


@pytest.mark.parametrize(
    ("main", "beside", "name", "control"),
    [
        ("pose", None, "pose", True),
        ("contiguous", None, "contiguous", False),
        ("contiguous", "pose", "contiguous-pose", True),
        ("pose:0.5,cream:0.5", "contiguous", "pose-0.5-cream-0.5-contiguous", True),
        ("full-length", "contiguous", "full-length", True),
    ],
)
def test_names_of_variants_and_the_control(demo_base, tmp_path, main, beside, name, control):
    recipe = recipe_of(demo_base, tmp_path, sampler=beside, control=True)
    recipe = make_recipe(recipe.model_dump() | {"sampler": {"name": main}})
    found = variants(recipe, find_base(recipe), tmp_path)
    names = [each.name for each in found]
    assert names == ["untouched", "interpolated", *(["contiguous"] if control else []), name]
    assert {len(each.samplers) for each in found[2:]} == {3}


def test_rows_of_two_lengths_are_refused(demo_base, tmp_path):
    recipe = recipe_of(demo_base, tmp_path, sampler="full-length")
    with pytest.raises(InputError, match="must have one row length"):
        variants(recipe, find_base(recipe), tmp_path)


def test_the_content_of_a_part(demo_base, tmp_path):
    recipe = recipe_of(demo_base, tmp_path, sampler=None).model_dump()
    recipe["data"]["beside"][0]["content"] = "aligned"
    recipe["sampler"] = {"content": "contiguous", "chunks": 3}
    recipe = make_recipe(recipe)
    samplers = variants(recipe, find_base(recipe), tmp_path)[-1].samplers
    assert [each.content for each in samplers] == ["contiguous", "aligned", "contiguous"]
    assert {each.chunks for each in samplers} == {3}


def test_packing_without_an_end_of_text_is_refused_before_anything_is_read(demo_base, tmp_path):
    recipe = recipe_of(demo_base, tmp_path / "nowhere")
    base = find_base(recipe)
    base.tokenizer.eos_token = None
    with pytest.raises(InputError, match="pack: the tokenizer has no end-of-text token"):
        read_corpus(recipe, base, tmp_path / "cache")
