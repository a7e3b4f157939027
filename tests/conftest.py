"""Tiny models for every test: random weights, two layers, built in milliseconds."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import skipwise

torch.set_num_threads(1)  # for models this small, threads cost more than they bring

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "attn_implementation": "sdpa",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_EXTRAS = {"qwen3": {"head_dim": 16, "num_key_value_heads": 1}, "gemma2": {"head_dim": 16}}


@pytest.fixture(scope="session")
def make_model():
    """``make_model(family, seed=0, **config)``: a model with weights large enough for logits that differ."""

    def make(family="llama", *, seed=0, **changes):
        config = AutoConfig.for_model(family, **_SIZES | _EXTRAS.get(family, {}) | changes)
        generator = torch.random.get_rng_state()
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim == 2 and "embed" not in name:
                    weight.mul_(8)
        torch.random.set_rng_state(generator)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def demo_base():
    """The folder of the trained model that comes with the package."""
    return Path(skipwise.__file__).parent / "demo" / "demo-base"
