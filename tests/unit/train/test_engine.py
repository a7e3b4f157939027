import json

import numpy as np
import pytest
import torch

from skipwise.config import TrainingRecipe
from skipwise.data.rows import Rows
from skipwise.data.skips import PoSE
from skipwise.errors import RunError
from skipwise.train import engine
from skipwise.train.engine import train
from skipwise.train.progress import read_metrics


class Counting:
    """Passages of consecutive numbers: a text that a tiny model learns in a few steps."""

    def __len__(self):
        return 5

    def draw(self, epoch, example, rng):
        return (np.arange(40) + example * 7) % 97


class PlugPulledError(Exception):
    """Ends a run in the middle, as a lost machine would."""


class FailingRows(Rows):
    """Rows up to ``last``, then nothing but an error."""

    last = 0

    def __getitem__(self, index):
        if index > self.last:
            raise PlugPulledError
        return super().__getitem__(index)


def make_recipe(**changes):
    return TrainingRecipe(
        **{"steps": 8, "rows_per_step": 4, "micro_batch": 2, "learning_rate": 3e-3, "warmup_steps": 2}
        | changes
    )


def make_rows(recipe, kind=Rows):
    return kind(Counting(), PoSE(16, 64), count=recipe.steps * recipe.rows_per_step, seed=3)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_falls_and_every_step_is_written_down(make_model, tmp_path):
    recipe = make_recipe(steps=30)
    model = make_model()
    before = weights(model)
    result = train(model, make_rows(recipe), recipe, tmp_path, seed=0)
    assert not same(before, weights(model))
    curve = result.curve
    assert [line["step"] for line in curve] == list(range(1, 31))
    assert all(set(line) == {"step", "loss", "learning_rate", "grad_norm"} for line in curve)
    written = read_metrics(tmp_path / "metrics.jsonl")
    assert curve == [{key: line[key] for key in curve[0]} for line in written]
    assert "tokens_per_second" not in written[0]  # the first step warms up
    assert all(line["tokens_per_second"] > 0 for line in written[1:])
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
    assert result.tokens == 30 * 4 * 16
    assert result.seconds > 0


def test_the_rate_warms_up_then_falls(make_model, tmp_path):
    recipe = make_recipe(steps=6)
    rates = [
        line["learning_rate"]
        for line in train(make_model(), make_rows(recipe), recipe, tmp_path, seed=0).curve
    ]
    assert max(rates) == pytest.approx(3e-3)
    assert rates[0] < max(rates) > rates[-1]


def test_micro_batches_add_up_to_one_step(make_model, tmp_path):
    found = []
    for micro_batch in (1, 4):
        recipe = make_recipe(steps=2, micro_batch=micro_batch)
        model = make_model()
        losses = train(model, make_rows(recipe), recipe, tmp_path / str(micro_batch), seed=0).curve
        found.append((losses, model.lm_head.weight))
    assert found[0][0][0]["loss"] == pytest.approx(found[1][0][0]["loss"], rel=1e-4)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-3)


def test_the_rows_reach_the_model_with_skips_and_mask(make_model, tmp_path):
    seen = []
    model = make_model()

    def note(module, _, arguments):
        if torch.is_grad_enabled():  # not the probes
            seen.append(arguments)

    model.register_forward_pre_hook(note, with_kwargs=True)
    recipe = make_recipe(steps=1)
    rows = make_rows(recipe)
    train(model, rows, recipe, tmp_path, seed=0)
    positions = torch.cat([arguments["position_ids"] for arguments in seen])
    assert positions.tolist() == [rows[index].position_ids.tolist() for index in range(4)]
    assert all(arguments["attention_mask"].all() for arguments in seen)


def test_a_resumed_run_is_the_uninterrupted_run(make_model, tmp_path):
    recipe = make_recipe(save_every=3)
    whole = make_model()
    expected = train(whole, make_rows(recipe), recipe, tmp_path / "whole", seed=0)

    rows = make_rows(recipe, FailingRows)
    rows.last = (
        5 * 4
    )  # in step 6: steps 4 and 5 are written down, and done again from the checkpoint of step 3
    with pytest.raises(PlugPulledError):
        train(make_model(), rows, recipe, tmp_path / "cut", seed=0)
    assert (tmp_path / "cut" / "checkpoint-3").is_dir()
    assert not (tmp_path / "cut" / "checkpoint-6").exists()
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) > 3
    (tmp_path / "cut" / "metrics.jsonl").write_text("".join(lines) + lines[-1][:9])  # a torn last line

    model = make_model(seed=1)  # its weights come from the checkpoint
    result = train(model, make_rows(recipe), recipe, tmp_path / "cut", seed=0)
    assert same(weights(model), weights(whole))
    assert result.curve == expected.curve


def test_a_finished_run_is_not_trained_again(make_model, tmp_path):
    recipe = make_recipe(steps=3, save_every=3)
    model = make_model()
    train(model, make_rows(recipe), recipe, tmp_path, seed=0)
    rows = make_rows(recipe, FailingRows)
    rows.last = -1
    again = make_model()
    train(again, make_rows(recipe), recipe, tmp_path, seed=0)
    assert same(weights(again), weights(model))


def test_a_loss_that_is_no_number_stops_the_run(make_model, tmp_path):
    recipe = make_recipe(steps=6)
    model = make_model()
    calls = []

    def spoil(module, arguments, output):
        calls.extend([1] * torch.is_grad_enabled())  # not the probes
        return output * float("nan") if len(calls) > 4 else output  # two forward passes a step

    model.lm_head.register_forward_hook(spoil)
    with pytest.raises(RunError, match=r"^loss is nan at step 3: lower training\.learning_rate \(now"):
        train(model, make_rows(recipe), recipe, tmp_path, seed=0)
    assert len(calls) <= 6
    kept = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept == [1, 2]


def test_nothing_but_the_progress_line_is_printed(make_model, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)  # as the command line has it
    recipe = make_recipe(steps=2, save_every=1)
    train(make_model(), make_rows(recipe), recipe, tmp_path, seed=0, title="PoSE")
    printed = capfd.readouterr()
    assert printed.out == ""
    assert [line.split()[0] for line in printed.err.splitlines() if line.strip()] == ["PoSE"]
    assert "2/2" in printed.err


@pytest.mark.parametrize("failing", [False, True])
def test_the_progress_line_is_put_away(make_model, tmp_path, monkeypatch, failing):
    """A live line that is left behind hides the cursor of the terminal."""
    made = []

    class Watched(engine.ProgressLine):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(engine, "ProgressLine", Watched)
    recipe = make_recipe(steps=2)
    rows = make_rows(recipe, FailingRows)
    rows.last = 3 if failing else 99
    try:
        train(make_model(), rows, recipe, tmp_path, seed=0)
    except PlugPulledError:
        assert failing
    assert [line.progress.live.is_started for line in made] == [False]


def test_a_bfloat16_run_gives_back_a_float32_model(make_model, tmp_path):
    """Accelerate's autocast would otherwise stay around what is exported and evaluated."""
    recipe = make_recipe(steps=2, precision="bfloat16")
    model = make_model()
    train(model, make_rows(recipe), recipe, tmp_path, seed=0)
    fresh = make_model(seed=1)
    fresh.load_state_dict(model.state_dict())
    tokens = torch.arange(31)[None]
    with torch.inference_mode():
        expected, found = (each.eval()(tokens).logits for each in (fresh, model))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_bfloat16_is_used_when_asked_for(make_model, tmp_path):
    curves = []
    for precision in ("float32", "bfloat16", "auto"):
        recipe = make_recipe(steps=2, precision=precision)
        curves.append(train(make_model(), make_rows(recipe), recipe, tmp_path / precision, seed=0).curve)
    assert curves[0] == curves[2]
    assert curves[0][0]["loss"] != curves[1][0]["loss"]
    assert curves[0][0]["loss"] == pytest.approx(curves[1][0]["loss"], rel=0.02)


def test_the_checkpoint_that_finds_most_is_kept(make_model, tmp_path):
    looks = {2: 0.25, 4: 0.75, 6: 0.75, 8: 0.5}
    found = iter(looks.values())
    seen = []

    def retrieval(model):
        assert not model.training
        seen.append(weights(model))
        return next(found)

    recipe = make_recipe(save_every=2, retrieval={"every": 2})
    model = make_model()
    result = train(model, make_rows(recipe), recipe, tmp_path, seed=0, retrieval=retrieval)
    assert result.retrieval == [{"step": step, "eval_retrieval": value} for step, value in looks.items()]
    assert result.kept_step == 6  # the later of equals
    assert same(weights(model), seen[2])
    assert not same(weights(model), seen[3])
    assert [line["step"] for line in result.curve] == list(range(1, 9))


def test_the_last_checkpoint_is_kept_on_request(make_model, tmp_path):
    seen = []

    def retrieval(model):
        seen.append(weights(model))
        return 1.0 / len(seen)

    recipe = make_recipe(steps=4, save_every=4, retrieval={"every": 2, "keep_best": False})
    model = make_model()
    result = train(model, make_rows(recipe), recipe, tmp_path, seed=0, retrieval=retrieval)
    assert (len(seen), result.kept_step) == (2, 4)
    assert same(weights(model), seen[1])
