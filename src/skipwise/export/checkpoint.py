"""A stock checkpoint: safetensors, tokenizer, and a config that every engine reads the same way."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from skipwise.errors import RunError
from skipwise.files import whole_folder, write_json
from skipwise.rope import attention_scale_for_vllm, legacy_rope_keys, model_window, text_config


def export_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write ``model`` and ``tokenizer`` to ``folder``, which appears whole or not at all.

    With ``dtype`` (usually the one of the checkpoint that was extended) the weights of ``model`` are cast in
    place first.

    The config says the new window in ``max_position_embeddings`` and gives the RoPE twice: as
    ``rope_parameters`` and under the older keys. Plain ``from_pretrained`` must give the same logits as
    ``model``, bit for bit, before the folder gets its name; RunError otherwise.
    """
    # Mixed-precision training leaves Accelerate's autocast around model.forward: stock loading has none.
    model = extract_model_from_parallel(model, keep_fp32_wrapper=False)
    window = model_window(model.config)
    for parameter in model.parameters():  # not model.to(dtype), which would round the rotary frequencies
        parameter.data = parameter.data.to(dtype or parameter.dtype)
    with whole_folder(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.model_max_length = window
        tokenizer.save_pretrained(aside)
        config_file = aside / "config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config |= legacy_rope_keys(model.config)
        attention_scale_for_vllm(config)
        config["use_cache"] = True  # off during training only
        write_json(config_file, config)
        for file in aside.iterdir():  # safetensors keeps its files from everybody else on the machine
            file.chmod(config_file.stat().st_mode)
        _check_same_logits(model, aside)


@torch.inference_mode()
def _check_same_logits(model: PreTrainedModel, folder: Path) -> None:
    attention = model.config._attn_implementation
    reloaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=model.dtype, attn_implementation=attention, trust_remote_code=False
    )
    torch.nn.Module.to(reloaded, model.device)
    count = min(16, text_config(model.config).vocab_size)
    tokens = torch.arange(count, device=model.device)[None]
    far = model_window(model.config) - count
    position_ids = tokens + torch.tensor([far], device=model.device)
    was_training = model.training
    model.eval()
    expected, found = (
        each(input_ids=tokens, position_ids=position_ids, use_cache=False).logits
        for each in (model, reloaded)
    )
    model.train(was_training)
    if not torch.equal(expected, found):
        worst = float((expected - found).abs().max())
        raise RunError(
            f"the exported checkpoint gives other logits than the trained model (off by {worst:.2g})"
        )
