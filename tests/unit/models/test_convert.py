"""What `convert` writes, what it refuses, how much memory it takes, and its tokenizer."""

import base64
import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from skipwise.errors import InputError
from skipwise.models import convert as convert_module
from skipwise.models import shards as shards_module
from skipwise.models.convert import convert_checkpoint
from skipwise.models.load import find_checkpoint, load_config, load_model, load_tokenizer
from skipwise.models.probes import check
from skipwise.models.spm import make_tokenizer, read_model
from skipwise.rope import extend_rope

sys.path.append(str(Path(__file__).parents[2] / "reference"))
facts = importlib.import_module("baichuan2")
GOLDEN = json.loads(Path(__file__).with_name("spm_golden.json").read_text())
SETTINGS = {  # Baichuan2's tokenizer_config.json
    "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
    "add_bos_token": False,
    "add_eos_token": False,
    "use_fast": False,
    "clean_up_tokenization_spaces": False,
    "eos_token": {"__type": "AddedToken", "content": "</s>", "single_word": True},
    "model_max_length": 64,
    "tokenizer_class": "BaichuanTokenizer",
    "pad_token": {"__type": "AddedToken", "content": "<unk>", "single_word": True},
    "unk_token": {"__type": "AddedToken", "content": "<unk>", "single_word": True},
}


@pytest.fixture
def source(tmp_path):
    """A Baichuan2 checkpoint folder; `config` and `tensors` say what is changed."""

    def make(config=facts.CONFIG, tensors=None, **layout):
        return facts.write_checkpoint(
            tmp_path / "source", config, tensors or facts.make_tensors(config, torch.bfloat16), **layout
        )

    return make


def with_tokenizer(folder, kind="plain", settings=SETTINGS, more=b""):
    (folder / "tokenizer.model").write_bytes(base64.b64decode(GOLDEN["models"][kind]["file"]) + more)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenization_baichuan.py").write_text("raise RuntimeError('remote code was run')")
    return folder


WIDE = facts.CONFIG | {"vocab_size": 450}


def refuse(folder, words, output=None):
    output = output or folder.with_name("out")
    with pytest.raises(InputError, match=words) as error:
        convert_checkpoint(str(folder), output)
    assert "\n" not in str(error.value)
    assert not list(folder.parent.glob("*.partial"))
    return error


# --- the checkpoint ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "shards"), [("safetensors", 1), ("safetensors", 4), ("bin", 1), ("bin", 4)]
)
def test_the_result_is_a_stock_llama_checkpoint(source, tmp_path, layout, shards):
    done = convert_checkpoint(str(source(layout=layout, shards=shards)), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"auto_map", "z_loss_weight", "model_max_length", "quantization_config"} & config.keys()
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["attention_bias"] is config["tie_word_embeddings"] is False
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert (config["rope_theta"], config["rope_scaling"]) == (10000.0, None)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps"):
        assert config[key] == facts.CONFIG[key]
    assert config["dtype"] == "bfloat16"
    assert (done.family, done.norm_head, done.files, done.tokens) == ("Baichuan2-7B", True, 1, None)
    assert done.tensors == 2 + 9 * 3 + 1
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert sum(file.get_tensor(name).nbytes for name in file.keys()) == done.size  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


def test_frequencies_that_older_versions_saved_are_dropped(source, tmp_path):
    tensors = facts.make_tensors(facts.FIRST_VERSION)
    tensors |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.rand(6) for layer in range(3)}
    done = convert_checkpoint(str(source(facts.FIRST_VERSION, tensors, layout="bin")), tmp_path / "out")
    assert (done.family, done.norm_head, done.tensors) == ("Baichuan-7B", False, 30)


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn"])
def test_the_converted_model_can_be_extended(source, tmp_path, method):
    with_tokenizer(source(WIDE))
    convert_checkpoint(str(tmp_path / "source"), tmp_path / "out", max_shard_size="30KB")
    checkpoint = find_checkpoint(str(tmp_path / "out"))
    config = extend_rope(load_config(checkpoint), 64 * 16, method)
    model = load_model(checkpoint, config)
    report = check(model, 64 * 16)
    assert report.reaches > 1e-3
    assert report.gap > 1e-3
    assert len(load_tokenizer(checkpoint)) <= config.vocab_size


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "is a Llama checkpoint already"),
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"hidden_size": 5120, "num_attention_heads": 40}, "ALiBi in place of RoPE"),
        ({"quantization_config": {"bits": 4}}, "quantized weights"),
        ({"architectures": ["MyBaichuanForCausalLM"]}, "does not say whether its head is normalized"),
        ({"architectures": ["BaiChuanForCausalLM"]}, "does not say whether its head is normalized"),
        ({"architectures": None}, "does not say whether its head is normalized"),
        ({"vocab_size": "53"}, "vocab_size is missing or no positive number"),
        ({"num_attention_heads": 4}, "hidden_size is 36|W_pack"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling is"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"num_hidden_layers": 4}, r"lacks model\.layers\.3\.\S+ \(7 such\)"),
        ({"num_hidden_layers": 2}, r"also has model\.layers\.2\.\S+ \(7 such\)"),
        ({"intermediate_size": 44}, r"gate_proj\.weight has shape \[45, 36\], its config says \[44, 36\]"),
        ({"vocab_size": 54}, r"has shape \[53, 36\], its config says \[54, 36\]"),
    ],
)
def test_what_is_refused_by_its_config(source, change, words):
    if change == {"num_attention_heads": 4}:
        change = {"num_attention_heads": 12}  # heads of 3, which have no halves
    source()
    folder = source(tensors=facts.make_tensors(facts.CONFIG))
    (folder / "config.json").write_text(json.dumps(facts.CONFIG | change))
    refuse(folder, words)


def test_thirteen_billion_is_refused_by_its_positions_whatever_its_size(source):
    refuse(source(facts.THIRTEEN), "ALiBi in place of RoPE.*take a 7B model")


def test_baichuan2_without_its_mark_is_not_guessed(source):
    config = {key: value for key, value in facts.CONFIG.items() if key != "z_loss_weight"}
    refuse(source(config), "does not say whether its head is normalized")


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_what_is_refused_by_its_tensors(source, layout):
    tensors = facts.make_tensors(facts.CONFIG)
    name = "model.layers.1.self_attn.W_pack.weight"
    refuse(source(tensors=tensors | {name: tensors[name][:-1]}, layout=layout), "W_pack.*has shape")
    refuse(
        source(tensors=tensors | {name: tensors[name].to(torch.int8)}, layout=layout),
        "start from the original",
    )
    absent = {key: value for key, value in tensors.items() if key != name}
    refuse(source(tensors=absent, layout=layout), r"lacks model\.layers\.1.*W_pack")
    biased = tensors | {"model.layers.1.self_attn.W_pack.bias": torch.zeros(108)}
    refuse(source(tensors=biased, layout=layout), r"also has model\.layers\.1.*W_pack\.bias \(1 such\)")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_broken_shards(source, suffix):
    folder = source(layout=suffix)
    second = sorted(folder.glob(f"*.{suffix}"))[1]
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    refuse(folder, f"{second.name} cannot be read")
    second.unlink()
    refuse(folder, f"{second.name} is missing")
    next(folder.glob("*.index.json")).write_text("{}")
    refuse(folder, "is not an index of shards")
    next(folder.glob("*.index.json")).unlink()
    first = sorted(folder.glob(f"*.{suffix}"))[0]
    shutil.copy(first, second)
    refuse(folder, "comes a second time")
    for file in folder.glob(f"*.{suffix}"):
        file.unlink()
    refuse(folder, "has no weights")


class Trap:
    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def test_a_pickle_that_would_run_code_is_not_opened(source, tmp_path):
    folder = source(layout="bin", shards=1)
    trap = Trap()
    trap.folder = tmp_path / "trapped"
    torch.save({"lm_head.weight": trap}, folder / "pytorch_model.bin")
    refuse(folder, "it could run code")
    assert not (tmp_path / "trapped").exists()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    refuse(folder, "cannot be read|could run code")
    torch.save([torch.zeros(3)], folder / "pytorch_model.bin")
    refuse(folder, "not a dictionary of weights")


def test_what_is_no_checkpoint_and_what_is_in_the_way(source, tmp_path, demo_base):
    folder = source()
    refuse(folder, "is there already: name a new folder", output=folder)
    refuse(folder, "is there already", output=folder / "config.json")
    (tmp_path / "model.gguf").touch()
    refuse(tmp_path / "model.gguf", "is a .gguf file")
    refuse(demo_base, "is a Llama checkpoint already", output=tmp_path / "out")
    (folder / "config.json").write_text("{")
    refuse(folder, "config.json cannot be read as JSON")


def test_a_hub_name_is_downloaded_without_its_python_files(source, tmp_path, monkeypatch):
    folder, asked = source(), {}

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr(convert_module, "snapshot_download", download)
    convert_checkpoint("baichuan-inc/Baichuan2-7B-Base", tmp_path / "out")
    assert not any(pattern.endswith((".py", "*")) for pattern in asked["baichuan-inc/Baichuan2-7B-Base"])

    def fail(name, allow_patterns):
        raise OSError("no such repository\nmore")

    monkeypatch.setattr(convert_module, "snapshot_download", fail)
    with pytest.raises(InputError, match=r"^a/b cannot be downloaded: no such repository$"):
        convert_checkpoint("a/b", tmp_path / "other")


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_the_source_stays_as_it_is(source, tmp_path, layout):
    folder = with_tokenizer(source(WIDE, layout=layout))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    convert_checkpoint(str(folder), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_failure_midway_leaves_nothing(source, tmp_path, monkeypatch):
    folder, saved = source(), []
    original = shards_module.save_file

    def save(*arguments, **options):
        if saved:
            raise KeyboardInterrupt
        saved.append(original(*arguments, **options))

    monkeypatch.setattr(shards_module, "save_file", save)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(str(folder), tmp_path / "out", max_shard_size="10KB")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- memory -----------------------------------------------------------------------------------------------

BIG = facts.CONFIG | {
    "hidden_size": 384,
    "num_attention_heads": 6,
    "intermediate_size": 1031,
    "num_hidden_layers": 14,
    "vocab_size": 5003,
}


MEASURE = """
import sys, threading, time
from pathlib import Path
sys.path[:0] = {path!r}
from skipwise.models import convert, shards

def now():  # bytes of this process that no file backs
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])

def watch():
    global largest
    while not done:
        largest = max(largest, now())
        time.sleep(0.0005)

source, output, limit = sys.argv[1:]
convert.BLOCK = 2**18
largest, done, start = 0, False, now()
watcher = threading.Thread(target=watch)
watcher.start()
convert.convert_checkpoint(source, Path(output), max_shard_size=int(limit))
print(largest - start)
whole = shards.Shards(Path(output))
held = [whole.rows(name, 0, each.shape[0]) for name, each in whole.tensors.items()]
time.sleep(0.05)
print(largest - start)
done = True
"""
"""Prints the largest memory of a conversion, then of reading everything at once. In a process of its own:
here, freed memory would be used again unseen."""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_memory_holds_a_small_part_of_the_weights(tmp_path, layout):
    tensors = facts.make_tensors(BIG)
    total = sum(each.nbytes for each in tensors.values())
    folder = facts.write_checkpoint(tmp_path / "source", BIG, tensors, layout=layout, shards=5)
    limit = 6_000_000
    command = [sys.executable, "-c", MEASURE.format(path=sys.path), folder, tmp_path / "out", limit]
    done = subprocess.run([*map(str, command)], capture_output=True, check=True, text=True)
    converting, holding = map(int, done.stdout.split())
    assert len(list((tmp_path / "out").glob("*.safetensors"))) >= total // limit > 16
    assert converting < total / 3, f"{converting:,} of {total:,} bytes"
    assert holding > 0.9 * total  # tensors are seen


# --- the tokenizer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GOLDEN["models"])
def test_ids_are_those_of_sentencepiece(tmp_path, kind):
    """The golden ids were written by the `sentencepiece` package (make_spm_golden.py)."""
    folder = with_tokenizer(tmp_path, kind)
    tokenizer = make_tokenizer(read_model(folder / "tokenizer.model"), [])
    golden = GOLDEN["models"][kind]
    assert [tokenizer.encode(text).ids for text in GOLDEN["texts"]] == golden["ids"]
    for text, ids, decoded in zip(GOLDEN["texts"], golden["ids"], golden["decoded"], strict=True):
        if not text.startswith("▁"):  # SentencePiece drops such a sign at the start, and every one after it
            assert tokenizer.decode(ids) == decoded
    assert len({tuple(ids) for ids in golden["ids"]}) > 100


def test_the_two_golden_models_differ():
    plain, spaced = (GOLDEN["models"][kind]["ids"] for kind in ("plain", "spaced"))
    assert sum(one != two for one, two in zip(plain, spaced, strict=True)) > 100


@pytest.fixture(params=["plain", "spaced"])
def tokenizer(request, source, tmp_path):
    """The tokenizer of a converted checkpoint, through stock AutoTokenizer."""
    convert_checkpoint(str(with_tokenizer(source(WIDE), request.param)), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    tokenizer.golden = GOLDEN["models"][request.param]
    return tokenizer


def test_stock_transformers_loads_it_with_the_same_ids(tokenizer, tmp_path):
    assert [tokenizer(text)["input_ids"] for text in GOLDEN["texts"]] == tokenizer.golden["ids"]
    assert set(tokenizer("a b")) == {"input_ids", "attention_mask"}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.unk_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.model_max_length == 64
    assert len(tokenizer) == len(read_model(tmp_path / "out" / "tokenizer.model").pieces) < 450
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]  # older versions add a third
    assert "auto_map" not in settings
    assert (tmp_path / "out/tokenizer.model").read_bytes() == base64.b64decode(tokenizer.golden["file"])
    assert not list((tmp_path / "out").glob("*.py"))


def test_saved_again_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "again")
    AutoConfig.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert [again(text)["input_ids"] for text in GOLDEN["texts"]] == tokenizer.golden["ids"]


def test_special_tokens_in_a_text_end_one_text_and_begin_another(tokenizer):
    one, two = tokenizer("table hello")["input_ids"], tokenizer("world")["input_ids"]
    assert tokenizer("table hello</s>world")["input_ids"] == [*one, 2, *two]


def test_the_first_token_is_added_where_the_settings_say_so_or_nothing(source, tmp_path):
    for index, (bos, eos) in enumerate([(True, True), (None, False)]):
        settings = SETTINGS | {"add_bos_token": bos, "add_eos_token": eos}
        settings = {key: value for key, value in settings.items() if value is not None}
        convert_checkpoint(str(with_tokenizer(source(WIDE), settings=settings)), tmp_path / f"out{index}")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / f"out{index}")
        inner = GOLDEN["models"]["plain"]["ids"][-1]
        assert tokenizer(GOLDEN["texts"][-1])["input_ids"] == [1, *inner, *([2] if eos else [])]
        pair = tokenizer("a", "b")["input_ids"]
        assert pair == tokenizer("a")["input_ids"] + tokenizer("b")["input_ids"]


def field(number, content):
    """A protocol buffer field: bytes, or an integer below 128."""
    if isinstance(content, int):
        return bytes(
            [number * 8 % 128 + 128 * (number > 15), *([number >> 4] if number > 15 else []), content]
        )
    return bytes([number * 8 + 2, len(content)]) + content


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (field(2, field(3, 1)), "it is not a BPE model"),
        (field(2, field(24, 1)), "treats spaces in an unusual way"),
        (field(3, field(5, 0)), "treats spaces in an unusual way"),
        (field(3, field(2, b"map")), "rewrites characters"),
        (field(3, field(4, 1)), "drops spaces and has symbols made of spaces"),
        (field(1, field(1, b"zq") + field(3, 5)), "repeated or unused pieces"),
        (field(1, field(1, b"a")), "repeated or unused pieces"),
        (field(1, field(1, b"aQ")), "its piece 'aQ' has a character that is no piece"),
        (b"\x0a\x7f", "is not a SentencePiece model, or is cut short"),
        (b"\x0b", "is not a SentencePiece model"),
    ],
)
def test_a_tokenizer_without_an_exact_counterpart_is_refused(source, more, words):
    refuse(with_tokenizer(source(WIDE), more=more), words)


def test_tokens_that_the_file_does_not_have(source):
    folder = with_tokenizer(source(WIDE), settings=SETTINGS | {"pad_token": "<pad>"})
    refuse(folder, "its token '<pad>' is not in tokenizer.model")
    with_tokenizer(folder, settings=SETTINGS | {"added_tokens_decoder": {"440": {"content": "<tool>"}}})
    refuse(folder, "its token '<tool>' is not in tokenizer.model")
    (with_tokenizer(folder) / "added_tokens.json").write_text('{"<more>": 441}')
    refuse(folder, "its token '<more>' is not in tokenizer.model")


def test_a_tokenizer_larger_than_the_model(source):
    refuse(with_tokenizer(source()), "has 4.. tokens, the model 53: not its tokenizer")
