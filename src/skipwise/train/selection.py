"""Which weights are trained: all, or those of the parts named; the rest stays bit for bit.

Interpolation changes how attention reads positions. What the MLPs and embeddings hold need not follow, and
what is frozen needs neither gradients nor moments: in a Llama of 7B, attention is a third of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from transformers import PreTrainedModel

from skipwise.errors import InputError


def train_only(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Freeze every weight of ``model`` but those with one of ``names`` among the parts of their own.

    ``self_attn`` is a part of ``model.layers.0.self_attn.q_proj.weight``, and so are ``layers.0`` and
    ``q_proj.weight``; ``attn`` is not. A tensor under several names (tied embeddings) is trained if one of
    them fits. What was frozen stays so. Without ``names`` nothing changes. Raises InputError for a name that
    fits no weight that is trained, and the model is then as it was.
    """
    if not names:
        return
    trained = {
        name: weight
        for name, weight in model.named_parameters(remove_duplicate=False)
        if weight.requires_grad
    }
    kept: set[int] = set()
    for name in names:
        fitting = [id(weight) for full, weight in trained.items() if f".{name}." in f".{full}."]
        if not fitting:
            raise InputError(_no_such_part(name, trained, model.config.model_type))
        kept.update(fitting)
    for weight in trained.values():
        weight.requires_grad_(id(weight) in kept)


def _no_such_part(name: str, trained: Iterable[str], kind: str) -> str:
    """The message, with the parts that may be meant: those spelled alike, or else all."""
    parts = {part for full in trained for part in full.split(".") if not part.isdecimal()}
    alike = get_close_matches(name, sorted(parts)) or sorted(each for each in parts if name and name in each)
    meant = f"did you mean {' or '.join(alike)}?" if alike else f"it has {', '.join(sorted(parts))}"
    return f"training.only: {kind} has no part {name!r} to train; {meant}"
