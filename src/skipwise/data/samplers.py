"""Samplers by the names that recipes and the command line use.

A mixture is written with its weights: ``pose:0.8,contiguous:0.2``.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from skipwise.data.balanced import Balanced
from skipwise.data.cream import Cream
from skipwise.data.mixture import Mixture
from skipwise.data.skips import Contiguous, FullLength, PoSE, RandPos, Sampler

SAMPLERS: dict[str, type[Any]] = {
    "pose": PoSE,
    "randpos": RandPos,
    "contiguous": Contiguous,
    "full-length": FullLength,
    "cream": Cream,
    "balanced": Balanced,
}
"""Name -> class; every class takes ``(train_length, target_length)`` and perhaps options."""


def make_sampler(
    name: str,
    train_length: int,
    target_length: int,
    *,
    chunks: int = 2,
    content: str = "uniform",
    headroom: int = 0,
) -> Sampler:
    """The sampler called ``name``, or the mixture written as ``pose:0.8,contiguous:0.2``; lengths in tokens.

    ``chunks`` and ``content`` go to the classes that have such a field; ``headroom`` is added to the target
    of PoSE alone. Raises ValueError for an unknown name, a weight that is no number, what a class refuses.
    """
    if ":" in name:
        names, weights = _parts(name)
        options: dict[str, Any] = {"chunks": chunks, "content": content, "headroom": headroom}
        samplers = tuple(make_sampler(each, train_length, target_length, **options) for each in names)
        return Mixture(samplers, weights)
    if name not in SAMPLERS:
        raise ValueError(f"sampler = {name!r}: must be one of {', '.join(SAMPLERS)}, or a mixture of them")
    kind = SAMPLERS[name]
    taken = {field.name for field in fields(kind)}
    given = {key: value for key, value in (("chunks", chunks), ("content", content)) if key in taken}
    sampler: Sampler = kind(train_length, target_length + headroom * (kind is PoSE), **given)
    return sampler


def title(sampler: Sampler) -> str:
    """What tables and figures call a sampler: ``CREAM``, or ``80 % PoSE, 20 % Contiguous``."""
    if isinstance(sampler, Mixture):
        shares: dict[str, float] = {}
        for weight, each in zip(sampler.weights, sampler.samplers, strict=True):
            shares[title(each)] = shares.get(title(each), 0.0) + weight  # they may differ in their text only
        if len(shares) == 1:
            return next(iter(shares))
        return ", ".join(f"{100 * weight:g} % {name}" for name, weight in shares.items())
    name = type(sampler).__name__
    return {"FullLength": "Full-length", "Cream": "CREAM"}.get(name, name)


def _parts(mixture: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Names and weights of ``name:weight,name:weight``."""
    pairs = [part.partition(":") for part in mixture.split(",")]
    try:
        weights = tuple(float(weight) for _, _, weight in pairs)
    except ValueError:
        raise ValueError(f"sampler = {mixture!r}: must be written as pose:0.8,contiguous:0.2") from None
    return tuple(name.strip() for name, _, _ in pairs), weights
