"""The oracle of the method: a row with skipped positions is a long row with the skipped tokens masked out.

The long row has the target length, the row's tokens at the row's positions, arbitrary filler elsewhere, and
a mask that hides the filler from attention. Logits (and gradients) at the row's positions must be the same.
This catches a cut or leaking mask, ignored or rounded positions, and a wrong window at once. Everything is
float64, in which two right computations differ by rounding only: observed below 1e-13, bound 1e-9.
"""

import functools

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from skipwise.data.balanced import Balanced
from skipwise.data.chat import Turns
from skipwise.data.collate import SkipCollator
from skipwise.data.cream import Cream
from skipwise.data.mixture import Mixture
from skipwise.data.skips import Contiguous, PoSE, RandPos
from skipwise.models.gptj import as_phi
from skipwise.models.repairs import repair
from skipwise.rope import extend_rope

TRAIN, TARGET, VOCABULARY = 11, 53, 97
BOUND = 1e-9

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": TRAIN,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES = {
    "llama": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 3},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 24},
    "olmo2": {"num_key_value_heads": 3},
    "gpt_neox": {"rotary_pct": 0.5, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "phi": {"partial_rotary_factor": 0.5},
}
SAMPLERS = {
    "N=1": PoSE(TRAIN, TARGET, 1),
    "N=2": PoSE(TRAIN, TARGET, 2),
    "N=3": PoSE(TRAIN, TARGET, 3, "contiguous"),
    "N=train": PoSE(TRAIN, TARGET, TRAIN, "aligned"),
    "randpos": RandPos(TRAIN, TARGET),
    "balanced": Balanced(TRAIN, TARGET, 2),
    "balanced N=3": Balanced(TRAIN, TARGET, 3, "aligned"),
    "cream": Cream(TRAIN, TARGET),
    "mixture": Mixture((PoSE(TRAIN, TARGET), Contiguous(TRAIN, TARGET)), (0.5, 0.5)),
    "turns": Turns(TRAIN, TARGET, 3, turn_starts=range(20)),
}


@functools.cache
def tiny_model(family, attention="sdpa"):
    config = extend_rope(AutoConfig.for_model(family, **(SIZES | FAMILIES[family])), TARGET, "yarn")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()
    with torch.no_grad():  # attention that matters: the default initialisation is nearly uniform
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return model


def batch_of(sampler, seeds):
    """The row's tensors, made as in training."""
    rows = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        passage = rng.integers(0, VOCABULARY, sampler.passage_length[1] + 7)
        rows.append(sampler.sample(passage, rng))
    return SkipCollator()(rows)


def row_logits(model, batch, **changed):
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask")} | changed
    return model(**inputs, use_cache=False).logits


def long_row_logits(model, batch, target=TARGET):
    """Logits at the row's positions of the real rows of ``target`` tokens."""
    places, shape = batch["position_ids"], (len(batch["input_ids"]), target)
    filler = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(9))
    tokens = filler.scatter(1, places, batch["input_ids"])
    mask = torch.zeros(shape, dtype=torch.int64).scatter(1, places, 1)
    position_ids = torch.arange(target).expand(shape)
    logits = model(input_ids=tokens, position_ids=position_ids, attention_mask=mask, use_cache=False).logits
    return logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))


def largest_difference(left, right):
    assert left.shape == right.shape
    assert left.isfinite().all()
    assert right.isfinite().all()
    return float((left - right).detach().abs().max())


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_a_long_row_with_the_skipped_tokens_masked_out(family, sampler):
    model, batch = tiny_model(family), batch_of(sampler, range(4))
    with torch.no_grad():
        row, long = row_logits(model, batch), long_row_logits(model, batch)
    assert largest_difference(row, long) < BOUND
    assert row.std() > 0.1  # not two constants that agree


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn"])
def test_also_of_a_trained_model_at_its_real_size(demo_base, method):
    config = extend_rope(AutoConfig.from_pretrained(demo_base), 4_096, method)
    model = AutoModelForCausalLM.from_pretrained(demo_base, config=config, dtype=torch.float32)
    model = model.double().eval()
    batch = batch_of(PoSE(256, 4_096, 3), [5])
    assert batch["position_ids"][0, -1] > 3_000
    with torch.no_grad():
        assert largest_difference(row_logits(model, batch), long_row_logits(model, batch, 4_096)) < BOUND


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_also_with_eager_attention(family):
    # Eager attention takes its softmax in float32 whatever the model's dtype: observed 2e-6.
    model, batch = tiny_model(family, "eager"), batch_of(SAMPLERS["N=3"], range(4))
    with torch.no_grad():
        assert largest_difference(row_logits(model, batch), long_row_logits(model, batch)) < 5e-5


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_:FutureWarning")  # the newer name is not in 5.17
@pytest.mark.parametrize("family", FAMILIES)
def test_also_in_training_with_gradient_checkpointing(family):
    # Checkpointing switches the cache off and recomputes the forward pass: a second chance to lose the mask.
    model, batch = tiny_model(family), batch_of(SAMPLERS["N=2"], range(4))
    weights = torch.randn(4, TRAIN, VOCABULARY, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        expected = long_row_logits(model, batch)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        logits = row_logits(model, batch)
        assert largest_difference(logits, expected) < BOUND
        found = gradients(model, logits, weights)
        model.gradient_checkpointing_disable()
        wanted = gradients(model, long_row_logits(model, batch), weights)
    finally:
        model.gradient_checkpointing_disable()
        model.eval()
    assert largest_difference(found, wanted) < BOUND * float(wanted.abs().max())


def gradients(model, logits, weights):
    parameters = [each for each in model.parameters() if each.requires_grad]
    found = torch.autograd.grad((logits * weights).sum(), parameters)
    return torch.cat([each.flatten() for each in found])


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_mask_the_oracle_does_not_hold(family):
    # `transformers` then takes each jump for the start of another packed sequence and cuts the chunks apart.
    model, batch = tiny_model(family), batch_of(SAMPLERS["N=2"], range(4))
    jumps = (batch["position_ids"].diff() > 1).any(1)
    assert jumps.all(), "these seeds must skip"
    with torch.no_grad():
        cut, long = row_logits(model, batch, attention_mask=None), long_row_logits(model, batch)
    assert largest_difference(cut, long) > 1e-2
    starts = (batch["position_ids"].diff() > 1).int().argmax(1) + 1
    for i, start in enumerate(starts):
        assert largest_difference(cut[i, :start], long[i, :start]) < BOUND  # chunk 1 sees all it should
        assert largest_difference(cut[i, start:], long[i, start:]) > 1e-2  # chunk 2 does not


@pytest.mark.parametrize("family", FAMILIES)
def test_with_other_positions_the_oracle_does_not_hold(family):
    model, batch = tiny_model(family), batch_of(SAMPLERS["N=2"], range(4))
    shifted = batch["position_ids"].clone()
    shifted[:, 1:] += (batch["position_ids"].diff() > 1).cumsum(1)  # every skip one too large
    with torch.no_grad():
        wrong, long = row_logits(model, batch, position_ids=shifted), long_row_logits(model, batch)
    assert largest_difference(wrong, long) > 1e-3


SPAN = 13
"""Tokens that a windowed layer sees: more than the row has, and far less than the target."""

TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
MIXED = {"num_key_value_heads": 1, "layer_types": ["sliding_attention", "full_attention"]}
WINDOWED = {
    "mistral": {"num_key_value_heads": 1},
    "phi3": {"num_key_value_heads": 1},
    "starcoder2": {"num_key_value_heads": 1},
    "qwen2": {**MIXED, "use_sliding_window": True},
    "qwen3": {**MIXED, "use_sliding_window": True, "head_dim": 24},
    "gemma2": {**MIXED, "head_dim": 24, "attn_implementation": "eager"},
    "gemma3_text": {**MIXED, "head_dim": 24},
    "olmo3": MIXED,
    "smollm3": {**MIXED, "use_sliding_window": True},
    "exaone4": MIXED,
    "llama4_text": {
        "num_key_value_heads": 1,
        "layer_types": ["chunked_attention", "full_attention"],
        "attention_chunk_size": SPAN,
        "num_local_experts": 2,
        "moe_layers": [],  # experts compute in float32 at most
        "intermediate_size_mlp": 40,
        "head_dim": 24,
    },
}


def windowed_model(family):
    """A stock model whose windows are much shorter than its target."""
    own = {"max_position_embeddings": TARGET, "sliding_window": SPAN, "attn_implementation": "sdpa"}
    config = AutoConfig.for_model(family, **(SIZES | TOKENS | own | WINDOWED[family]))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    if (
        model.config._attn_implementation == "sdpa"
    ):  # eager's masks of float64 overflow in its float32 softmax
        model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("sampler", ["N=2", "N=3", "N=train"])
@pytest.mark.parametrize("family", WINDOWED)
def test_windows_cut_by_position_restore_the_oracle(family, sampler):
    model, batch = windowed_model(family), batch_of(SAMPLERS[sampler], range(4))
    bound = BOUND if model.dtype == torch.float64 else 5e-5
    with torch.no_grad():
        long, by_index = long_row_logits(model, batch), row_logits(model, batch)
        assert "cut by position" in " ".join(repair(model))
        found = row_logits(model, batch)
    assert largest_difference(found, long) < bound
    assert largest_difference(by_index, long) > 1e-2  # what the repair is for


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_:FutureWarning")
@pytest.mark.parametrize("family", ["mistral", "qwen2", "llama4_text"])
def test_windows_also_in_training_with_gradient_checkpointing(family):
    model, batch = windowed_model(family), batch_of(SAMPLERS["N=2"], range(4))
    weights = torch.randn(4, TRAIN, VOCABULARY, generator=torch.Generator().manual_seed(3)).double()
    wanted = gradients(model, long_row_logits(model, batch), weights)
    repair(model)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = gradients(model, row_logits(model, batch), weights)
    assert largest_difference(found, wanted) < BOUND * float(wanted.abs().max())


@pytest.mark.parametrize("sampler", ["N=1", "N=2", "N=3", "randpos"])
@pytest.mark.parametrize("family", ["gptj", "codegen"])
def test_families_with_a_table_of_angles(family, sampler):
    """The long row goes through the stock classes, whose table has a row for every position of the target."""
    sizes = {"n_embd": 40, "n_head": 4, "rotary_dim": 6, "n_layer": 2, "n_ctx": TARGET}
    config = AutoConfig.for_model(
        family, vocab_size=VOCABULARY, n_positions=TARGET, bos_token_id=0, eos_token_id=0, **sizes
    )
    torch.manual_seed(1)
    stock = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.normal_(std=0.3)
    model, batch = as_phi(stock, config, "sdpa").eval(), batch_of(SAMPLERS[sampler], range(4))
    with torch.no_grad():
        row, long = row_logits(model, batch), long_row_logits(stock, batch)
    assert largest_difference(row, long) < 1e-4  # the stock classes attend in float32: observed 2e-6
    assert row.std() > 0.1
