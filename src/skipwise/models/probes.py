"""Probes: does this model, as it stands, learn from rows with skipped positions?

Several libraries silently cut a row at every jump of ``position_ids``, ignore the positions, or round them.
Training then runs, the loss falls, and nothing about distance is taught. Each probe costs a few short
forward passes on the very model that will be trained, in the mode and with the arguments training uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from transformers import PreTrainedModel

from skipwise.errors import RunError

CHUNK = 8
"""Tokens in each of the two chunks of a probe row."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the probes found. Influences are the largest absolute change of any logit.

    reaches: token 0 changed, effect on chunk 2 (0 when the chunks are cut apart).
    leaks: the last token changed, effect on the tokens before it (0 when causal).
    gap: the skip made larger, effect on chunk 2 (0 when positions are ignored).
    gap_leak: the same, effect on chunk 1 (0 when chunk 1 is computed from its own positions only).
    angle_error: largest error of the model's cos and sin at the far end of the target, against float64.
    angle_bound: what float32 allows there.
    """

    reaches: float
    leaks: float
    gap: float
    gap_leak: float
    angle_error: float
    angle_bound: float

    def failures(self) -> list[str]:
        """One sentence for each probe that does not hold."""
        found = []
        if self.reaches == 0.0:
            found.append("token 0 does not reach chunk 2: the attention mask cuts the row at the skip")
        if self.leaks > 0.0:
            found.append("a later token changes an earlier one: the attention is not causal")
        if self.gap == 0.0:
            found.append("a larger skip changes nothing: the model ignores position_ids")
        if self.gap_leak > 0.0 and self.leaks == 0.0:  # a leak carries the skip to chunk 1 by itself
            found.append("a skip after chunk 1 changes chunk 1: positions are not used one by one")
        if not self.angle_error <= self.angle_bound:
            found.append(
                f"rotary angles at the target are off by {self.angle_error:.2g} (float32 allows "
                f"{self.angle_bound:.2g}): keep inv_freq in float32 and TF32 off"
            )
        return found


def check(model: PreTrainedModel, target_length: int) -> ProbeReport:
    """Run every probe on ``model`` and return what was found; raises RunError when one does not hold."""
    report = probe(model, target_length)
    failures = report.failures()
    if failures:
        raise RunError(f"{model.config.model_type} is not ready for skipped positions: {'; '.join(failures)}")
    return report


def probe(model: PreTrainedModel, target_length: int) -> ProbeReport:
    """Run every probe on ``model`` and return what was found."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (1, 2 * CHUNK), generator=generator).to(model.device)
    far = max(target_length - 2 * CHUNK, 1)
    near = max(far // 2, 0)
    angle_error, angle_bound = _angles(model, target_length)  # first: it names a model without RoPE
    with _as_in_training(model):
        plain = _logits(model, tokens, near)
        other_first = _logits(model, _change(model, tokens, 0), near)
        other_last = _logits(model, _change(model, tokens, -1), near)
        wider = _logits(model, tokens, far)
    return ProbeReport(
        reaches=_largest(plain[CHUNK:] - other_first[CHUNK:]),
        leaks=_largest(plain[:-1] - other_last[:-1]),
        gap=_largest(plain[CHUNK:] - wider[CHUNK:]),
        gap_leak=_largest(plain[:CHUNK] - wider[:CHUNK]),
        angle_error=angle_error,
        angle_bound=angle_bound,
    )


@contextmanager
def _as_in_training(model: PreTrainedModel) -> Iterator[None]:
    """Training mode (gradient checkpointing acts only there), dropout silenced, no gradients kept."""
    was_training = model.training
    model.train()
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for module in dropouts:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _logits(model: PreTrainedModel, tokens: torch.Tensor, skip: int) -> torch.Tensor:
    """Logits ``(2 * CHUNK, vocabulary)`` of a two-chunk row with ``skip`` positions left out between."""
    position_ids = torch.arange(2 * CHUNK, device=tokens.device)[None].clone()
    position_ids[:, CHUNK:] += skip
    outputs = model(
        input_ids=tokens, position_ids=position_ids, attention_mask=torch.ones_like(tokens), use_cache=False
    )
    logits: torch.Tensor = outputs.logits[0].float()
    return logits


def _change(model: PreTrainedModel, tokens: torch.Tensor, index: int) -> torch.Tensor:
    changed = tokens.clone()
    changed[0, index] = (changed[0, index] + model.config.vocab_size // 2) % model.config.vocab_size
    return changed


def _largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


def _angles(model: PreTrainedModel, target_length: int) -> tuple[float, float]:
    """Error of the cos and sin the model computes near the target's end, and what float32 allows there."""
    rotary = next((module for module in model.modules() if hasattr(module, "inv_freq")), None)
    if rotary is None:
        raise RunError(f"{model.config.model_type} has no rotary embedding module to check")
    positions = torch.arange(max(target_length - 64, 0), target_length, device=model.device)
    dtype = torch.float32
    cos, sin = rotary(torch.zeros(1, dtype=dtype, device=model.device), positions[None])
    angles = positions.double()[:, None] * _exact_frequencies(model, rotary)
    scale = float(cast(float, rotary.attention_scaling))
    half = angles.shape[-1]
    error = max(
        _largest(cos[0, :, :half].double() - scale * angles.cos()),
        _largest(sin[0, :, :half].double() - scale * angles.sin()),
    )
    # An angle near p is known to half a unit in its last place, the frequency to one part in 2^24.
    bound = scale * (2.0 * target_length * torch.finfo(dtype).eps + 1e-5)
    return error, bound


def _exact_frequencies(model: PreTrainedModel, rotary: torch.nn.Module) -> torch.Tensor:
    """The frequencies the config asks for, from a fresh float32 module (a buffer that was cast differs)."""
    fresh = cast(torch.Tensor, type(rotary)(model.config).inv_freq)
    return fresh.double().to(model.device)
