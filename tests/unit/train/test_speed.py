"""Tokens a second and MFU, on a clock of our own."""

import pytest

from skipwise.train import planned, speed
from skipwise.train.speed import Speed


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    return now


def test_speed_is_the_mean_of_the_last_ten_steps(clock):
    found = Speed(tokens_per_step=60, flops=(2e9, 4e10))
    assert "tokens_per_second" not in found.read(4)  # the step a run goes on from
    for step in range(5, 25):
        clock[0] += 2.0 if step < 15 else 0.5
        last = found.read(step)
    assert last["tokens_per_second"] == pytest.approx(120.0)
    assert last["mfu"] == pytest.approx(120.0 * 2e9 / 4e10)
    assert "mfu" not in Speed(60).read(1) | Speed(60).read(2)


def test_operations_of_a_token(make_model, monkeypatch):
    from skipwise.config import TrainingRecipe

    model, recipe = make_model(), TrainingRecipe()
    monkeypatch.setattr(planned.torch.cuda, "is_available", lambda: False)
    with monkeypatch.context() as patched:  # it takes seconds, for nothing
        patched.setattr(planned, "model_size", None)
        assert planned.flops(model, recipe, 128) is None
    monkeypatch.setattr(planned.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(planned.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    each, peak = planned.flops(model, recipe, 128)
    assert peak == 989e12
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n)
    config = model.config
    width = config.num_attention_heads * 2 * (config.hidden_size // config.num_attention_heads)
    attention = 3 * 2 * config.num_hidden_layers * width * 128 / 2
    assert each == pytest.approx(6 * matrices + attention, rel=1e-3)
    monkeypatch.setattr(planned.torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert planned.flops(model, recipe, 128) is None
