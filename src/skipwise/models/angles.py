"""The angle probe: cos and sin that rotary modules compute at the far end of a window, against float64."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def angle_error(
    rotaries: Iterable[torch.nn.Module], target_length: int, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Largest error of cos and sin over the last positions of ``target_length``, and what float32 allows.

    Of several sets of frequencies (`layer_types_of`) the one that is furthest from what is allowed.
    """
    positions = torch.arange(max(target_length - 64, 0), target_length, device=device)
    found = [_error(rotary, positions, kind) for rotary in rotaries for kind in layer_types_of(rotary)]
    # An angle near p is known to half a unit in its last place, the frequency to one part in 2^24.
    allowed = 2.0 * target_length * torch.finfo(torch.float32).eps + 1e-5
    error, scale = max(found, key=lambda each: each[0] / each[1])
    return error, scale * allowed


def layer_types_of(rotary: torch.nn.Module) -> list[str | None]:
    """The layer types that have frequencies of their own; None for a module with one set."""
    names = [name.removesuffix("inv_freq").rstrip("_") or None for name in rotary._buffers]
    return [name for name in names if name is None or not name.endswith("original")]


def _error(rotary: Any, positions: torch.Tensor, layer_type: str | None) -> tuple[float, float]:
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


def _largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())
