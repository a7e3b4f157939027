"""Probes: does this model, as it stands, learn from rows with skipped positions?

Several libraries silently cut a row at every jump of ``position_ids``, ignore the positions, or round them.
Training then runs, the loss falls, and nothing about distance is taught. Each probe costs a few short
forward passes on the very model that will be trained, in the mode and with the arguments training uses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from skipwise.errors import RunError
from skipwise.models.gptj import TABLE_FAMILIES
from skipwise.models.repairs import rotary_modules
from skipwise.models.windows import SPANS, decoder_of, windowed_layers
from skipwise.rope import text_config

CHUNK = 8
"""Tokens in each of the two chunks of a probe row."""

ORACLE_SKIP = 24
"""Positions left out between the chunks of the row that is compared with its long row."""

ORACLE_SPAN = CHUNK + ORACLE_SKIP
"""Length of windows during that comparison: half of the pairs across the skip are within it by position, and
all of them by index."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the probes found. Influences are the largest absolute change of any logit.

    reaches: token 0 changed, effect on chunk 2 (0 when the chunks are cut apart).
    leaks: the last token changed, effect on the tokens before it (0 when causal).
    gap: the skip made larger, effect on chunk 2 (0 when positions are ignored).
    gap_leak: the same, effect on chunk 1 (0 when chunk 1 is computed from its own positions only).
    oracle_error: difference between the logits of a row and of the long row that it stands for, in which the
        skipped tokens are masked out; root mean square, relative to the spread of the logits.
    oracle_bound: what rounding allows there.
    noise: what rounding allows of ``leaks`` and ``gap_leak``: experts compute on tokens in groups.
    angle_error: largest error of the model's cos and sin at the far end of the target, against float64.
    angle_bound: what float32 allows there.
    """

    reaches: float
    leaks: float
    gap: float
    gap_leak: float
    oracle_error: float
    oracle_bound: float
    noise: float
    angle_error: float
    angle_bound: float

    def failures(self) -> list[str]:
        """One sentence for each probe that does not hold."""
        found = []
        if self.reaches == 0.0:
            found.append("token 0 does not reach chunk 2: the attention mask cuts the row at the skip")
        if self.leaks > self.noise:
            found.append("a later token changes an earlier one: the attention is not causal")
        if self.gap == 0.0:
            found.append("a larger skip changes nothing: the model ignores position_ids")
        if self.gap_leak > self.noise >= self.leaks:  # a leak carries the skip to chunk 1 by itself
            found.append("a skip after chunk 1 changes chunk 1: positions are not used one by one")
        if not found and not self.oracle_error <= self.oracle_bound:  # what was found explains it
            found.append(
                f"a row is not the long row with its skipped tokens masked out (off by "
                f"{self.oracle_error:.2g}): windows are cut by index, or some layers are no attention"
            )
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
    tokens = torch.randint(0, _vocabulary(model), (1, 2 * CHUNK), generator=generator).to(model.device)
    far = max(target_length - 2 * CHUNK, 1)
    near = int(min(far // 2, max(_sight(model) - CHUNK - 1, 0)))
    angle_error, angle_bound = _angles(model, target_length)  # first: it names a model without RoPE
    with _as_in_training(model):
        plain = _logits(model, tokens, near)
        other_first = _logits(model, _change(model, tokens, 0), near)
        other_last = _logits(model, _change(model, tokens, -1), near)
        wider = _logits(model, tokens, far)
        oracle_error = _oracle(model, tokens, min(ORACLE_SKIP, max(target_length - 2 * CHUNK, 0)))
    rounding = 1e-3 if model.dtype.itemsize >= 4 else 0.05
    return ProbeReport(
        reaches=_largest(plain[CHUNK:] - other_first[CHUNK:]),
        leaks=_largest(plain[:-1] - other_last[:-1]),
        gap=_largest(plain[CHUNK:] - wider[CHUNK:]),
        gap_leak=_largest(plain[:CHUNK] - wider[:CHUNK]),
        oracle_error=oracle_error,
        oracle_bound=rounding,
        noise=rounding * float(plain.std()),
        angle_error=angle_error,
        angle_bound=angle_bound,
    )


def _sight(model: PreTrainedModel) -> float:
    """How many positions the layer that sees furthest looks back."""
    config = decoder_of(model).config
    spans = windowed_layers(config)
    everywhere = set(getattr(config, "layer_types", None) or spans) <= set(spans)
    return max(spans.values()) if spans and everywhere else math.inf


@contextmanager
def _as_in_training(model: PreTrainedModel) -> Iterator[None]:
    """Training mode (gradient checkpointing acts only there), dropout silenced, no gradients kept."""
    was_training = model.training
    model.train()
    silent = [
        (owner, key, 0.0)
        for owner in (decoder_of(model).config, *model.modules())
        for key, value in vars(owner).items()
        if isinstance(value, float)
        and ("drop" in key or (key == "p" and isinstance(owner, torch.nn.Dropout)))
    ]
    try:
        with torch.no_grad(), _replaced(silent):
            yield
    finally:
        model.train(was_training)


@contextmanager
def _replaced(values: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes ``(owner, name, value)`` set for a while."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in values]
    try:
        for owner, name, value in values:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


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
    size = _vocabulary(model)
    changed[0, index] = (changed[0, index] + size // 2) % size
    return changed


def _vocabulary(model: PreTrainedModel) -> int:
    return int(text_config(model.config).vocab_size)


def _largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


def _oracle(model: PreTrainedModel, tokens: torch.Tensor, skip: int) -> float:
    """Relative difference of a row with ``skip`` from its long row: filler at the skipped places, masked."""
    filler = torch.full((1, skip), _vocabulary(model) - 1, device=tokens.device)
    long = torch.cat((tokens[:, :CHUNK], filler, tokens[:, CHUNK:]), dim=1)
    mask = torch.ones_like(long)
    mask[:, CHUNK : CHUNK + skip] = 0
    positions = torch.arange(long.shape[1], device=tokens.device)[None]
    with _short_windows(model):
        row = _logits(model, tokens, skip)
        expected = model(input_ids=long, position_ids=positions, attention_mask=mask, use_cache=False).logits
    expected = expected[0, mask[0] == 1].float()
    spread = (expected - expected.mean(dim=-1, keepdim=True)).square().mean().sqrt()
    return float((row - expected).square().mean().sqrt() / spread)


def _short_windows(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Windows and chunks so short that a row of some dozens of positions reaches beyond them."""
    config = decoder_of(model).config
    keys = {SPANS[kind] for kind in windowed_layers(config)}
    owners = (config, *model.modules())  # modules keep a copy of it for flash attention
    lengths = [(owner, key, vars(owner).get(key)) for owner in owners for key in keys]
    return _replaced([(owner, key, min(ORACLE_SPAN, length)) for owner, key, length in lengths if length])


def _angles(model: PreTrainedModel, target_length: int) -> tuple[float, float]:
    """Error of the cos and sin the model computes near the target's end, and what float32 allows there."""
    rotaries = list(rotary_modules(model))
    if not rotaries:
        kind, way_out = model.config.model_type, ""
        if kind in TABLE_FAMILIES:
            way_out = ": its angles come from a table, which skipwise.models.load.load_model replaces"
        raise RunError(f"{kind} has no rotary embedding module to check{way_out}")
    positions = torch.arange(max(target_length - 64, 0), target_length, device=model.device)
    found = [_angle_error(rotary, positions, kind) for rotary in rotaries for kind in _layer_types(rotary)]
    # An angle near p is known to half a unit in its last place, the frequency to one part in 2^24.
    allowed = 2.0 * target_length * torch.finfo(torch.float32).eps + 1e-5
    error, scale = max(found, key=lambda each: each[0] / each[1])
    return error, scale * allowed


def _layer_types(rotary: torch.nn.Module) -> list[str | None]:
    """The layer types that have frequencies of their own; None for a module with one set."""
    names = [name.removesuffix("inv_freq").rstrip("_") or None for name in rotary._buffers]
    return [name for name in names if name is None or not name.endswith("original")]


def _angle_error(rotary: Any, positions: torch.Tensor, layer_type: str | None) -> tuple[float, float]:
    """Largest error of one set of frequencies, and the factor it has on cos and sin."""
    which = (layer_type,) if layer_type else ()
    fresh = type(rotary)(rotary.config).to(positions.device)  # a buffer that was cast differs from its own
    probe = torch.zeros(1, dtype=torch.float32, device=positions.device)
    ids = positions[None]
    try:
        fresh(probe, ids, *which)  # LongRoPE chooses its set in the forward pass
    except IndexError:  # three axes, of which text moves along all alike (Qwen 3.5 before 5.23)
        ids = ids.expand(3, 1, -1)
        fresh(probe, ids, *which)
    prefix = f"{layer_type}_" if layer_type else ""
    scale = float(getattr(rotary, f"{prefix}attention_scaling"))
    angles = positions.double()[:, None] * getattr(fresh, f"{prefix}inv_freq").double()
    found = rotary(probe, ids, *which)
    cos, sin = (found.real, found.imag) if isinstance(found, torch.Tensor) else found
    half = angles.shape[-1]
    errors = []
    for places in (slice(half), slice(None, None, 2)):  # pairs (j, j + d/2), or side by side
        pair = cos[0, :, places].double(), sin[0, :, places].double()
        if pair[0].shape == angles.shape:
            errors.append(
                max(_largest(pair[0] - scale * angles.cos()), _largest(pair[1] - scale * angles.sin()))
            )
    return min(errors), scale
