"""Baichuan-7B and Baichuan2-7B as stock Llama checkpoints: the same function, without remote code.

Baichuan's 7B models are Llama (RMSNorm, SwiGLU, RoPE of base 10,000 on halves of each head) but for:

- ``W_pack``, one matrix ``(3 hidden, hidden)`` whose thirds are the query, key and value projections;
- Baichuan2's NormHead (Yang et al. 2023, arXiv 2309.10305, section 2.4): at every forward pass the rows of
  ``lm_head`` are scaled to unit L2 norm. They are scaled once here, in float64, and rounded to the dtype of
  the checkpoint: each entry is off by at most 2^-8 of itself in bfloat16, 2^-11 in float16, 2^-24 in float32.
  Baichuan's own code divides in the checkpoint's dtype and rounds at least as much.

Everything else is copied bit for bit. The folded head is an ordinary ``lm_head``: further training may let
the norms of its rows drift from 1, where Baichuan2 would have kept them; freeze the head if that matters.
vLLM, llama.cpp and the rest load the result as a Llama.

The 13B models have ALiBi in place of RoPE and are refused. What tells the models apart is in their config:
the 7B ones have ``max_position_embeddings``, the 13B ones ``model_max_length`` only; Baichuan-7B's class is
``BaiChuanForCausalLM`` (plain head), Baichuan2's ``BaichuanForCausalLM`` with a ``z_loss_weight`` (NormHead).
A config that says neither is refused, not guessed.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from skipwise.errors import InputError
from skipwise.files import whole_folder, write_json
from skipwise.models.load import find_checkpoint
from skipwise.models.shards import Shards, write_shards
from skipwise.models.spm import make_tokenizer, read_model
from skipwise.rope import legacy_rope_keys

THETA = 10_000.0
HEAD = "lm_head.weight"
BLOCK = 2**22
"""Entries of the head that are scaled at a time (32 MiB in float64)."""

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "max_position_embeddings",
)
_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": None}


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written. ``tokens`` is None when the checkpoint has no ``tokenizer.model``."""

    family: str
    norm_head: bool
    tensors: int
    size: int
    """Bytes of the weights."""
    files: int
    tokens: int | None


def convert_checkpoint(checkpoint: str, output: Path, *, max_shard_size: int | str = "2GB") -> Converted:
    """Write the Baichuan 7B model in ``checkpoint`` (folder or hub name) to ``output`` as a Llama checkpoint.

    Memory holds about one output shard. ``output`` appears whole or not at all. Raises InputError for a 13B
    model, one that is no Baichuan or already a Llama, quantized weights, tensors that are missing, unexpected
    or of another shape than the config says, a tokenizer that has no exact counterpart, an ``output`` that
    is there already.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is there already: name a new folder")
    folder = _folder(checkpoint)
    values = _read_json(folder / "config.json")
    norm_head = _has_norm_head(values, folder)
    config = _llama_config(values, folder)
    shards = Shards(folder)
    planned = _plan(config, shards, folder)
    config.dtype = planned[HEAD].dtype
    with whole_folder(output) as aside:
        tokens = _write_tokenizer(folder, aside, config)  # first: it may refuse, the weights take minutes
        files = write_shards(
            aside, planned, lambda name: _llama_tensor(shards, name, planned[name], norm_head), max_shard_size
        )
        config.save_pretrained(aside)
        config_file = aside / "config.json"
        write_json(config_file, _read_json(config_file) | legacy_rope_keys(config))
        for file in aside.iterdir():  # safetensors keeps its files from everybody else on the machine
            file.chmod(config_file.stat().st_mode)
    return Converted(
        family="Baichuan2-7B" if norm_head else "Baichuan-7B",
        norm_head=norm_head,
        tensors=len(planned),
        size=sum(each.nbytes for each in planned.values()),
        files=files,
        tokens=tokens,
    )


def _folder(checkpoint: str) -> Path:
    found = find_checkpoint(checkpoint)
    if found.gguf_file:
        raise InputError(f"{checkpoint} is a .gguf file: convert the original checkpoint folder")
    if Path(found.name).is_dir():
        return Path(found.name)
    patterns = ["*.json", "*.safetensors", "pytorch_model*.bin", "tokenizer.model"]  # and no Python files
    try:
        return Path(snapshot_download(found.name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{checkpoint} cannot be downloaded: {reason}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object")
    return values


def _has_norm_head(values: dict[str, Any], folder: Path) -> bool:
    """Whether this is Baichuan2 (and not Baichuan); InputError for everything that is neither at 7B."""
    kind, classes = values.get("model_type"), values.get("architectures") or []
    if kind == "llama":
        raise InputError(f"{folder} is a Llama checkpoint already: extend it as it is")
    if kind != "baichuan":
        raise InputError(f"{folder}: its model_type is {kind!r}; only Baichuan 7B models need converting")
    sizes = (values.get("hidden_size"), values.get("num_attention_heads"))
    if "max_position_embeddings" not in values or sizes == (5120, 40):
        raise InputError(
            f"{folder} is a Baichuan model with ALiBi in place of RoPE, as the 13B ones are (no "
            "max_position_embeddings, or their size): its window cannot be extended; take a 7B model"
        )
    if any(values.get(key) for key in ("quantization_config", "quantization_bit", "quantization_method")):
        raise InputError(f"{folder} holds quantized weights: convert the original checkpoint")
    if classes == ["BaichuanForCausalLM"] and "z_loss_weight" in values:
        return True
    if classes == ["BaiChuanForCausalLM"] and "z_loss_weight" not in values:
        return False
    raise InputError(
        f"{folder}: its config.json does not say whether its head is normalized: Baichuan2-7B has "
        '["BaichuanForCausalLM"] as architectures and a z_loss_weight, Baichuan-7B has '
        '["BaiChuanForCausalLM"] and none'
    )


def _llama_config(values: dict[str, Any], folder: Path) -> LlamaConfig:
    for key in _SIZES:
        if not isinstance(values.get(key), int) or values[key] < 1:
            raise InputError(f"{folder / 'config.json'}: {key} is missing or no positive number")
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    usual = {
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "num_key_value_heads": heads,
        "rope_theta": THETA,
        "rope_scaling": None,
    }
    odd = next((key for key, value in usual.items() if values.get(key, value) != value), None)
    if odd or hidden % (2 * heads):
        raise InputError(
            f"{folder / 'config.json'}: {odd or 'hidden_size'} is {values[odd or 'hidden_size']!r}, which no "
            "Baichuan 7B model has: what its code makes of that is not known"
        )
    optional: dict[str, Any] = {
        key: values[key]
        for key in ("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
        if key in values
    }
    return LlamaConfig(
        **{key: values[key] for key in _SIZES},
        **optional,
        rms_norm_eps=values.get("rms_norm_eps", 1e-6),
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        architectures=["LlamaForCausalLM"],
    )


def _plan(config: LlamaConfig, shards: Shards, folder: Path) -> dict[str, torch.Tensor]:
    """A meta tensor for every weight of stock Llama, in its source's dtype; InputError if one differs."""
    with torch.device("meta"):
        wanted = LlamaForCausalLM(config).state_dict()
    sources: dict[str, list[int]] = {}
    for name, weight in wanted.items():
        source, _, parts = _source(name)
        sources[source] = [weight.shape[0] * parts, *weight.shape[1:]]
    # Old versions of `transformers` saved the rotary frequencies too; the config gives them.
    found = {key: each for key, each in shards.tensors.items() if not key.endswith("rotary_emb.inv_freq")}
    for what, names in (
        ("lacks", sources.keys() - found.keys()),
        ("also has", found.keys() - sources.keys()),
    ):
        if names:
            raise InputError(
                f"{folder}: not the tensors of its config: it {what} {min(names)} ({len(names)} such)"
            )
    for source, shape in sources.items():
        if list(found[source].shape) != shape:
            stored = list(found[source].shape)
            raise InputError(f"{folder}: {source} has shape {stored}, its config says {shape}")
    return {name: each.to(found[_source(name)[0]].dtype) for name, each in wanted.items()}


def _source(name: str) -> tuple[str, int, int]:
    """Where a Llama weight is in Baichuan: the tensor, which part of its rows, and of how many."""
    match = re.search(r"self_attn\.([qkv])_proj\.", name)
    if match is None:
        return name, 0, 1
    return name.replace(f"{match[1]}_proj", "W_pack"), "qkv".index(match[1]), 3


def _llama_tensor(shards: Shards, name: str, planned: torch.Tensor, norm_head: bool) -> torch.Tensor:
    source, part, _ = _source(name)
    count = planned.shape[0]
    weight = shards.rows(source, part * count, (part + 1) * count)
    if norm_head and name == HEAD:
        for block in weight.split(max(1, BLOCK // weight.shape[1])):
            block.copy_(torch.nn.functional.normalize(block.double()))
    return weight


def _write_tokenizer(folder: Path, aside: Path, config: LlamaConfig) -> int | None:
    """A stock tokenizer with the ids of ``tokenizer.model``, which is kept beside it for other engines."""
    model_file, settings_file = folder / "tokenizer.model", folder / "tokenizer_config.json"
    if not model_file.is_file():
        return None
    model = read_model(model_file)
    settings = _read_json(settings_file) if settings_file.is_file() else {}
    names = {key: _content(settings.get(key, usual)) for key, usual in _TOKENS.items()}
    known = {piece.text for piece in model.pieces}
    added_file = folder / "added_tokens.json"
    added = _read_json(added_file).keys() if added_file.is_file() else ()
    later = {_content(each) for each in settings.get("added_tokens_decoder", {}).values()}
    unknown = sorted({each for each in (*names.values(), *added, *later) if each} - known)
    if unknown:
        raise InputError(f"{folder}: its token {unknown[0]!r} is not in tokenizer.model: not supported")
    if len(model.pieces) > config.vocab_size:
        raise InputError(
            f"{model_file} has {len(model.pieces)} tokens, the model {config.vocab_size}: not its tokenizer"
        )
    around = {  # Baichuan's code puts <s> first unless its settings say otherwise; they do
        "bos": names["bos_token"] if settings.get("add_bos_token", True) else None,
        "eos": names["eos_token"] if settings.get("add_eos_token", False) else None,
    }
    special = sorted({each for each in names.values() if each})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(model, special, **around),
        **{key: name for key, name in names.items() if name},
        add_bos_token=around["bos"] is not None,
        add_eos_token=around["eos"] is not None,
        model_max_length=config.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(aside)
    saved = aside / "tokenizer_config.json"  # the class under the name that older readers know too
    write_json(saved, _read_json(saved) | {"tokenizer_class": "PreTrainedTokenizerFast"})
    shutil.copyfile(model_file, aside / "tokenizer.model")
    return len(model.pieces)


def _content(token: Any) -> str | None:
    """The text of a token that is given as such or as the object of an ``AddedToken``."""
    return token.get("content") if isinstance(token, dict) else token
