"""Probes: does this model, as it stands, learn from rows with skipped positions?

Several libraries silently cut a row at every jump of ``position_ids``, ignore the positions, or round them.
Training then runs, the loss falls, and nothing about distance is taught. Each probe costs a few short
forward passes on the very model that will be trained, in the mode and with the arguments training uses.

What does not hold is a failure: training would teach nothing, or nonsense. Or it is a limit, which needs an
explicit yes: hybrids, in which layers that are no attention run through a row token by token, and models that
tell distances apart within their windows only. The rule for these is one measurement: they are limited if
nothing changes when the chunks come nearer beyond every window. Something does where a part of the layers
that see further has positions (SmolLM3), nothing where none has (Llama 4, Cohere 2) or none sees further.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PretrainedConfig, PreTrainedModel

from skipwise.errors import RunError
from skipwise.models.angles import angle_error
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

HALF = 0.05
"""Relative differences that half precision makes, where nothing is known of the model."""

MOST_ROUNDING = 0.2
"""Relative difference from the long row that is never put down to rounding: mistakes of masks and windows
change more."""

NEARER = 1024
"""Positions by which the chunks come nearer, at most: further on, float32 rounds other angles in chunk 1."""

ACCEPT = "if that is enough, go on with accept_limits (--accept-limits)"
"""The way out of a limit."""


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
    token_by_token: kinds of layers that are no attention; empty if the oracle fails for another reason.
    distance: the chunks nearer, beyond all windows, effect on chunk 2 (0 when that changes nothing).
    window: tokens in the longest window; 0 without windows.
    sees_further: whether a layer looks beyond that.
    noise: what rounding allows there, and of leaks: experts compute on tokens in groups.
    angle_error: largest error of the model's cos and sin at the far end of the target, against float64.
    angle_bound: what float32 allows there.
    """

    reaches: float
    leaks: float
    gap: float
    gap_leak: float
    oracle_error: float
    oracle_bound: float
    token_by_token: tuple[str, ...]
    distance: float
    window: int
    sees_further: bool
    noise: float
    angle_error: float
    angle_bound: float

    def failures(self) -> list[str]:
        """One sentence for each probe that does not hold, but for what `limits` says."""
        found = []
        if self.reaches == 0.0:
            found.append("token 0 does not reach chunk 2: the attention mask cuts the row at the skip")
        if self.leaks > self.noise:
            found.append("a later token changes an earlier one: the attention is not causal")
        if self.gap <= (self.noise if self.token_by_token and not self.window else 0.0):
            found.append("a larger skip changes nothing: the model ignores position_ids")
        if self.gap_leak > self.noise >= self.leaks:  # a leak carries the skip to chunk 1 by itself
            found.append("a skip after chunk 1 changes chunk 1: positions are not used one by one")
        explained = found or self.token_by_token
        if not explained and not self.oracle_error <= self.oracle_bound:
            found.append(
                f"a row is not the long row with its skipped tokens masked out (off by "
                f"{self.oracle_error:.2g}): windows are cut by index, or padding is not masked out"
            )
        if not self.angle_error <= self.angle_bound:
            found.append(
                f"rotary angles at the target are off by {self.angle_error:.2g} (float32 allows "
                f"{self.angle_bound:.2g}): keep inv_freq in float32 and TF32 off"
            )
        return found

    def limits(self) -> list[str]:
        """One sentence for each part of the model that has no use for skipped positions."""
        found = []
        if self.token_by_token:
            found.append(
                f"its {' and '.join(self.token_by_token)} layers run through a row token by token and take "
                f"no notice of a skip, so only its attention learns the distances (a row is off by "
                f"{self.oracle_error:.2g} from the long row)"
            )
        if self.window and self.distance <= self.noise:
            why = "layers that see further have no positions" if self.sees_further else "none sees further"
            found.append(f"distances beyond its windows of {self.window} tokens change nothing, since {why}")
        return found


def check(model: PreTrainedModel, target_length: int, *, accept_limits: bool = False) -> ProbeReport:
    """Run every probe on ``model`` and return what was found.

    Raises RunError when one does not hold, and for a limit that ``accept_limits`` does not say yes to.
    """
    report = probe(model, target_length)
    kind, failures, limits = model.config.model_type, report.failures(), report.limits()
    if failures:
        raise RunError(f"{kind} is not ready for skipped positions: {'; '.join(failures)}")
    if limits and not accept_limits:
        raise RunError(f"{kind} has a limit: {'; '.join(limits)}; {ACCEPT}")
    return report


def probe(model: PreTrainedModel, target_length: int) -> ProbeReport:
    """Run every probe on ``model`` and return what was found."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, _vocabulary(model), (1, 2 * CHUNK), generator=generator).to(model.device)
    far = max(target_length - 2 * CHUNK, 1)
    window, sees_further = _sight(model)
    near = far // 2 if sees_further else min(far // 2, max(window - CHUNK - 1, 0))
    angle_error, angle_bound = _angles(model, target_length)  # first: it names a model without RoPE
    with _as_in_training(model):
        rounding = 1e-3 if _itemsize(model, tokens) >= 4 else HALF
        plain = _logits(model, tokens, near)
        other_first = _logits(model, _change(model, tokens, 0), near)
        other_last = _logits(model, _change(model, tokens, -1), near)
        wider = _logits(model, tokens, far)
        moved = _logits(model, tokens, far, start=_free_way(model, far))
        skip = min(ORACLE_SKIP, max(target_length - 2 * CHUNK, 0))
        oracle_error = _oracle(model, tokens, skip, ORACLE_SPAN)
        bound = _oracle_bound(model, tokens, skip, rounding)
        kinds = _token_by_token(model, tokens, skip, is_off=oracle_error > bound, bound=bound)
    return ProbeReport(
        reaches=_largest(plain[CHUNK:] - other_first[CHUNK:]),
        leaks=_largest(plain[:-1] - other_last[:-1]),
        gap=_largest(plain[CHUNK:] - wider[CHUNK:]),
        gap_leak=_largest(plain[:CHUNK] - wider[:CHUNK]),
        oracle_error=oracle_error,
        oracle_bound=bound,
        token_by_token=kinds,
        distance=_largest(moved[CHUNK:] - wider[CHUNK:]),
        window=window,
        sees_further=sees_further,
        noise=rounding * float(plain.std()),
        angle_error=angle_error,
        angle_bound=angle_bound,
    )


def _sight(model: PreTrainedModel) -> tuple[int, bool]:
    """Tokens in the longest window (0 without), and whether a layer looks further back than that."""
    config = decoder_of(model).config
    spans = windowed_layers(config)
    attention = set(getattr(config, "layer_types", None) or spans) - set(_no_attention(config))
    return max(spans.values(), default=0), not spans or not attention <= set(spans)


def _free_way(model: PreTrainedModel, far: int) -> int:
    """Positions by which chunk 1 can be moved towards chunk 2 without entering a window of it."""
    spans = windowed_layers(decoder_of(model).config)
    ways = [(far - max(spans.values(), default=0)) // 2, NEARER]
    if "chunked_attention" in spans:  # which moving would cut apart
        ways.append(spans["chunked_attention"] - 2 * CHUNK)
    return max(min(ways), 1)


def _no_attention(config: PretrainedConfig) -> tuple[str, ...]:
    """Kinds of layers of ``config`` that are no attention, or not it alone."""
    lists = (getattr(config, key, None) or () for key in ("layer_types", "layers_block_type"))
    kinds = sorted({kind for each in lists for kind in each})
    return tuple(each for each in kinds if "attention" not in each or each == "linear_attention")


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


def _logits(model: PreTrainedModel, tokens: torch.Tensor, skip: int, start: int = 0) -> torch.Tensor:
    """Logits ``(2 * CHUNK, vocabulary)`` of a row: chunk 1 at ``start``, chunk 2 at ``CHUNK + skip``."""
    position_ids = torch.arange(2 * CHUNK, device=tokens.device)[None].clone()
    position_ids[:, :CHUNK] += start
    position_ids[:, CHUNK:] += skip
    outputs = model(
        input_ids=tokens, position_ids=position_ids, attention_mask=torch.ones_like(tokens), use_cache=False
    )
    return cast(torch.Tensor, outputs.logits)[0].float()


def _change(model: PreTrainedModel, tokens: torch.Tensor, index: int) -> torch.Tensor:
    changed, size = tokens.clone(), _vocabulary(model)
    changed[0, index] = (changed[0, index] + size // 2) % size
    return changed


def _itemsize(model: PreTrainedModel, tokens: torch.Tensor) -> int:
    """Bytes of a number that its layers compute: autocast leaves the weights, and the logits, in float32."""
    found: list[int] = []

    def look(layer: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:  # noqa: ARG001
        if isinstance(output, torch.Tensor):  # a router is a linear layer that gives more
            found.append(output.dtype.itemsize)

    layers = [each for each in decoder_of(model).modules() if isinstance(each, torch.nn.Linear)]
    hooks = [each.register_forward_hook(look) for each in layers]
    try:
        _logits(model, tokens, 0)
    finally:
        for hook in hooks:
            hook.remove()
    return min([model.dtype.itemsize, *found])


def _vocabulary(model: PreTrainedModel) -> int:
    return int(text_config(model.config).vocab_size)


def _largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


def _oracle_bound(model: PreTrainedModel, tokens: torch.Tensor, skip: int, rounding: float) -> float:
    """What rounding allows the oracle: ``rounding``, or in half precision twice what it is seen to do.

    RoPE knows distances alone: all positions a little later are the same row, but for rounding. In bfloat16
    32 layers of random weights (a 7B Llama) make 5 % of it.
    """
    if rounding < HALF:
        return rounding
    with _windows(model, None):
        row, later = _logits(model, tokens, skip), _logits(model, tokens, skip + CHUNK, start=CHUNK)
    return min(max(rounding, 2 * _relative(row, later)), MOST_ROUNDING)


def _oracle(model: PreTrainedModel, tokens: torch.Tensor, skip: int, span: int | None) -> float:
    """Relative difference of a row with ``skip`` from its long row: filler at the skipped places, masked.

    Windows are at most ``span`` tokens long meanwhile, or, without it, so long that they cut nothing.
    """
    filler = torch.full((1, skip), _vocabulary(model) - 1, device=tokens.device)
    long = torch.cat((tokens[:, :CHUNK], filler, tokens[:, CHUNK:]), dim=1)
    mask = torch.ones_like(long)
    mask[:, CHUNK : CHUNK + skip] = 0
    positions = torch.arange(long.shape[1], device=tokens.device)[None]
    with _windows(model, span):
        row = _logits(model, tokens, skip)
        expected = model(input_ids=long, position_ids=positions, attention_mask=mask, use_cache=False).logits
    return _relative(row, expected[0, mask[0] == 1].float())


def _relative(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square difference, relative to the spread of ``expected`` over the vocabulary."""
    spread = (expected - expected.mean(dim=-1, keepdim=True)).square().mean().sqrt()
    return float((logits - expected).square().mean().sqrt() / spread)


def _token_by_token(
    model: PreTrainedModel, tokens: torch.Tensor, skip: int, *, is_off: bool, bound: float
) -> tuple[str, ...]:
    """The kinds of layers that are no attention; none if windows or masks are why a row is off its long row.

    A convolution or a recurrent state moves on at each token: filler shows even where no window cuts.
    """
    kinds = _no_attention(decoder_of(model).config)
    return kinds if kinds and (not is_off or _oracle(model, tokens, skip, None) > bound) else ()


def _windows(model: PreTrainedModel, span: int | None) -> AbstractContextManager[None]:
    """For a while: windows and chunks of at most ``span`` tokens, or as long as they can be."""
    config = decoder_of(model).config
    keys = {SPANS[kind] for kind in windowed_layers(config)}
    owners = (config, *model.modules())  # modules keep a copy of it for flash attention
    lengths = [(owner, key, vars(owner).get(key)) for owner in owners for key in keys]
    most = span or config.max_position_embeddings - 1  # a longer one would count as none
    return _replaced(
        [(owner, key, min(most, length) if span else most) for owner, key, length in lengths if length]
    )


def _angles(model: PreTrainedModel, target_length: int) -> tuple[float, float]:
    """Error of the cos and sin the model computes near the target's end, and what float32 allows there."""
    rotaries = list(rotary_modules(model))
    if not rotaries:
        kind, way_out = model.config.model_type, ""
        if kind in TABLE_FAMILIES:
            way_out = ": its angles come from a table, which skipwise.models.load.load_model replaces"
        raise RunError(f"{kind} has no rotary embedding module to check{way_out}")
    return angle_error(rotaries, target_length, model.device)
