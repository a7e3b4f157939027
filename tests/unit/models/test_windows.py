import copy
import pickle

import pytest
import torch

from skipwise.errors import InputError, RunError
from skipwise.models.load import find_checkpoint, load_model
from skipwise.models.probes import check
from skipwise.models.repairs import repair
from skipwise.models.windows import cut_windows_by_position, decoder_of, windowed_layers

SPAN, CHUNK = 13, 8
MIXED = ["sliding_attention", "full_attention"]
FAMILIES = {
    "mistral": {"sliding_window": SPAN, "num_key_value_heads": 1},
    "starcoder2": {"sliding_window": SPAN},
    "qwen2": {
        "sliding_window": SPAN,
        "use_sliding_window": True,
        "layer_types": MIXED,
        "num_key_value_heads": 2,
    },
    "gemma3_text": {"sliding_window": SPAN, "layer_types": MIXED, "head_dim": 16, "num_key_value_heads": 1},
    "llama4_text": {
        "attention_chunk_size": SPAN,
        "layer_types": ["chunked_attention", "full_attention"],
        "num_local_experts": 2,
        "intermediate_size_mlp": 48,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "pad_token_id": 0,
    },
}


@pytest.fixture(params=FAMILIES)
def model(request, make_model):
    return make_model(request.param, **FAMILIES[request.param])


def logits(model, skip, **changed):
    """Of a row of two chunks with ``skip`` positions left out between them."""
    tokens, positions = torch.arange(2 * CHUNK)[None] * 5, torch.arange(2 * CHUNK)[None].clone()
    positions[:, CHUNK:] += skip
    inputs = {"attention_mask": torch.ones_like(tokens), "position_ids": positions} | changed
    with torch.no_grad():
        return model(tokens, **inputs, use_cache=False).logits[0]


def test_windows_by_index_are_found_and_repaired(model):
    with pytest.raises(RunError, match=r"a row is not the long row.*windows are cut by index"):
        check(model, 64, accept_limits=True)
    assert "cut by position" in repair(model)[0]
    check(model, 64, accept_limits=True)
    assert windowed_layers(decoder_of(model).config) in (
        {"sliding_attention": SPAN},
        {"chunked_attention": SPAN},
    )


def test_a_row_without_skips_is_computed_as_before(model):
    before = logits(model, 0)
    assert cut_windows_by_position(model)
    torch.testing.assert_close(logits(model, 0), before)


def test_a_layer_sees_what_is_within_its_window_and_nothing_else(make_model):
    model = make_model("mistral", **FAMILIES["mistral"], num_hidden_layers=1)
    cut_windows_by_position(model)
    for skip in range(SPAN + 2):
        plain = logits(model, skip)
        for changed in range(CHUNK):
            tokens = torch.arange(2 * CHUNK)[None] * 5
            tokens[0, changed] += 1
            positions = torch.arange(2 * CHUNK)[None] + skip * (torch.arange(2 * CHUNK) >= CHUNK)
            with torch.no_grad():
                other = model(
                    tokens, attention_mask=torch.ones_like(tokens), position_ids=positions, use_cache=False
                ).logits[0]
            sees = (other - plain).abs().amax(dim=1) > 0
            distance = positions[0] - positions[0, changed]
            assert torch.equal(sees, (distance >= 0) & (distance < SPAN)), (skip, changed)


def test_padding_stays_hidden(model):
    cut_windows_by_position(model)
    mask = torch.ones(1, 2 * CHUNK, dtype=torch.int64)
    mask[0, -3:] = 0
    short = logits(model, 20)[: 2 * CHUNK - 3]
    torch.testing.assert_close(logits(model, 20, attention_mask=mask)[: 2 * CHUNK - 3], short)
    mask = torch.ones_like(mask)
    mask[0, :2] = 0
    assert (logits(model, 2, attention_mask=mask) - logits(model, 2))[2:].abs().max() > 1e-3


def test_each_row_of_a_batch_has_its_own_positions(model):
    cut_windows_by_position(model)
    tokens = torch.arange(2 * CHUNK)[None].expand(3, -1) * 5
    skips = torch.tensor([[0], [3], [30]])
    positions = torch.arange(2 * CHUNK) + skips * (torch.arange(2 * CHUNK) >= CHUNK)
    with torch.no_grad():
        found = model(
            tokens, position_ids=positions, attention_mask=torch.ones_like(tokens), use_cache=False
        ).logits
    for row, skip in zip(found, skips, strict=True):
        torch.testing.assert_close(row, logits(model, int(skip)), rtol=1e-4, atol=1e-4)


def test_repairing_again_adds_nothing_and_copies_keep_it(model):
    repair(model)
    expected = logits(model, 20)
    repair(model)
    assert len(decoder_of(model)._forward_pre_hooks) == 1
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(copied, 20), expected)


def test_generation_goes_the_stock_way(model):
    tokens = torch.arange(20)[None] * 3
    options = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 9, "do_sample": False}
    expected = model.generate(tokens, **options)
    cut_windows_by_position(model)
    assert torch.equal(model.generate(tokens, **options), expected)


def test_steps_with_a_cache_are_left_alone(model):
    tokens, positions = torch.arange(20)[None] * 3, torch.arange(20)[None]

    def in_two_steps():
        mask = torch.ones_like(tokens)
        first = model(
            tokens[:, :18], position_ids=positions[:, :18], attention_mask=mask[:, :18], use_cache=True
        )
        return model(
            tokens[:, 18:],
            position_ids=positions[:, 18:],
            attention_mask=mask,
            past_key_values=first.past_key_values,
        ).logits

    with torch.no_grad():
        expected = in_two_steps()
        cut_windows_by_position(model)
        torch.testing.assert_close(in_two_steps(), expected)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_masks_made_by_the_caller_are_kept(make_model, family):
    model = make_model(family, **FAMILIES[family])
    cut_windows_by_position(model)
    mask = torch.ones(1, 1, 2 * CHUNK, 2 * CHUNK, dtype=torch.bool).tril()
    everything = mask if family == "mistral" else {"sliding_attention": mask, "full_attention": mask}
    assert (logits(model, 20, attention_mask=everything) - logits(model, 20)).abs().max() > 1e-3


def test_windows_as_long_as_the_model_need_nothing(make_model):
    model = make_model("mistral", sliding_window=64, num_key_value_heads=1)
    assert not cut_windows_by_position(model)
    assert not decoder_of(model)._forward_pre_hooks


def test_a_back_end_that_takes_no_mask_is_refused(make_model):
    model = make_model("mistral", **FAMILIES["mistral"])
    model.config._attn_implementation_internal = "flash_attention_2"  # as if the package were installed
    with pytest.raises(InputError, match=r"^mistral .*flash_attention_2 cuts by index.*eager, sdpa"):
        repair(model)


def test_models_are_repaired_as_they_are_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    check(load_model(find_checkpoint(str(tmp_path))), 64, accept_limits=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from inside transformers and torch
def test_flex_attention_gets_a_block_mask(make_model):
    models = [
        make_model("gemma3_text", **FAMILIES["gemma3_text"], attn_implementation=attention)
        for attention in ("flex_attention", "sdpa")
    ]
    for each in models:
        cut_windows_by_position(each)
    found, expected = (logits(each, 20) for each in models)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_rows_without_a_mask_are_left_to_the_stock_model(model):
    expected = logits(model, 3, attention_mask=None)
    cut_windows_by_position(model)
    assert torch.equal(logits(model, 3, attention_mask=None), expected)  # bit for bit: export compares so
