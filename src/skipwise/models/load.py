"""Checkpoints in: a Hugging Face folder, a hub name, or a GGUF file; never remote code, never pickles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from skipwise.errors import InputError
from skipwise.models.attention import resolve_attention
from skipwise.models.gptj import TABLE_FAMILIES, as_phi, with_small_table
from skipwise.models.repairs import repair


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a model is: a folder or hub name, and the file inside it when it is a GGUF file."""

    name: str
    gguf_file: str | None = None

    @property
    def path(self) -> str:
        """The name for messages, the file included."""
        return f"{self.name}/{self.gguf_file}" if self.gguf_file else self.name

    @property
    def arguments(self) -> dict[str, Any]:
        """What every ``from_pretrained`` call needs besides the name."""
        extra = {"gguf_file": self.gguf_file} if self.gguf_file else {}
        return {"trust_remote_code": False, **extra}


def find_checkpoint(model: str) -> Checkpoint:
    """What ``model`` names. Raises InputError for a path that is not there or holds no checkpoint."""
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return Checkpoint(str(path.parent), path.name)
    if path.is_file():
        raise InputError(f"{model} is a file: give a .gguf file or a checkpoint folder")
    if path.is_dir():
        return _checkpoint_folder(path)
    if _looks_like_hub_name(model):
        return Checkpoint(model)
    raise InputError(f"{model}: no such checkpoint folder or file")


def load_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The model's config."""
    config: PretrainedConfig = _load(AutoConfig, checkpoint)
    return config


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The model's tokenizer, as it is: no pad token is added, so the vocabulary cannot grow."""
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, checkpoint)
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # made up where a folder holds none
        raise InputError(f"{checkpoint.path} has no tokenizer files: copy them there from the original model")
    return tokenizer


def load_model(
    checkpoint: Checkpoint,
    config: PretrainedConfig | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
    device: str = "cpu",
    gradient_checkpointing: bool = False,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """The model with its weights in ``dtype``, under ``config`` if one is given.

    With ``quantization`` its linear layers are held in 4 or 8 bits, for adapters to be trained beside them.

    A GPT-J or CodeGen checkpoint becomes the Phi model that computes the same (`skipwise.models.gptj`).
    The rotary frequencies stay in float32 and windows are cut by position (`skipwise.models.repairs`). Raises
    InputError when weights are missing or of another shape than the config says (`transformers` would go on
    with random ones), for windows that ``attention`` cannot cut by position, and for an ``attention`` that is
    not installed (``auto``: `skipwise.models.attention`).
    """
    config = config or load_config(checkpoint)
    attention = resolve_attention(config, attention)
    model: PreTrainedModel
    if quantization and (checkpoint.gguf_file or config.model_type in TABLE_FAMILIES):
        what = "a GGUF file" if checkpoint.gguf_file else f"{config.model_type}, which becomes another model"
        raise InputError(f"{checkpoint.path}: {what} cannot be quantised: set adapter.quantize to none")
    if config.model_type in TABLE_FAMILIES:
        model = as_phi(_weights(checkpoint, with_small_table(config), dtype, "eager"), config, attention)
    else:
        placed = {"quantization_config": quantization, "device_map": {"": device}} if quantization else {}
        model = _weights(checkpoint, config, dtype, attention, **placed)
    repair(model)
    model.config.use_cache = False
    if gradient_checkpointing:
        # transformers 5.23 renamed it
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        try:
            enable({"use_reentrant": False})
        except ValueError as error:
            raise InputError(
                f"{model.config.model_type} has no gradient checkpointing in transformers: leave it off"
            ) from error
    return model if quantization else torch.nn.Module.to(model, device)


def _weights(
    checkpoint: Checkpoint, config: PretrainedConfig, dtype: torch.dtype, attention: str, **options: Any
) -> PreTrainedModel:
    """The model of ``config`` with every one of its weights read from the checkpoint."""
    options |= {"config": config, "dtype": dtype, "attn_implementation": attention}
    if checkpoint.gguf_file:
        options |= _dequantize()
    else:
        options["use_safetensors"] = True
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # reported in one line below
    model: PreTrainedModel
    model, found = _load(AutoModelForCausalLM, checkpoint, **options)
    absent = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if absent and len(absent) == len(model.state_dict()) and len(found["unexpected_keys"]) > len(absent):
        raise InputError(
            f"{checkpoint.path}: the weights of its language model lie inside those of a larger model, where "
            "transformers does not find them: save that part as a checkpoint of its own"
        )
    if absent:
        raise InputError(
            f"{checkpoint.path}: its weights are not those of its config: {absent[0]} is missing or has "
            f"another shape ({len(absent)} such)"
        )
    if type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{checkpoint.path}: its language model ({model.config.model_type}) is part of a larger model "
            "and cannot be saved as a checkpoint of its own"
        )
    return model


def _load(loader: Any, checkpoint: Checkpoint, **options: Any) -> Any:
    try:
        return loader.from_pretrained(checkpoint.name, **checkpoint.arguments, **options)
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        attention = options.get("attn_implementation")
        if attention and "does not support" in reason:  # with a link to the tracker of transformers
            reason = f"its family has no {attention} attention in transformers: set attention to eager"
        raise InputError(f"{checkpoint.path} cannot be loaded: {reason}") from error


def _dequantize() -> dict[str, Any]:
    """Newer `transformers` keeps GGUF weights packed, which can be neither trained nor saved."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _checkpoint_folder(path: Path) -> Checkpoint:
    if (path / "config.json").is_file():
        return Checkpoint(str(path))
    gguf_files = sorted(path.glob("*.gguf"))
    if len(gguf_files) == 1:
        return Checkpoint(str(path), gguf_files[0].name)
    if gguf_files:
        raise InputError(f"{path} holds {len(gguf_files)} .gguf files: name one of them")
    raise InputError(f"{path} has no config.json and no .gguf file: it is not a checkpoint folder")


def _looks_like_hub_name(model: str) -> bool:
    parts = model.split("/")
    return len(parts) == 2 and all(parts) and not model.startswith((".", "~"))
