"""Every causal-LM family of the installed `transformers` has the outcome that `docs/families.md` says."""

import json
from pathlib import Path

import pytest
import survey
import torch
import transformers
from tiny_configs import families
from transformers import AutoModelForCausalLM

from skipwise.data.collate import SkipCollator
from skipwise.export.checkpoint import export_checkpoint
from skipwise.models.probes import probe
from skipwise.rope import extend_rope

DOCS = Path(__file__).parents[2] / "docs"
RECORD = DOCS / f"families-{transformers.__version__}.json"
AGAIN = "run `python tools/family_table.py .oldest` and read what changed in docs/families.md"


@pytest.fixture(scope="module")
def recorded():
    if not RECORD.is_file():
        pytest.skip(f"no table for transformers {transformers.__version__}: both ends of the range have one")
    return json.loads(RECORD.read_text(encoding="utf-8"))["families"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("family", families())
def test_the_outcome_is_the_recorded_one(family, recorded):
    assert survey.outcome(family) == recorded.get(family), AGAIN


def test_the_table_has_these_families_and_none_fails(recorded):
    assert sorted(recorded) == families(), AGAIN
    assert [name for name, each in recorded.items() if each["verdict"] == "fails"] == []


def test_the_page_has_every_recorded_outcome(recorded):
    rows = [line.split(" | ") for line in (DOCS / "families.md").read_text(encoding="utf-8").splitlines()]
    header = next(row for row in rows if row[0] == "| family")
    column = header.index(transformers.__version__)
    shown = {row[0].removeprefix("| "): row[column] for row in rows if len(row) > column}
    assert {name: shown.get(name) for name in recorded} == {
        name: each["verdict"] for name, each in recorded.items()
    }, AGAIN


# The survey itself must be able to fail: what is broken here are the steps it calls, one at a time.


def test_a_window_cut_by_index_fails(monkeypatch):
    def unchecked(config, target, method):
        config = type(config).from_dict(config.to_dict())
        config.max_position_embeddings = target
        return config

    def stock(checkpoint, config, *, attention, gradient_checkpointing=False):
        return AutoModelForCausalLM.from_pretrained(
            checkpoint.name, config=config, attn_implementation=attention, dtype=torch.float32
        )

    monkeypatch.setattr(survey, "extend_rope", unchecked)
    monkeypatch.setattr(survey, "load_model", stock)
    monkeypatch.setattr(survey, "check", lambda model, target, accept_limits: probe(model, target))
    assert survey.outcome("qwen2")["verdict"] == "works"
    assert_fails("qwen2 + windows", "not the long row")


def test_a_scaling_that_is_not_exported_fails(monkeypatch):
    def export(model, tokenizer, folder):
        export_checkpoint(model, tokenizer, folder)
        text = (folder / "config.json").read_text(encoding="utf-8")
        (folder / "config.json").write_text(text.replace('"factor": 4.0', '"factor": 2.0'), encoding="utf-8")

    monkeypatch.setattr(survey, "export_checkpoint", export)
    assert_fails("llama", "not the long row")


def test_a_row_without_its_mask_fails(monkeypatch):
    class WithoutMask(SkipCollator):
        def __call__(self, rows):
            return super().__call__(rows) | {"attention_mask": None}

    monkeypatch.setattr(survey, "SkipCollator", WithoutMask)
    assert_fails("llama", "not the long row")


def test_checkpointing_that_changes_the_loss_fails(monkeypatch):
    load = survey.load_model

    def another_model(checkpoint, config, **options):
        model = load(checkpoint, config, **options)
        if options.get("gradient_checkpointing"):
            model.model.norm.weight.data.mul_(1.1)
        return model

    monkeypatch.setattr(survey, "load_model", another_model)
    assert_fails("llama", "checkpointing changes the losses")


def test_a_scaling_that_the_model_does_not_read_fails(monkeypatch):
    def half(config, target, method):
        extended = extend_rope(config, target, method)
        if method == "ntk":
            extended.layer_rope_theta = config.layer_rope_theta
        return extended

    monkeypatch.setattr(survey, "extend_rope", half)
    assert_fails("granite_swa", "the angles with ntk: the frequencies are not those")


def test_a_hybrid_that_is_not_what_was_exported_fails(monkeypatch):
    def export(model, tokenizer, folder):
        export_checkpoint(model, tokenizer, folder)
        model.model.embedding_norm.weight.data.mul_(1.1)

    assert survey.outcome("lfm2")["verdict"] == "limited"
    monkeypatch.setattr(survey, "export_checkpoint", export)
    assert_fails("lfm2", "a row is not that of the export")


def test_an_error_inside_a_stage_fails_and_a_sentence_of_the_package_refuses(monkeypatch):
    def crash(config, target, method):
        raise IndexError("table\nindex")

    monkeypatch.setattr(survey, "extend_rope", crash)
    assert survey.outcome("llama") == {
        "verdict": "fails",
        "reason": "the extended config: IndexError: table index",
    }
    monkeypatch.setattr(survey, "extend_rope", extend_rope)
    monkeypatch.setattr(survey, "TARGET", 32)
    assert survey.outcome("llama") == {
        "verdict": "refused",
        "reason": "target length 32 is below the model's window of 64 tokens",
    }


def assert_fails(family, words):
    found = survey.outcome(family)
    assert found["verdict"] == "fails"
    assert words in found["reason"]
