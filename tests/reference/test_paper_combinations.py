"""The paper's twelve combinations (Zhu et al. 2023, section 4.3), from the checkpoint to the exported one.

LLaMA, LLaMA2, GPT-J and Baichuan2 keep their real windows, base, head and rotary sizes and tensor names; the
rest is small. What decides, with stock `transformers` only: the angles it computes at 16k against the papers
in float64, and the logits of a row against the long row of 16,384 tokens that the row stands for.
"""

from pathlib import Path

import baichuan2 as facts
import numpy as np
import pytest
import rope_formulas as paper
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaForCausalLM,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
)

from skipwise.config import TrainingRecipe
from skipwise.data.collate import SkipCollator
from skipwise.data.rows import Rows
from skipwise.data.skips import PoSE
from skipwise.export.checkpoint import export_checkpoint
from skipwise.models.convert import convert_checkpoint
from skipwise.models.load import find_checkpoint, load_config, load_model
from skipwise.models.probes import check
from skipwise.rope import extend_rope
from skipwise.train.engine import train

TARGET, ROW, VOCABULARY = 16_384, 128, 97
NEAR = 51
"""Tokens of the oracle's row at the start of the long one; the others are at its end."""

LLAMA = {
    **{"vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 90, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2},
}
GPTJ = {
    **{"vocab_size": VOCABULARY, "n_embd": 512, "n_head": 2, "rotary_dim": 64, "n_inner": 90, "n_layer": 2},
    **{"bos_token_id": 1, "eos_token_id": 2},
}
BAICHUAN2 = facts.CONFIG | {
    **{"vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 90, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "max_position_embeddings": 4096, "model_max_length": 4096},
}


def stock(folder, family, **config):
    """A stock checkpoint with weights that make attention tell tokens apart."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=weight.shape[-1] ** -0.5) if weight.ndim > 1 else weight.add_(0.1)
    model.save_pretrained(folder)
    return folder


def converted(folder):
    """Baichuan2-7B's own layout, and what `skipwise convert` makes of it."""
    source = facts.write_checkpoint(folder / "source", BAICHUAN2, facts.make_tensors(BAICHUAN2))
    convert_checkpoint(str(source), folder / "llama")
    return folder / "llama"


WINDOWS = {"LLaMA": 2048, "LLaMA2": 4096, "GPT-J": 2048, "Baichuan2": 4096}
WRITERS = {
    "LLaMA": lambda folder: stock(folder, "llama", max_position_embeddings=2048, rms_norm_eps=1e-6, **LLAMA),
    "LLaMA2": lambda folder: stock(folder, "llama", max_position_embeddings=4096, rms_norm_eps=1e-5, **LLAMA),
    "GPT-J": lambda folder: stock(folder, "gptj", n_positions=2048, **GPTJ),
    "Baichuan2": converted,
}
ROTARY = {"GPT-J": 64}
"""Dimensions of a head that rotate, where it is not all 128."""


def formula(name, method):
    """Frequencies in float64 and the factor on cos and sin, for base 10,000."""
    d, alpha = ROTARY.get(name, 128), TARGET / WINDOWS[name]
    if method == "yarn":
        return paper.yarn(d, 10_000, alpha, WINDOWS[name]), paper.yarn_attention(alpha)
    return {"linear": paper.linear, "ntk": paper.ntk}[method](d, 10_000, alpha), 1.0


class Text:
    """Passages of random tokens."""

    def __len__(self):
        return 3

    def draw(self, epoch, example, rng):
        return rng.integers(3, VOCABULARY, 4 * ROW)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """``checkpoints(name)``: the folder of an architecture, written once."""
    written = {}

    def find(name) -> Path:
        if name not in written:
            torch.manual_seed(0)
            written[name] = WRITERS[name](tmp_path_factory.mktemp(name))
        return written[name]

    return find


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn"])
@pytest.mark.parametrize("name", WINDOWS)
def test_paper_combination(name, method, checkpoints, tmp_path):
    checkpoint = find_checkpoint(str(checkpoints(name)))
    config = extend_rope(load_config(checkpoint), TARGET, method)
    model = load_model(checkpoint, config)
    check(model, TARGET)
    rows = trained_two_steps(model, tmp_path / "run")

    export_checkpoint(model, tokenizer(), tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    assert type(exported) is (PhiForCausalLM if name == "GPT-J" else LlamaForCausalLM)
    assert exported.config.max_position_embeddings == TARGET
    assert model.eval().model.rotary_emb is not exported.model.rotary_emb
    assert torch.equal(logits(model, rows), logits(exported, rows))

    assert angle_error(exported, *formula(name, method)) < 4e-3  # half a unit of float32 at 16,384, twice
    assert oracle_error(exported) < 1e-4


def trained_two_steps(model, folder):
    """Train on rows with skips; a batch of these rows."""
    recipe = TrainingRecipe(steps=2, rows_per_step=2, learning_rate=1e-3, warmup_steps=0)
    rows = Rows(Text(), PoSE(ROW, TARGET), count=4, seed=1)
    before = {key: weight.clone() for key, weight in model.named_parameters() if weight.requires_grad}
    curve = train(model, rows, recipe, folder, seed=0).curve
    assert np.isfinite([line["loss"] for line in curve]).all()
    assert len(curve) == 2
    weights = dict(model.named_parameters())
    assert not any(torch.equal(weight, weights[key]) for key, weight in before.items())
    return SkipCollator()([rows[i] for i in range(2)])


def tokenizer():
    vocabulary = {f"t{i}": i for i in range(VOCABULARY)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "t0")))


@torch.no_grad()
def logits(model, batch):
    inputs = {key: batch[key] for key in ("input_ids", "position_ids", "attention_mask")}
    return model(**inputs, use_cache=False).logits


def angle_error(model, frequencies, attention):
    """Of the cos and sin at the start and at the end of the target."""
    positions = torch.cat((torch.arange(65), torch.arange(TARGET - 65, TARGET)))
    angles = np.outer(positions.numpy(), np.concatenate((frequencies, frequencies)))
    cos, sin = (each[0].double().numpy() for each in model.model.rotary_emb(torch.zeros(1), positions[None]))
    assert cos.shape == angles.shape
    return max(np.abs(cos - attention * np.cos(angles)).max(), np.abs(sin - attention * np.sin(angles)).max())


@torch.no_grad()
def oracle_error(model):
    """A row with the longest skip against its long row: index is position, the filler is masked out.

    The long row goes through the cache, as in generation. Nobody may look at the filler, so its keys and
    values are any numbers.
    """
    tokens = torch.randint(3, VOCABULARY, (1, TARGET), generator=torch.Generator().manual_seed(2))
    positions, far = torch.arange(TARGET)[None], ROW - NEAR
    kept = torch.cat((positions[0, :NEAR], positions[0, -far:]))
    row = {"input_ids": tokens[:, kept], "position_ids": kept[None], "attention_mask": torch.ones(1, ROW)}
    found = logits(model, row)

    cache = DynamicCache()
    first = model(tokens[:, :NEAR], position_ids=positions[:, :NEAR], past_key_values=cache).logits
    for i, layer in enumerate(cache.layers):
        batch, heads, _, size = layer.keys.shape
        cache.update(*torch.randn(2, batch, heads, TARGET - ROW, size), i)
    mask = torch.ones(1, TARGET).index_fill(1, positions[0, NEAR:-far], 0)
    last = model(
        tokens[:, -far:], position_ids=positions[:, -far:], attention_mask=mask, past_key_values=cache
    ).logits
    assert cache.get_seq_length() == TARGET
    return float((found - torch.cat((first, last), dim=1)).abs().max() / found.std())
