"""The name of a model, or the address of a server -> a `Reader`, and the record of what is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from skipwise.errors import InputError
from skipwise.evals.local import LocalReader
from skipwise.evals.run import fingerprint
from skipwise.evals.served import ServedReader
from skipwise.models.hints import check_stock_config
from skipwise.models.load import Checkpoint, find_checkpoint, load_config, load_model, load_tokenizer
from skipwise.rope import text_config
from skipwise.scores import Subject

_WHOLE, _EVERY, _BLOCK = 2**30, 2**20, 2**12
"""Bytes: a weight file of up to so many is hashed whole, of a larger one a block in every so many."""


def open_local(
    model: str,
    *,
    name: str,
    device: str,
    dtype: str = "auto",
    attention: str = "auto",
    piece: int | None = None,
) -> LocalReader:
    """The checkpoint ``model`` (folder, hub name, .gguf file) in memory.

    ``dtype`` ``auto``: that of the checkpoint on a GPU, float32 on the CPU. ``piece``: see `LocalReader`.
    Raises InputError for what cannot be loaded.
    """
    checkpoint = find_checkpoint(model)
    check_stock_config(checkpoint)
    config = load_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    chosen = _dtype(dtype, config, device)
    loaded = load_model(checkpoint, config, dtype=chosen, attention=attention, device=device)
    subject = describe(loaded.config, tokenizer, name=name, checkpoint=checkpoint)
    return LocalReader(
        loaded,
        tokenizer,
        subject.model_copy(
            update={
                "dtype": str(chosen).removeprefix("torch."),
                "attention": text_config(loaded.config)._attn_implementation,
            }
        ),
        piece=piece,
    )


def open_served(
    base_url: str, *, name: str, model: str | None = None, tokenizer: str | None = None, rows: int = 4
) -> ServedReader:
    """The server at ``base_url``; ``tokenizer``: the checkpoint that it serves, for its tokenizer and config.

    Raises InputError without ``tokenizer``, and as `ServedReader`.
    """
    if tokenizer is None:
        raise InputError(
            "a served model is asked in tokens: name the checkpoint that it serves (or one with the same "
            "tokenizer) with --tokenizer"
        )
    checkpoint = find_checkpoint(tokenizer)
    loaded = load_tokenizer(checkpoint)
    subject = describe(load_config(checkpoint), loaded, name=name, checkpoint=checkpoint)
    return ServedReader(base_url, loaded, subject, model=model, rows=rows)


def describe(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, *, name: str, checkpoint: Checkpoint
) -> Subject:
    """What `scores.json` says of a checkpoint."""
    text = text_config(config)
    return Subject(
        name=name,
        path=checkpoint.path,
        revision=_revision(config, checkpoint),
        rope_parameters=dict(getattr(text, "rope_parameters", None) or {}),
        window=int(getattr(text, "max_position_embeddings", None) or 0),
        tokenizer=fingerprint(tokenizer.get_vocab()),
    )


def _dtype(name: str, config: PretrainedConfig, device: str) -> torch.dtype:
    if name == "auto":
        own = getattr(text_config(config), "dtype", None)
        return own if device != "cpu" and isinstance(own, torch.dtype) else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise InputError(f"--dtype {name!r}: must be auto, {', '.join(known)}")
    return known[name]


def _revision(config: PretrainedConfig, checkpoint: Checkpoint) -> str:
    """The commit of a hub model, or a hash over the config and the weight files of a folder."""
    folder = Path(checkpoint.name)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None) or "")
    files = [folder / checkpoint.gguf_file] if checkpoint.gguf_file else sorted(folder.glob("*.safetensors"))
    found = hashlib.sha256()
    if (folder / "config.json").is_file():
        found.update((folder / "config.json").read_bytes())
    for path in files:
        size = path.stat().st_size
        found.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, _EVERY):  # training may leave all but some layers as they were
                file.seek(start)
                found.update(file.read(_EVERY if size <= _WHOLE else _BLOCK))
    return found.hexdigest()[:16]
