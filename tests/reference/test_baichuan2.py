"""A converted Baichuan checkpoint computes what Baichuan computes, as `baichuan2.py` has it in float64."""

import baichuan2 as facts
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from skipwise.models.convert import convert_checkpoint

TOKENS = [3, 50, 7, 7, 22, 1, 48, 9, 30, 2, 41]
ROUNDING = {torch.float64: 0.0, torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
"""The largest relative error of rounding to each dtype."""


def converted(folder, config, tensors, **layout):
    """The stock model of the converted checkpoint, its weights in float64."""
    source = facts.write_checkpoint(folder / "baichuan", config, tensors, **layout)
    convert_checkpoint(str(source), folder / "llama", max_shard_size="20KB")
    return AutoModelForCausalLM.from_pretrained(folder / "llama", dtype=torch.float64).eval()


def in_float64(model):
    """Stock Llama has norms and angles in float32 whatever the weights; here they are in float64."""

    def norm(module):
        return lambda state: (
            module.weight * state * torch.rsqrt(state.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
        )

    def angles(state, position_ids):
        size = model.config.hidden_size // model.config.num_attention_heads
        theta = model.config.rope_parameters["rope_theta"]
        frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        turned = position_ids[..., None].double() * torch.cat([frequencies, frequencies])
        return turned.cos(), turned.sin()

    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = norm(module)
    model.model.rotary_emb.forward = angles
    return model


@torch.inference_mode()
def logits(model, positions):
    outputs = model(
        input_ids=torch.tensor([TOKENS]),
        position_ids=torch.tensor(positions)[None],
        attention_mask=torch.ones(1, len(TOKENS)),  # without one, `transformers` cuts the row at every skip
        use_cache=False,
    )
    return outputs.logits[0].numpy()


SKIPPED = [0, 1, 2, 3, 19, 20, 21, 50, 51, 52, 63]


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("positions", [list(range(11)), SKIPPED], ids=["contiguous", "skipped"])
def test_the_same_function_in_float64(tmp_path, layout, positions):
    tensors = facts.make_tensors(facts.CONFIG, torch.float64)
    model = converted(tmp_path, facts.CONFIG, tensors, layout=layout)
    assert type(model) is LlamaForCausalLM
    expected = facts.forward(facts.CONFIG, tensors, TOKENS, positions)
    assert np.abs(logits(model, positions) - expected).max() < 1e-5  # stock: norms and angles in float32
    assert np.abs(logits(in_float64(model), positions) - expected).max() < 1e-10
    assert np.abs(expected).max() > 1


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_only_the_head_is_rounded(tmp_path, layout, dtype):
    """Every weight but the head is the same bits; the head is the nearest number in its dtype."""
    tensors = facts.make_tensors(facts.CONFIG, dtype)
    source = facts.write_checkpoint(tmp_path / "baichuan", facts.CONFIG, tensors, layout=layout)
    convert_checkpoint(str(source), tmp_path / "llama", max_shard_size="20KB")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")  # in the dtype its config names
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    found = model.state_dict()
    for name, tensor in tensors.items():
        if "W_pack" in name:
            parts = [found[name.replace("W_pack", f"{part}_proj")] for part in "qkv"]
            assert torch.equal(torch.cat(parts), tensor)
        elif name != "lm_head.weight":
            assert torch.equal(found[name], tensor)
    exact = facts.normalized(tensors["lm_head.weight"].double().numpy())
    error = np.abs(found["lm_head.weight"].double().numpy() - exact)
    smallest = 0.0 if dtype in (torch.float64, torch.bfloat16) else torch.finfo(dtype).tiny * ROUNDING[dtype]
    assert (error <= (ROUNDING[dtype] + 1e-15) * np.abs(exact) + smallest).all()
    if dtype != torch.float64:
        assert error.max() > ROUNDING[dtype] * np.abs(exact).max() / 4  # the bound is not idle


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_rounded_head_moves_logits_no_more_than_it_can(tmp_path, dtype):
    tensors = facts.make_tensors(facts.CONFIG, dtype)
    model = in_float64(converted(tmp_path, facts.CONFIG, tensors))
    exact = facts.forward(facts.CONFIG, tensors, TOKENS, SKIPPED)
    found = logits(model, SKIPPED)
    folded = tensors | {"lm_head.weight": model.lm_head.weight.detach()}
    assert np.abs(found - facts.forward(facts.CONFIG, folded, TOKENS, SKIPPED, norm_head=False)).max() < 1e-10
    with torch.inference_mode():
        state = model.model(
            input_ids=torch.tensor([TOKENS]),
            position_ids=torch.tensor([SKIPPED]),
            attention_mask=torch.ones(1, len(TOKENS)),
            use_cache=False,
        ).last_hidden_state[0]
    bound = ROUNDING[dtype] * state.abs().numpy() @ np.abs(model.lm_head.weight.detach().numpy()).T * 1.01
    assert (np.abs(found - exact) <= bound + 1e-6).all()
    assert np.abs(found - exact).max() > 0


def test_the_first_version_has_a_plain_head(tmp_path):
    tensors = facts.make_tensors(facts.FIRST_VERSION, torch.bfloat16)
    model = in_float64(converted(tmp_path, facts.FIRST_VERSION, tensors))
    expected = facts.forward(facts.FIRST_VERSION, tensors, TOKENS, SKIPPED, norm_head=False)
    assert np.abs(logits(model, SKIPPED) - expected).max() < 1e-10


@pytest.mark.parametrize(
    "mistake", ["plain head", "thirds swapped", "positions shifted", "pairs interleaved"]
)
def test_the_reference_tells_mistakes_apart(mistake):
    tensors = facts.make_tensors(facts.CONFIG, torch.float64)
    expected = facts.forward(facts.CONFIG, tensors, TOKENS, SKIPPED)
    positions, other = SKIPPED, dict(tensors)
    name = "model.layers.1.self_attn.W_pack.weight"
    if mistake == "thirds swapped":
        other[name] = tensors[name].view(3, 36, 36)[[0, 2, 1]].reshape(108, 36)
    elif mistake == "pairs interleaved":
        halves = tensors[name].view(9, 2, 6, 36).transpose(1, 2).reshape(108, 36)
        other[name] = torch.cat([halves[:72], tensors[name][72:]])
    elif mistake == "positions shifted":
        positions = list(range(11))
    found = facts.forward(facts.CONFIG, other, TOKENS, positions, norm_head=mistake != "plain head")
    assert np.abs(found - expected).max() > 0.05
