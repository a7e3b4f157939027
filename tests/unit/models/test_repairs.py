import copy
import pickle

import pytest
import torch
from torch.overrides import TorchFunctionMode

from skipwise.errors import RunError
from skipwise.models.load import find_checkpoint, load_model
from skipwise.models.probes import check
from skipwise.models.repairs import keep_angles_exact, repair
from skipwise.rope import extend_rope

TARGET = 131_072
GEMMA3 = {
    "head_dim": 16,
    "num_key_value_heads": 1,
    "sliding_window": 13,
    "layer_types": ["sliding_attention", "full_attention"],
}


def buffers(model):
    return {name: each for name, each in model.named_buffers() if name.endswith("inv_freq")}


@pytest.fixture(params=["llama", "gemma3_text"])
def model(request, make_model):
    """One with a single set of frequencies, one with a set for each layer type."""
    return make_model(request.param, **(GEMMA3 if request.param == "gemma3_text" else {}))


def test_rounded_frequencies_are_found_and_computed_again(model):
    exact = {name: each.clone() for name, each in buffers(model).items()}
    model.bfloat16().float()
    with pytest.raises(RunError, match="rotary angles at the target are off"):
        check(model, TARGET)
    assert "rotary frequencies had been rounded" in repair(model)[0]
    assert exact.keys() == buffers(model).keys()
    for name, each in buffers(model).items():
        assert torch.equal(each, exact[name]), name
    check(model, TARGET)


@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.half(),
        lambda model: model.to("cpu", torch.float16),
        lambda model: model.bfloat16().float(),
        lambda model: copy.deepcopy(model).bfloat16(),
        lambda model: pickle.loads(pickle.dumps(model)).bfloat16(),
    ],
    ids=["to", "half", "device-and-dtype", "there-and-back", "copy", "pickle"],
)
def test_later_casts_leave_them_alone(model, cast):
    assert not keep_angles_exact(model)
    exact = {name: each.clone() for name, each in buffers(model).items()}
    found = buffers(cast(model))
    assert found.keys() == exact.keys()
    for name, each in found.items():
        assert torch.equal(each, exact[name]), name


def test_frequencies_of_another_dtype_are_float32_again(model):
    repair(model.double())
    assert {each.dtype for each in buffers(model).values()} == {torch.float32}


def test_weights_are_cast_all_the_same(model):
    keep_angles_exact(model)
    assert {each.dtype for each in model.bfloat16().parameters()} == {torch.bfloat16}


def test_nothing_is_said_about_a_sound_model_and_nothing_changes(make_model):
    model, tokens = make_model(), torch.arange(20)[None]
    before = model(tokens).logits
    assert repair(model) == repair(model) == ()
    assert torch.equal(model(tokens).logits, before)


def test_the_long_set_of_longrope_is_no_damage(make_model):
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, **factors}
    model = make_model(rope_parameters=rope)
    model(torch.arange(40)[None])
    long_set = model.model.rotary_emb.inv_freq.clone()
    assert long_set[-1] < model.model.rotary_emb.original_inv_freq[-1]
    assert repair(model) == ()
    assert torch.equal(model.model.rotary_emb.inv_freq, long_set)


class Tf32(TorchFunctionMode):
    """What a GPU does to a matmul of float32 under TF32: factors with ten bits behind the leading one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__):
            args = [
                ((each.float().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) for each in args
            ]
        return func(*args, **(kwargs or {}))


def rotary_by_matmul(rotary, x, position_ids):
    """The forward pass of `transformers` 5.17, whatever is installed."""
    angles = (rotary.inv_freq[None, :, None] @ position_ids[:, None, :].float()).transpose(1, 2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def test_tf32_does_not_touch_the_angles(make_model):
    model = make_model()
    rotary = model.model.rotary_emb
    rotary.forward = lambda x, position_ids: rotary_by_matmul(rotary, x, position_ids)
    check(model, TARGET)
    with Tf32(), pytest.raises(RunError, match="rotary angles at the target are off"):
        check(model, TARGET)
    keep_angles_exact(model)
    with Tf32():
        check(model, TARGET)


def test_other_products_of_matrices_stay_what_they_are(make_model):
    model, seen = make_model(), []
    rotary = model.model.rotary_emb

    def forward(x, position_ids):
        seen.append(torch.ones(3, 2) @ torch.ones(2, 4))
        return rotary_by_matmul(rotary, x, position_ids)

    rotary.forward = forward
    keep_angles_exact(model)
    model(torch.arange(5)[None])
    assert torch.equal(seen[0], torch.full((3, 4), 2.0))


def test_models_are_repaired_as_they_are_loaded(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    checkpoint = find_checkpoint(str(tmp_path))
    model = load_model(checkpoint, extend_rope(make_model().config, TARGET, "yarn")).bfloat16()
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    check(model, TARGET)
