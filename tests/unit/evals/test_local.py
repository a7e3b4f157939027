"""Pieces, caches and shared prefixes must not change what a model says."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from skipwise.evals import local
from skipwise.evals.local import LocalReader
from skipwise.models.attention import CONTINUED, continue_caches, continued_attention

FAMILIES = {
    "llama": {"num_key_value_heads": 1},
    "qwen3": {},
    "gpt_neox": {},
    "gemma2": {
        "sliding_window": 9,
        "final_logit_softcapping": 2.0,
        "attn_implementation": "eager",
        "num_key_value_heads": 1,
    },
    "mistral": {"sliding_window": 7, "num_key_value_heads": 1},
    "cohere": {"logit_scale": 0.3},
}


def rows(seed, *shape, vocabulary=97):
    return np.random.default_rng(seed).integers(1, vocabulary, size=shape)


def plain_losses(model, row):
    token_ids = torch.from_numpy(row)[None]
    with torch.inference_mode():
        logits = model(token_ids, attention_mask=torch.ones_like(token_ids), use_cache=False).logits
    return -logits[0, :-1].double().log_softmax(-1)[torch.arange(len(row) - 1), token_ids[0, 1:]].numpy()


def plain_greedy(model, row, count):
    """One forward pass over everything for each token."""
    for _ in range(count):
        token_ids = torch.tensor([row])
        with torch.inference_mode():
            logits = model(token_ids, attention_mask=torch.ones_like(token_ids), use_cache=False).logits
        row = [*row, int(logits[0, -1].argmax())]
    return row[-count:]


class Numbers:
    """A tokenizer whose tokens are numbers."""

    eos_token_id = 0

    def decode(self, token_ids, skip_special_tokens):
        return " ".join(map(str, token_ids))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("piece", [None, 1, 13, 64])
@pytest.mark.parametrize("first", [1, 20, 52])
def test_losses_in_pieces_are_those_of_one_pass(make_model, monkeypatch, family, piece, first):
    monkeypatch.setattr(local, "HEAD_TOKENS", 10)
    model = make_model(family, **FAMILIES[family])
    three = rows(1, 3, 53)
    expected = [plain_losses(model, row)[first - 1 :] for row in three]
    found = LocalReader(model, None, piece=piece).losses(list(three), first)
    assert [each.dtype for each in found] == [np.float64] * 3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("piece", [None, 5])
def test_answers_are_those_of_greedy_decoding_whatever_was_read_before(make_model, family, piece):
    model = make_model(family, eos_token_id=None, **FAMILIES[family])
    model.generation_config.eos_token_id = []
    reader = LocalReader(model, Numbers(), piece=piece)
    start, others = rows(2, 40).tolist(), rows(3, 5, 40).tolist()
    groups = [
        [start[:30] + others[0][:10]],
        [start[:30] + others[1][:10]],  # continues the prefix that the one before left
        [start[:12] + others[2][:10], start[:12] + others[3][:10]],  # cut back, and for several rows
        [others[4]],  # nothing in common
        [start[:30], others[2][:7], start[:31]],  # of several lengths
        [start[:30], start[:30] + others[2][:3], start[:28]],  # and with a prefix that is one of them
        [start, start],  # the same twice: at least one token is left to read
        [start],
    ]
    for prompts in groups:
        expected = [" ".join(map(str, plain_greedy(model, prompt, 6))) for prompt in prompts]
        assert reader.generate(prompts, 6) == expected


def test_a_shared_prefix_is_read_once(make_model, monkeypatch):
    model = make_model(eos_token_id=None)
    model.generation_config.eos_token_id = []
    reader = LocalReader(model, Numbers())
    read = []
    inputs = LocalReader._inputs
    monkeypatch.setattr(
        LocalReader, "_inputs", lambda self, t, *more: read.append(t.numel()) or inputs(self, t, *more)
    )
    start, ends = rows(2, 40).tolist(), rows(3, 3, 10).tolist()
    reader.generate([start + ends[0]], 1)
    assert sum(read) == 50
    read.clear()
    reader.generate([start + end for end in ends[1:]], 1)
    assert sum(read) == 20
    reader.losses([start])
    read.clear()
    reader.generate([start], 1)  # memory was freed for the losses
    assert sum(read) == 40


def test_an_answer_stops_at_the_end_token(make_model):
    model = make_model(eos_token_id=None)
    prompts = rows(4, 2, 20).tolist()
    said = [plain_greedy(model, prompt, 6) for prompt in prompts]
    end = said[0][2]
    model.generation_config.eos_token_id = [end, 96]
    expected = [each[: each.index(end)] if end in each else each for each in said]
    found = LocalReader(model, Numbers()).generate(prompts, 6)
    assert found == [" ".join(map(str, each)) for each in expected]
    assert len(expected[0]) < 6


def test_special_tokens_are_left_out(make_model, demo_base):
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    model = make_model(vocab_size=2048, eos_token_id=None)
    model.generation_config.eos_token_id = []
    prompt = tokenizer("def main():")["input_ids"]
    expected = tokenizer.decode(plain_greedy(model, prompt, 5), skip_special_tokens=True)
    assert LocalReader(model, tokenizer).generate([prompt], 5) == [expected]


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_full_memory_halves_the_pieces_until_they_fit(make_model, family):
    """A GPU on which 300 tokens at a time are too many."""
    model = make_model(family, sliding_window=70, num_key_value_heads=1, max_position_embeddings=2048)
    (row,) = rows(5, 1, 1_100)
    expected, sizes = plain_losses(model, row), []

    def full(module, args, inputs):
        sizes.append(inputs["input_ids"].shape[1])
        if sizes[-1] > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")

    reader = LocalReader(model, None)
    handle = model.base_model.register_forward_pre_hook(full, with_kwargs=True)
    (found,) = reader.losses([row])
    handle.remove()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert max(sizes[-4:]) == 256
    model.base_model.register_forward_pre_hook(_always_full)
    with pytest.raises(torch.OutOfMemoryError):
        reader.losses([row])


def _always_full(module, args):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_rows_whose_angles_depend_on_their_length_are_read_whole(make_model):
    scaled = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    model = make_model(rope_parameters=scaled, eos_token_id=None)
    model.generation_config.eos_token_id = []
    (row,) = rows(6, 1, 120)
    expected = plain_losses(model, row)
    (found,) = LocalReader(model, None, piece=30).losses([row])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    prompts = rows(7, 2, 90).tolist()
    reader = LocalReader(model, Numbers())
    for prompt in prompts:
        assert reader.generate([prompt], 1) == [str(plain_greedy(model, prompt, 1)[0])]


def test_more_rows_at_once_when_they_are_short(make_model):
    reader = LocalReader(make_model(), None)
    assert reader.at_once(2_048) == 1
    assert reader.at_once(10**6) == 1
    assert reader.at_once(256) == 8


@pytest.mark.parametrize("queries", [1, 2, 7, 19])
def test_no_mask_is_written_out_where_a_row_continues_a_cache(make_model, queries):
    """`continued_attention` against `sdpa` with the mask that `transformers` makes for it."""
    model = make_model(num_attention_heads=4, num_key_value_heads=2)
    (row,) = torch.from_numpy(rows(8, 1, 19))[None]
    stock = _continue(model, row, queries)
    assert continue_caches(model)
    assert model.config._attn_implementation == CONTINUED
    masks = []
    layer = model.model.layers[0].self_attn
    layer.register_forward_pre_hook(
        lambda module, args, inputs: masks.append(inputs["attention_mask"]), with_kwargs=True
    )
    torch.testing.assert_close(_continue(model, row, queries), stock)
    assert masks == [None] * len(masks)
    assert masks


def _continue(model, row, queries):
    with torch.inference_mode():
        cache = None
        if queries < row.shape[1]:
            cache = model(row[:, :-queries], use_cache=True).past_key_values
        return model(row[:, -queries:], past_key_values=cache, use_cache=True).logits


def test_only_sdpa_is_replaced(make_model):
    model = make_model(attn_implementation="eager")
    assert not continue_caches(model)
    assert model.config._attn_implementation == "eager"


def test_autocast_reaches_the_kernels_that_are_called_past_it():
    module, rows_of = torch.nn.Module(), [torch.randn(1, 2, count, 16) for count in (5, 12, 12)]
    with torch.autocast("cpu", torch.bfloat16):
        assert continued_attention(module, *rows_of, None)[0].dtype == torch.bfloat16
    assert continued_attention(module, *rows_of, None)[0].dtype == torch.float32
