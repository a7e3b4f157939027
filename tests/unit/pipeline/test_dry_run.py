"""The dry run: the recipe's own settings on a tiny model, and what this machine cannot try by name."""

import re
import shutil
from operator import attrgetter
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from skipwise.config import make_recipe
from skipwise.errors import InputError, RunError
from skipwise.models.probes import ProbeReport
from skipwise.pipeline import dry_run as module
from skipwise.pipeline.dry_run import ROW_LENGTH, dry_run
from skipwise.train import engine

DEEPSPEED = Path(__file__).parents[3] / "recipes" / "deepspeed-zero3.json"


@pytest.fixture
def trainings(monkeypatch):
    """What the engine is given, while it trains: model, rows, recipe."""
    given, train = [], engine.train

    def note(model, rows, recipe, *args, **options):
        given.append((model, rows, recipe))
        return train(model, rows, recipe, *args, **options)

    monkeypatch.setattr(engine, "train", note)
    return given


def small(demo_base, **values):
    return make_recipe({"model": str(demo_base), "target_length": 1000, **values})


def test_the_recipes_own_settings_are_tried(demo_base, trainings, tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 40)
    (tmp_path / "much").mkdir()
    (tmp_path / "much" / "b.md").write_text("efgh" * 400)
    training = {
        **{"steps": 70, "rows_per_step": 9, "micro_batch": 3, "learning_rate": 3e-3, "weight_decay": 0.1},
        **{"schedule": "linear", "warmup_steps": 7, "gradient_checkpointing": True, "logits_chunk": 100},
    }
    recipe = small(
        demo_base,
        train_length=100,
        sampler={"name": "pose:0.5,contiguous:0.5", "chunks": 3, "headroom": 50},
        training=training,
        data={"files": [str(tmp_path / "a.txt"), str(tmp_path / "much")]},
    )
    found = dry_run(recipe)
    assert (found.not_tried, found.row_length, found.tokens) == ((), 100, 70 * 9 * 100)
    assert found.sampler == "50 % PoSE, 50 % Contiguous"
    ((model, rows, tried),) = trainings
    assert (tried.steps, tried.rows_per_step, tried.micro_batch, tried.warmup_steps) == (2, 2, 1, 1)
    for key in ("learning_rate", "weight_decay", "schedule", "gradient_checkpointing", "logits_chunk"):
        assert getattr(tried, key) == training[key]
    assert model.config.max_position_embeddings == 1000
    assert model.config.rope_parameters["factor"] == 1000 / 256
    assert [len(rows), rows.sampler.row_length] == [4, 100]
    assert [each.target_length for each in rows.sampler.samplers] == [1050, 1000]
    decode = module.byte_tokenizer().decode
    assert {each for row in rows for each in decode(row.token_ids)} <= set("abcdefgh\n")
    text, unread = module._some_text(recipe, tmp_path / "cache")
    assert (text, unread) == ("abcd" * 40 + "\n" + "efgh" * 400, [])


def test_every_part_of_the_text_is_tried(demo_base, trainings, tmp_path):
    (tmp_path / "long.txt").write_text("abcd" * 40)
    (tmp_path / "short.jsonl").write_text('{"said": "wxyz"}\n')
    beside = [
        {"files": [str(tmp_path / "long.txt")], "share": 0.05, "content": "aligned"},
        {"files": [str(tmp_path / "short.jsonl"), "no.txt"], "share": 0.25, "text_column": "said"}
        | {"sampler": "contiguous", "pack": True, "taught": True},
    ]
    files = {"files": [str(tmp_path / "long.txt")], "beside": beside}
    recipe = small(demo_base, train_length=100, data=files)
    found = dry_run(recipe)
    long, short = (str(tmp_path / name) for name in ("long.txt", "short.jsonl"))
    assert found.parts == (
        f"70 % PoSE: {long}",
        f"5 % PoSE: {long}",
        f"25 % Contiguous, packed, taught: {short}, no.txt",
    )
    assert found.sampler == "75 % PoSE, 25 % Contiguous"
    assert found.not_tried == ("text: no.txt: no such file or folder",)
    ((_, rows, tried),) = trainings
    assert (tried.rows_per_step, [len(part) for part in rows.parts]) == (3, [2, 2, 2])
    assert [row.taught for row in rows] == [False, False, True] * 2
    assert [part.sampler.passage_length for part in rows.parts] == [(100, 1000), (1000, 1000), (100, 100)]
    assert "wxyz" in module._some_text(recipe, tmp_path / "cache")[0]


def test_a_part_of_full_length_rows_is_made_short_too(demo_base, trainings):
    beside = [{"files": ["no.txt"], "share": 0.5, "sampler": "full-length", "pack": True}]
    found = dry_run(small(demo_base, sampler={"name": "full-length"}, data={"beside": beside}))
    assert (found.row_length, found.sampler) == (1000, "Full-length")
    assert {part.sampler.row_length for part in trainings[0][1].parts} == {ROW_LENGTH}


def test_packing_needs_a_tokenizer_with_an_end(demo_base, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(demo_base, model)
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(model)
    beside = {"beside": [{"files": ["no.txt"], "share": 0.5, "pack": True}]}
    with pytest.raises(InputError, match=r"^pack: the tokenizer has no end-of-text token"):
        dry_run(small(model, data=beside))


@pytest.mark.parametrize(
    ("values", "changed", "reason"),
    [
        ({"sharding": "fsdp2"}, {"sharding": "none"}, "sharding: one process has nothing to divide"),
        ({"compile": True}, {"compile": False}, "torch.compile: takes longer than a dry run"),
        ({"liger": "on"}, {"liger": "off"}, "Liger kernels: no GPU here"),
        ({"optimizer": "adamw-8bit"}, {"optimizer": "adamw"}, "8-bit AdamW: no GPU here"),
        ({"weights": "bfloat16", "micro_batch": "auto"}, {"weights": "bfloat16", "micro_batch": "auto"}, ""),
        ({"report_to": ["no_such_tracker"]}, {"report_to": ()}, "no_such_tracker is not installed"),
        ({"report_to": ["none"], "workers": 3}, {"report_to": (), "workers": 0}, ""),
        (
            {"deepspeed": str(DEEPSPEED)},
            {"deepspeed": None},
            "DeepSpeed: one process has nothing to divide",
        ),
        (
            {"adapter": {"quantize": "8bit", "rank": 3}},
            {"adapter.quantize": "none", "adapter.rank": 3},
            "weights in 8bit: no GPU here",
        ),
    ],
)
def test_what_this_machine_cannot_try_is_replaced_and_named(demo_base, monkeypatch, values, changed, reason):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe = small(demo_base, training=values)
    tried, reasons = module._in_small(recipe, module.find_base(recipe))
    training = make_recipe(tried).training
    assert {key: attrgetter(key)(training) for key in changed} == changed
    assert len(reasons) == bool(reason)
    assert "".join(reasons).startswith(reason)


def test_what_is_here_is_not_replaced(demo_base, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(module, "find_spec", lambda package: package)
    monkeypatch.setattr(module, "available_backends", lambda: ("sdpa", "flash_attention_2"))
    training = {"liger": "on", "optimizer": "adamw-8bit", "adapter": {"quantize": "4bit"}}
    recipe = small(demo_base, training=training, attention="flash_attention_2")
    tried, reasons = module._in_small(recipe, module.find_base(recipe))
    again = make_recipe(tried)
    assert reasons == []
    assert (again.training.liger, again.training.optimizer) == ("on", "adamw-8bit")
    assert (again.training.adapter.quantize, again.attention) == ("4bit", "flash_attention_2")


def test_adapters_without_their_package(demo_base, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda package: None)
    recipe = small(demo_base, training={"adapter": {"quantize": "8bit"}, "report_to": []})
    tried, reasons = module._in_small(recipe, module.find_base(recipe))
    assert (tried["training"]["adapter"], reasons) == (None, ["adapters: peft is not installed"])


def test_flash_attention_and_full_length_rows(demo_base, trainings, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = dry_run(small(demo_base, attention="flash_attention_2", sampler={"name": "full-length"}))
    assert found.row_length == 1000
    assert trainings[0][1].sampler.row_length == ROW_LENGTH
    assert found.not_tried == (
        "text: data.files names none",
        "full-length rows: short contiguous ones instead",
        "attention flash_attention_2: not on this machine",
    )


def test_text_for_rows_whose_passages_are_as_long_as_the_target(demo_base, trainings, tmp_path):
    (tmp_path / "short.txt").write_text("a few words")
    recipe = small(
        demo_base,
        target_length=3000,
        sampler={"content": "aligned", "headroom": 200},
        data={"files": [str(tmp_path)]},
    )
    assert dry_run(recipe).not_tried == ()
    assert trainings[0][1].sampler.passage_length == (3200, 3200)


def test_text_that_would_take_long_to_read_is_left_out(demo_base, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a" * 3_000_000)
    monkeypatch.setattr(module, "_READ_AT_MOST", 2_000_000)
    recipe = small(demo_base, data={"files": [str(tmp_path), "owner/name"]})
    text, unread = module._some_text(recipe, tmp_path / "cache")
    assert text.startswith("0 1 2 ")
    assert unread == [
        f"text: {tmp_path}: the smallest file has 2 MB, which are not read",
        "text: owner/name is a dataset of the hub, which is not loaded",
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"target_length": 256}, "there is nothing to extend"),
        ({"train_length": 300}, "is larger than the model's window of 256 tokens"),
        ({"sampler": {"chunks": 300}}, "chunks = 300: must be from 1 to train_length = 256"),
        ({"interpolation_options": {"rope_theta": 1e6}}, "interpolation 'yarn' has no option 'rope_theta'"),
        ({"training": {"deepspeed": "nowhere.json"}}, "training.deepspeed = nowhere.json: no such file"),
        ({"model": "nowhere"}, "nowhere: no such checkpoint folder or file"),
    ],
)
def test_what_the_run_would_refuse_is_refused(demo_base, values, words):
    with pytest.raises(InputError, match=re.escape(words)):
        dry_run(make_recipe({"model": str(demo_base), "target_length": 1000, **values}))


def test_a_probe_that_does_not_hold_fails_the_dry_run(demo_base, monkeypatch):
    monkeypatch.setattr(ProbeReport, "failures", lambda self: ["it is cut at the skip"])
    with pytest.raises(RunError, match="it is cut at the skip"):
        dry_run(small(demo_base))


def test_a_family_without_a_tiny_form_is_one_line(demo_base, monkeypatch):
    def fail(config, folder):
        raise InputError("no tiny model of llama can be made here (ValueError: odd): use --full")

    monkeypatch.setattr(module, "save_tiny", fail)
    with pytest.raises(InputError, match=re.escape("(ValueError: odd): a dry run is not possible")):
        dry_run(small(demo_base))


def test_a_family_without_rope_is_refused(tmp_path):
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"^gpt2"):
        dry_run(make_recipe({"model": str(tmp_path / "gpt2"), "target_length": "4k"}))
