import copy
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from skipwise.errors import RunError
from skipwise.export.checkpoint import export_checkpoint
from skipwise.models.gptj import as_phi, phi_config, with_small_table
from skipwise.models.load import find_checkpoint, load_config, load_model
from skipwise.models.probes import check
from skipwise.rope import extend_rope

WINDOW, TARGET, VOCABULARY = 32, 4096, 97
# Odd heads for GPT-J; CodeGen's 4 slices want a multiple of 4. Rotary sizes below the head's.
FAMILIES = {
    "gptj": {"n_embd": 60, "n_head": 3, "rotary_dim": 6},
    "codegen": {"n_embd": 64, "n_head": 8, "rotary_dim": 4, "n_ctx": WINDOW},
}
METHODS = ("none", "linear", "ntk", "yarn")


@pytest.fixture(params=FAMILIES)
def stock(request):
    """A tiny model of the family as `transformers` builds it, with weights that make positions matter."""
    return tiny(request.param)


def tiny(family, **changes):
    sizes = {"vocab_size": VOCABULARY, "n_positions": WINDOW, "n_layer": 2}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, **(sizes | tokens | FAMILIES[family] | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def tokens_of(length, batch=2):
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(4))


def sin_cos(model, positions):
    """The table's notation: sin and cos of each angle, side by side."""
    cos, sin = model.model.rotary_emb(torch.zeros(1), positions[None])
    half = cos.shape[-1] // 2
    return torch.cat((sin[0, :, :half], cos[0, :, :half]), dim=1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_same_function_in_the_old_window(stock, attention):
    phi, tokens = as_phi(stock, stock.config, attention).eval(), tokens_of(WINDOW)
    with torch.no_grad():
        expected, found = stock(tokens).logits, phi(tokens).logits
        elsewhere = phi(tokens, position_ids=torch.arange(WINDOW)[None] * 2).logits
    assert expected.std() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # observed 2e-5: sums in another order
    assert (elsewhere - expected).abs().max() > 0.1  # positions decide


def test_angles_in_the_old_window_are_those_of_the_table(stock):
    phi = as_phi(stock, stock.config, "sdpa")
    table = stock.transformer.h[0].attn.embed_positions
    torch.testing.assert_close(sin_cos(phi, torch.arange(WINDOW)), table, rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_angles_beyond_it_follow_the_config(stock, method):
    phi = as_phi(stock, extend_rope(stock.config, TARGET, method), "sdpa")
    rotary = stock.config.rotary_dim
    theta = 10000.0 * (128 ** (rotary / (rotary - 2)) if method == "ntk" else 1)
    frequencies = theta ** (-torch.arange(0, rotary, 2).double() / rotary)
    if method == "linear":
        frequencies /= 128
    if method == "yarn":  # at a window of 32, only the first of these frequencies turns more than once
        assert phi.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(128) + 1)
        assert phi.model.rotary_emb.inv_freq[-1] == pytest.approx(frequencies[-1].item() / 128)
    else:
        positions = torch.tensor([0, 1, WINDOW, 1000, TARGET - 1])
        angles = positions.double()[:, None] * frequencies
        expected = torch.cat((angles.sin(), angles.cos()), dim=1)
        torch.testing.assert_close(sin_cos(phi, positions).double(), expected, rtol=0, atol=1e-3)
    assert phi.config.max_position_embeddings == TARGET
    check(phi, TARGET)


def test_weights_are_shared_where_they_are_the_same(stock):
    phi = as_phi(stock, stock.config, "sdpa")
    assert phi.lm_head.weight.data_ptr() == stock.lm_head.weight.data_ptr()
    pairs = zip(phi.model.layers, stock.transformer.h, strict=True)
    assert all(new.mlp.fc1.weight.data_ptr() == old.mlp.fc_in.weight.data_ptr() for new, old in pairs)


def test_no_long_table_is_built(stock):
    small = with_small_table(extend_rope(stock.config, TARGET, "yarn"))
    model = AutoModelForCausalLM.from_config(small)
    assert model.transformer.h[0].attn.embed_positions.shape[0] == 1
    assert (small.n_positions, stock.config.n_positions) == (1, WINDOW)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_long_table_is_built_for_loading(family, tmp_path, monkeypatch):
    """At a million positions, and GPT-J-6B's 28 layers of 64 rotary dimensions, 7 GB."""
    tiny(family).save_pretrained(tmp_path)
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    build, rows = module.create_sinusoidal_positions, []

    def watch(num_pos, dim):
        rows.append(num_pos)
        return build(num_pos, dim)

    monkeypatch.setattr(module, "create_sinusoidal_positions", watch)
    checkpoint = find_checkpoint(str(tmp_path))
    config = extend_rope(load_config(checkpoint), 2**20, "yarn")
    before = config.to_dict()
    model = load_model(checkpoint, config)
    assert set(rows) == {1}
    assert config.to_dict() == before
    assert model.config.max_position_embeddings == 2**20
    assert model.config.rope_parameters["rope_type"] == "yarn"


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_training_moves_weights_and_leaves_the_biases_it_never_had(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    checkpoint = find_checkpoint(str(tmp_path))
    model = load_model(
        checkpoint, extend_rope(stock.config, TARGET, "yarn"), gradient_checkpointing=True
    ).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    tokens, positions = tokens_of(16), torch.arange(16)[None].expand(2, -1) + 9 * (torch.arange(16) > 7)
    for _ in range(2):
        mask = torch.ones_like(tokens)
        model(tokens, position_ids=positions, attention_mask=mask, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    biases = [name for name in before if ".self_attn." in name and name.endswith(".bias")]
    assert len(biases) == 8
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) == (name in biases), name
        assert name not in biases or not weight.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_loaded_extended_and_exported(family, dtype, tmp_path, demo_base):
    tiny(family, vocab_size=2048).save_pretrained(tmp_path / "base")
    checkpoint = find_checkpoint(str(tmp_path / "base"))
    config = extend_rope(load_config(checkpoint), TARGET, "yarn")
    model = load_model(checkpoint, config, dtype=dtype)
    assert model.dtype == dtype
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    check(model, TARGET)
    export_checkpoint(model, AutoTokenizer.from_pretrained(demo_base), tmp_path / "out")
    tokens = tokens_of(9)
    positions = TARGET - 9 + torch.arange(9)[None].expand(2, -1)
    with torch.no_grad():
        expected = model.eval()(tokens, position_ids=positions).logits
    torch.save(tokens, tmp_path / "tokens.pt")
    torch.save(expected, tmp_path / "expected.pt")
    # A process that knows `transformers` and nothing of skipwise, without trust in any code.
    script = """if True:
        import sys, torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        tokens, expected = torch.load("tokens.pt"), torch.load("expected.pt")
        model = AutoModelForCausalLM.from_pretrained("out", trust_remote_code=False, dtype=expected.dtype)
        positions = %d - 9 + torch.arange(9)[None].expand(2, -1)
        found = model(tokens, position_ids=positions).logits
        assert torch.equal(found, expected), (found - expected).abs().max()
        assert len(AutoTokenizer.from_pretrained("out")) == 2048
        assert not any(name.startswith("skipwise") for name in sys.modules)
    """
    paths = [path for path in sys.path if "transformers" in {each.name for each in siblings(path)}]
    environment = {"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", script % TARGET]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "auto_map" not in json.loads((tmp_path / "out/config.json").read_text())


def siblings(path):
    return list(Path(path).iterdir()) if Path(path).is_dir() else []


def test_greedy_continuations_are_the_same(stock):
    stock.generation_config = GenerationConfig(max_new_tokens=7, do_sample=False, pad_token_id=0)
    tokens = tokens_of(5, batch=1)
    mask = torch.ones_like(tokens)
    phi = as_phi(stock, stock.config, "sdpa").eval()
    assert torch.equal(phi.generate(tokens, attention_mask=mask), stock.generate(tokens, attention_mask=mask))


@pytest.mark.parametrize("rotary", range(2, 102, 2))
def test_every_rotary_size_survives_being_written_as_a_share(rotary):
    for head_size in (102, 104, 110):
        config = AutoConfig.for_model("gptj", n_embd=head_size, n_head=1, rotary_dim=rotary)
        assert int(head_size * phi_config(config).rope_parameters["partial_rotary_factor"]) == rotary


def test_a_model_with_a_table_is_named(stock):
    with pytest.raises(RunError, match=f"^{stock.config.model_type} .*table.*load_model"):
        check(stock, WINDOW)
