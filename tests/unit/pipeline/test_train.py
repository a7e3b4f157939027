"""`train`: a stock checkpoint without a judgement, from which `extend` goes on."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from skipwise import processes
from skipwise.config import make_recipe
from skipwise.errors import InputError
from skipwise.pipeline import extend, run, train


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(8):
        lines = [f"def function_{number}_{line}(x):\n    return x + {line}\n" for line in range(90)]
        (folder / f"{number}.txt").write_text("".join(lines))
    return folder


def recipe_of(demo_base, text, **training):
    return make_recipe(
        {
            "model": str(demo_base),
            "target_length": 1024,
            "data": {"files": [str(text)]},
            "training": {"steps": 4, "rows_per_step": 2, "learning_rate": 1e-2, "report_to": [], **training},
            "evaluation": {"lengths": [256, 1024], "documents": 2, "trials": 2},
        }
    )


def test_adapters_come_out_as_stock_weights(demo_base, text, tmp_path):
    adapter = {"rank": 3, "embeddings": True, "norms": True}
    looks = {"every": 2, "trials": 1, "length": 512}
    trackers = {"report_to": ["tensorboard"]}
    recipe = recipe_of(demo_base, text, adapter=adapter, save_every=2, retrieval=looks, **trackers)
    checkpoint = train(recipe, tmp_path / "run", command="skipwise train", say=lambda _: None)
    assert checkpoint == tmp_path / "run" / "checkpoint"
    stock, trained = (load_file(folder / "model.safetensors") for folder in (demo_base, checkpoint))
    assert trained.keys() == stock.keys()
    changed = {name for name in stock if not torch.equal(stock[name].to(trained[name].dtype), trained[name])}
    assert changed == set(stock)  # linear layers, embeddings and norms
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.config.max_position_embeddings == 1024
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [line["step"] for line in record["training"]["pose"]] == [1, 2, 3, 4]
    assert record["recipe"]["training"]["adapter"]["rank"] == 3
    assert record["data"]["checkpoint kept (PoSE)"] in ("step 2", "step 4")
    kept = json.loads((tmp_path / "run" / "train" / "pose.json").read_text())
    assert [line["step"] for line in kept["retrieval"]] == [2, 4]
    assert not (tmp_path / "run" / "scores.json").exists()
    left = tmp_path / "run" / "train" / "pose"
    assert len((left / "metrics.jsonl").read_text().splitlines()) == 6
    assert list(left.rglob("events.out.tfevents.*"))
    assert not list(left.glob("checkpoint-*"))


def test_parts_that_are_not_trained_stay_and_queries_hold_the_attention_factor(demo_base, text, tmp_path):
    options = {"rope_theta": 4e5, "attention_factor": 1.25}
    recipe = recipe_of(demo_base, text, only=["k_proj"]).model_copy(
        update={"interpolation": "abf", "interpolation_options": options}
    )
    checkpoint = train(recipe, tmp_path / "run", command="skipwise train", say=lambda _: None)
    stock, trained = (load_file(folder / "model.safetensors") for folder in (demo_base, checkpoint))
    for name, before in stock.items():
        after = trained[name].float()
        if "k_proj" in name:
            assert not torch.equal(after, before.float()), name
        else:
            factor = 1.25**2 if "q_proj" in name else 1.0
            torch.testing.assert_close(after, factor * before.float(), rtol=1e-2, atol=0)  # rounded once
    rope = AutoModelForCausalLM.from_pretrained(checkpoint).config.rope_parameters
    assert rope == {"rope_type": "default", "rope_theta": 4e5}


def test_the_untrained_model_is_judged_with_its_attention_factor(demo_base, text, tmp_path):
    recipe = recipe_of(demo_base, text).model_copy(
        update={
            "interpolation": "ntk",
            "interpolation_options": {"attention_factor": 1.25},
        }
    )
    base = run.find_base(recipe)
    untouched, interpolated, _ = run.variants(recipe, base, tmp_path)
    weights = [
        run._open(recipe, base, each, tmp_path).model.model.layers[0].self_attn.q_proj.weight
        for each in (untouched, interpolated)
    ]
    torch.testing.assert_close(weights[1], 1.25**2 * weights[0])


def test_extend_goes_on_from_what_train_made(demo_base, text, tmp_path, monkeypatch):
    recipe = recipe_of(demo_base, text)
    checkpoint = train(recipe, tmp_path / "run", command="skipwise train", say=lambda _: None)
    before = (checkpoint / "model.safetensors").read_bytes()
    monkeypatch.setattr("skipwise.pipeline.training._train", None)
    extend(recipe, tmp_path / "run", command="skipwise extend", say=lambda _: None)
    assert (checkpoint / "model.safetensors").read_bytes() == before
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["scores"]
    assert {score["model"] for score in scores} == {"untouched", "interpolated", "pose"}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["documents held out"] == 2  # as they were set aside before the training


def test_train_takes_text_too_short_to_judge_on(demo_base, tmp_path):
    (tmp_path / "short.txt").write_text("def f(x):\n    return x\n" * 60)
    recipe = recipe_of(demo_base, tmp_path / "short.txt", steps=1)
    train(recipe, tmp_path / "run", command="skipwise train", say=lambda _: None)
    with pytest.raises(InputError, match="too little text"):
        extend(recipe, tmp_path / "run", command="skipwise extend", say=lambda _: None)


def test_a_comparison_is_not_for_several_processes(demo_base, text, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(InputError, match="start skipwise train with the launcher, then the same"):
        extend(recipe_of(demo_base, text), tmp_path / "run", command="", say=lambda _: None)


def test_a_hint_at_gpus_that_stay_idle(demo_base, text, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "idle_gpus", lambda: "this machine has 8 GPUs")
    said = []
    recipe = recipe_of(demo_base, text, steps=1)
    train(recipe, tmp_path / "run", command="skipwise train", say=said.append)
    assert said[0] == "this machine has 8 GPUs"
