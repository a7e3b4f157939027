"""Checkpoints that `skipwise.models.load` does not take as they are: what can be done about each.

What decides is in ``config.json`` and in the names of the files: nothing is built, no code is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from skipwise.errors import InputError
from skipwise.models.load import Checkpoint


def check_stock_config(checkpoint: Checkpoint) -> None:
    """InputError, with the way out, for a config that only code beside the checkpoint could read.

    For a Baichuan 7B model that way is ``skipwise convert``. What is no config at all is left to the loader.
    """
    values = _config_values(checkpoint)
    kind, name = values.get("model_type"), checkpoint.path
    if kind in CONFIG_MAPPING or "auto_map" not in values:
        return
    if kind != "baichuan":
        raise InputError(
            f"{name} needs code of its own (transformers has no model_type {kind!r}), which is never run: "
            "take a checkpoint of an architecture that transformers has"
        )
    if "max_position_embeddings" not in values:  # as `skipwise.models.convert` tells them apart
        raise InputError(
            f"{name} is a Baichuan model with ALiBi in place of RoPE, as the 13B ones are: its window cannot "
            "be extended; take a 7B model"
        )
    raise InputError(
        f"{name} is a Baichuan 7B model, which transformers reads with remote code only: make a Llama "
        f"checkpoint of it first: skipwise convert {name} NEW-FOLDER"
    )


def check_safetensors(checkpoint: Checkpoint) -> None:
    """InputError, with the way out, for a folder whose weights are in ``.bin`` files only."""
    folder = Path(checkpoint.name)
    if checkpoint.gguf_file or any(folder.glob("*.safetensors")) or not any(folder.glob("*.bin")):
        return
    raise InputError(
        f"{checkpoint.path} has its weights in .bin files, which are not read, since such files can hold "
        "code: load it with transformers and save_pretrained it to a new folder, as safetensors"
    )


def _config_values(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.gguf_file:
        return {}
    try:
        values, _ = PretrainedConfig.get_config_dict(checkpoint.name)
    except (OSError, ValueError):
        return {}
    return dict(values)
