"""Low-rank adapters through PEFT: put on a loaded model for training, merged into stock weights for export.

LoRA (Hu et al. 2021) trains two factors of rank r beside each linear layer; LongLoRA (Chen et al. 2023) found
that a longer window also wants the embeddings and the norms trained; QLoRA (Dettmers et al. 2023) holds what
is frozen in 4 bits. What is trained is float32 unless the recipe says otherwise; what is frozen has the
precision of the matrix products. ``position_ids`` pass through LoRA, which the probes check on the wrapped
model (prompt tuning, which is not offered, drops them).
"""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from skipwise.config import AdapterRecipe, TrainingRecipe
from skipwise.errors import InputError

WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def half_products(recipe: TrainingRecipe, device: str) -> bool:
    """Whether matrix products are bfloat16 on ``device`` (``"cpu"``, ``"cuda:0"``)."""
    return recipe.precision == "bfloat16" or (recipe.precision == "auto" and device.startswith("cuda"))


def loaded_dtype(recipe: TrainingRecipe, device: str) -> torch.dtype:
    """What to load the checkpoint's weights in: trained ones as ``recipe.weights`` says, and frozen ones in
    the precision of the matrix products.
    """
    frozen_half = recipe.adapter is not None and half_products(recipe, device)
    return torch.bfloat16 if frozen_half else WEIGHTS[recipe.weights]


def quantization(recipe: TrainingRecipe, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How `skipwise.models.load.load_model` quantises the frozen weights, whose products are ``dtype``.

    Raises InputError when bitsandbytes is needed and not installed.
    """
    kind = recipe.adapter.quantize if recipe.adapter else "none"
    if kind == "none":
        return None
    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"training.adapter.quantize = {kind} needs bitsandbytes: pip install bitsandbytes, or choose none"
        )
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def add_adapter(
    model: PreTrainedModel, recipe: AdapterRecipe, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> PreTrainedModel:
    """``model`` with adapters that change nothing yet, as PEFT's ``PeftModel``: they alone are trained.

    ``model`` itself gets the adapters in its layers and its weights are frozen; with ``recipe.embeddings``
    or ``recipe.norms`` copies of these are trained besides. ``dtype``: of what is trained. ``seed``: of the
    first factors, which are random (the second are zero). Raises InputError when PEFT is not installed, and
    for ``targets`` that no layer is called.
    """
    peft = _peft()
    tied = bool(recipe.embeddings and model.config.tie_word_embeddings)
    also = ([_embedding_name(model)] if recipe.embeddings else []) + (
        _norm_names(model) if recipe.norms else []
    )
    config = peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.targets) or "all-linear",
        modules_to_save=also or None,
        ensure_weight_tying=tied,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return _wrapped(model, config, dtype)


def merged(model: PreTrainedModel, base: PreTrainedModel | None = None) -> PreTrainedModel:
    """The stock model that computes what the adapted ``model`` does; one without adapters comes back.

    The adapters are added to the weights of ``model``, in place; or to those of ``base``, the same checkpoint
    loaded again, which a quantised model needs: nothing of its rounding is then exported.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    adapted: Any = model
    if getattr(model, "is_quantized", False):
        if base is None:
            raise ValueError("a quantised model cannot be merged: give the base, loaded without quantization")
        peft = _peft()
        state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        adapted = _wrapped(base, adapted.peft_config["default"], torch.float32)
        peft.set_peft_model_state_dict(adapted, state)
    return cast(PreTrainedModel, adapted.merge_and_unload())


def _wrapped(model: PreTrainedModel, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT about a name that transformers 5.23 changed
            found = _peft().get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"training.adapter: {str(error).splitlines()[0]}") from error
    for weight in found.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(dtype)  # PEFT leaves the copies of embeddings and norms as they were
    return cast(PreTrainedModel, found)


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError as error:
        raise InputError(
            "training.adapter needs PEFT: pip install 'skipwise[lora]', or leave it empty"
        ) from error


def _embedding_name(model: PreTrainedModel) -> str:
    embeddings = model.get_input_embeddings()
    path: str = next(name for name, each in model.named_modules() if each is embeddings)
    return path.rpartition(".")[2]


def _norm_names(model: PreTrainedModel) -> list[str]:
    """The last parts of the names of the modules that have a weight a channel and nothing else."""
    found = set()
    for name, module in model.named_modules():
        weights = list(module.parameters())
        if weights and not list(module.children()) and all(each.ndim == 1 for each in weights):
            found.add(name.rpartition(".")[2])
    return sorted(found)
