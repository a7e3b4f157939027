"""Memory and time of trainings, against sums done by hand."""

from dataclasses import replace

import pytest
from transformers import LlamaConfig

from skipwise.errors import InputError
from skipwise.models.size import Attention, Cached, model_size
from skipwise.plan import GIB, make_plan, usable
from skipwise.plan.hardware import HARDWARE, find_hardware
from skipwise.plan.memory import (
    NF4,
    Settings,
    _liger_chunk,
    _loss,
    inference_memory,
    trained_parameters,
    training_memory,
)
from skipwise.plan.speed import attention_flops, matrix_flops, model_flops, step_seconds

LLAMA_2_7B = {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "vocab_size": 32_000}


@pytest.fixture(scope="module")
def llama():
    return model_size(LlamaConfig(**LLAMA_2_7B, num_attention_heads=32))


def settings(**given):
    return Settings(**{"row_length": 2_048} | given)


def at_rest(memory):
    return memory.weights, memory.gradients, memory.optimizer


def test_what_is_alive_throughout(llama):
    n = llama.parameters
    assert n == 6_738_415_616
    assert at_rest(training_memory(llama, settings())) == (4 * n, 4 * n, 8 * n)
    assert at_rest(training_memory(llama, settings(weights="bfloat16"))) == (2 * n, 2 * n, 4 * n)
    eight = training_memory(llama, settings(weights="bfloat16", optimizer="adamw-8bit"))
    assert at_rest(eight) == pytest.approx((2 * n, 2 * n, 2 * n * (1 + 1 / 64)))
    lora = 16 * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11_008))
    assert trained_parameters(llama, settings(method="lora")) == lora == 39_976_960
    small = training_memory(llama, settings(method="lora"))
    assert at_rest(small) == (2 * n + 4 * lora, 4 * lora, 8 * lora)
    outside = 2 * 32_000 * 4096 + 65 * 4096
    smaller = training_memory(llama, settings(method="qlora"))
    assert smaller.weights == pytest.approx(NF4 * (n - outside) + 2 * outside + 4 * lora)
    assert pytest.approx(0.5159, abs=1e-4) == NF4


def test_gradients_wait_only_where_an_optimizer_step_has_several_passes(llama):
    given = settings(micro_batch=4)
    several, one = training_memory(llama, given), training_memory(llama, replace(given, accumulates=False))
    assert (several.gradients, one.gradients) == (4 * llama.parameters, 0)
    assert one.total < several.total - 3 * llama.parameters


def test_whole_logits_take_twelve_bytes_a_token_and_word(llama):
    found = training_memory(llama, settings(weights="bfloat16", loss="whole", micro_batch=8))
    assert found.moment == "backward"
    assert found.loss == 12 * 8 * 2_048 * 32_000
    assert found.activations == llama.kept_liger["bfloat16"].everything * 8 * 2_048
    stock = training_memory(llama, settings(weights="bfloat16", loss="whole", micro_batch=8, liger=False))
    assert stock.activations == llama.kept["bfloat16"].everything * 8 * 2_048


def test_optimizers_that_copy_weights(llama):
    given = settings(weights="bfloat16", row_length=16, optimizer="adamw-8bit")
    found = training_memory(llama, given)
    assert (found.moment, found.temporary) == ("update", 8 * llama.largest_matrix)
    rounded = training_memory(llama, replace(given, optimizer="adamw"))
    assert (rounded.moment, rounded.temporary) == ("update", 32 * 2**24)


def test_chunked_logits_do_not_grow_with_the_row(llama):
    for backward in (False, True):
        given = settings(loss="chunked", method="lora", micro_batch=8)
        gradients = 2 * 8 * 2_048 * 4096
        assert _loss(llama, given, backward=backward) == 12 * 1_024 * 32_000 + gradients
    found = training_memory(llama, given).total
    assert found < training_memory(llama, replace(given, loss="whole")).total


def test_ligers_own_example_of_its_chunks(llama):
    assert _liger_chunk(llama, 4 * 4_096) == 2_048
    assert _liger_chunk(llama, 5_000) == 1_024  # an eighth is 625
    assert _liger_chunk(llama, 1) == 1


def test_checkpointing_keeps_one_input_a_layer(llama):
    given = settings(weights="bfloat16", micro_batch=8)
    without = training_memory(llama, given)
    found = training_memory(llama, replace(given, gradient_checkpointing=True))
    inputs = 8 * 2_048 * 32 * 2 * 4096
    assert found.activations == pytest.approx(inputs, rel=0.1)
    assert found.total < without.total / 2


def test_windows_keep_their_mask(llama):
    layers = tuple(replace(each, window=4_096) for each in llama.attention)
    windowed = replace(llama, attention=layers)
    given = settings(weights="bfloat16", row_length=16_384)
    more = training_memory(windowed, given).activations - training_memory(llama, given).activations
    assert more == 3 * 16_384**2


def test_gpus_divide_weights_gradients_and_moments(llama):
    one, eight = (training_memory(llama, settings(gpus=gpus)) for gpus in (1, 8))
    assert [8 * each for each in at_rest(eight)] == list(at_rest(one))
    assert eight.activations == one.activations
    assert eight.total < one.total / 4


def test_the_total_is_the_sum_of_the_parts(llama):
    found = training_memory(llama, settings())
    parts = found.weights, found.gradients, found.optimizer, found.activations, found.loss, found.temporary
    assert found.total == sum(parts)


@pytest.mark.parametrize(
    "less",
    [
        {"micro_batch": 1},
        {"gradient_checkpointing": True},
        {"weights": "bfloat16"},
        {"optimizer": "adamw-8bit"},
        {"method": "lora"},
        {"method": "qlora"},
        {"gpus": 2},
        {"row_length": 1_000},
    ],
)
def test_what_a_user_is_told_to_change_needs_less(llama, less):
    given = settings(micro_batch=3)
    assert training_memory(llama, replace(given, **less)).total < training_memory(llama, given).total


def test_the_cache_by_hand(llama):
    found = inference_memory(llama, 131_072)
    assert found.cache == 2 * 32 * 2 * 32 * 128 * 131_072 == 64 * GIB
    assert found.weights == 2 * llama.parameters
    windowed = replace(llama, cache=(Cached(100, None), Cached(100, 4_096)))
    assert inference_memory(windowed, 131_072).cache == 2 * 100 * (131_072 + 4_096)
    assert inference_memory(windowed, 1_000).cache == 2 * 100 * 2_000


def test_operations_of_matrices_by_hand(llama):
    met = llama.parameters - llama.embedding - 65 * 4096
    head, tokens = llama.head, 2_048
    adapters = 39_976_960
    counts = {
        ("full", False): 6 * met,
        ("full", True): 8 * met - 2 * head,
        ("lora", False): 4 * met + 6 * adapters,
        ("lora", True): 6 * met - 2 * head + 8 * adapters,
    }
    for (method, again), each in counts.items():
        given = settings(method=method, gradient_checkpointing=again)
        assert matrix_flops(llama, given) == pytest.approx(each * tokens, rel=1e-5), (method, again)


def test_operations_of_attention_pair_by_pair(llama):
    length, window, width = 24, 7, 10
    pairs = sum(1 for query in range(length) for key in range(length) if key <= query)
    seen = sum(1 for query in range(length) for key in range(length) if 0 <= query - key < window)
    given = settings(row_length=length)
    full = replace(llama, attention=(Attention(width, None),))
    cut = replace(llama, attention=(Attention(width, window),))
    assert attention_flops(full, given) == pytest.approx(3.5 * 2 * width * pairs, rel=1 / length)
    assert attention_flops(cut, given) == 3.5 * 2 * width * length**2  # the mask hides, and saves nothing
    matrices = matrix_flops(llama, given)
    assert model_flops(full, given) - matrices == pytest.approx(3 * 2 * width * pairs, rel=1 / length)
    assert model_flops(cut, given) - matrices == pytest.approx(3 * 2 * width * seen, rel=1 / window)


def test_time_grows_with_work_and_shrinks_with_speed(llama):
    h200 = HARDWARE["h200"]
    base = step_seconds(llama, settings(), h200, 4)
    assert step_seconds(llama, settings(), h200, 8) > 1.8 * base
    assert step_seconds(llama, settings(gradient_checkpointing=True), h200, 4) > 1.2 * base
    assert step_seconds(llama, settings(method="lora"), h200, 4) < base
    assert step_seconds(llama, settings(), HARDWARE["4090"], 4) > 3 * base
    assert step_seconds(llama, settings(row_length=131_072), h200, 4) > 2 * 64 * base


def test_a_small_models_step_takes_as_long_as_launching_it():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 97}
    small = [model_size(LlamaConfig(**sizes, num_hidden_layers=each)) for each in (3, 6)]
    times = [step_seconds(each, settings(row_length=128), HARDWARE["h200"], 1) for each in small]
    assert times[1] == pytest.approx(2 * times[0], rel=0.01)


def test_every_gpu_is_faster_than_its_price_suggests_nothing_of():
    for name, each in HARDWARE.items():
        assert each.name == name == name.lower()
        assert 50 < each.tflops < 5_000
        assert 16 <= each.memory <= 300
        assert 200 <= each.bandwidth <= 10_000
        assert 0 < each.price < 20
        assert each.source
    assert find_hardware("H200") is HARDWARE["h200"]
    with pytest.raises(InputError, match=r"--hardware h20: did you mean h200\? known are b200, h200"):
        find_hardware("h20")


def planned(llama, gpu="h200", **given):
    options = {key: given.pop(key) for key in ("steps", "rows_per_step", "price") if key in given}
    return make_plan(
        llama,
        target_length=131_072,
        train_length=2_048,
        hardware=HARDWARE[gpu],
        settings=settings(**given),
        **options,
    )


def test_checkpointing_is_planned_only_where_it_is_needed(llama):
    found = {(each.settings.method, each.rows): each for each in planned(llama).runs}
    assert len(found) == 6
    assert not found["lora", "pose"].settings.gradient_checkpointing
    assert found["lora", "full-length"].settings.gradient_checkpointing
    assert found["lora", "full-length"].settings.row_length == 131_072
    assert all(each.fits == (each.memory.total <= usable(HARDWARE["h200"])) for each in found.values())


def test_the_way_out_really_fits(llama):
    found = {(each.settings.method, each.rows): each for each in planned(llama, "4090").runs}
    assert found["full", "pose"].way_out.startswith("LoRA: ")
    lora = replace(found["full", "pose"].settings, method="lora")
    needs = training_memory(llama, lora).total
    assert needs <= usable(HARDWARE["4090"])
    assert found["full", "pose"].way_out == f"LoRA: {needs / GIB:.1f} GiB"
    assert found["qlora", "full-length"].way_out is None  # no number of GPUs divides a row
    assert found["qlora", "pose"].fits
    lower = {(each.settings.method, each.rows): each for each in planned(llama, "4090", micro_batch=16).runs}
    assert lower["qlora", "pose"].fits or "micro_batch 1" in lower["qlora", "pose"].way_out


def test_price_and_steps(llama):
    base, twice = planned(llama, steps=100), planned(llama, steps=200, price=10.0)
    assert base.price == HARDWARE["h200"].price
    for one, two in zip(base.runs, twice.runs, strict=True):
        assert two.seconds == pytest.approx(2 * one.seconds)
        assert two.cost == pytest.approx(two.seconds / 3_600 * 10)


def test_rows_that_cannot_be_divided(llama):
    with pytest.raises(InputError, match="16 rows in a step cannot be divided over 3 GPUs"):
        planned(llama, gpus=3)


def test_pose_costs_what_its_rows_cost(llama):
    found = {(each.settings.method, each.rows): each for each in planned(llama, "b200").runs}
    ratio = found["lora", "full-length"].seconds / found["lora", "pose"].seconds
    assert ratio > 64  # so many times the tokens, and their attention
    assert 0.2 < found["lora", "full-length"].mfu < 0.6
