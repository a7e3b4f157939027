"""Repairs on one model, in place: what `transformers` rounds or cuts wrongly for rows with skipped positions.

- Rotary frequencies are float32 again and stay so: ``model.to(torch.bfloat16)``, ``.half()`` and engines that
  cast buffers would turn them by 18 radians at a distance of 100,000.
- Their product with the positions is taken element by element: as a matmul (`transformers` up to 5.17), TF32
  or ``set_float32_matmul_precision("high")`` would round every position above 2,048.
- Windows are cut by position (`skipwise.models.windows`).

Angles stay float32, also at a million positions. Measured on the embedded model with float64 weights, YaRN,
rows of 256 tokens near the target's end, against float64 angles (root mean square over logits, whose spread
is 2.8):

==========  ============================  ==============================  ===================================
target      largest error of an angle     change of the logits            change from bfloat16 weights instead
==========  ============================  ==============================  ===================================
131,072     0.008                         0.0035                          0.043
1,048,576   0.04                          0.032                           0.065
==========  ============================  ==============================  ===================================

The error is less than what bfloat16 does, and a fixed function of the position: `transformers` and vLLM,
which compute float32 angles too, round the same way when the model is used. Training with float64 angles
would therefore add a difference between training and use, and remove none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from skipwise.models.windows import cut_windows_by_position

_MATMULS = {torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__}


def repair(model: PreTrainedModel) -> tuple[str, ...]:
    """Make every repair that ``model`` needs; a sentence for each one that changes what it computes.

    May be called again, and must be after new rotary modules were put in. Raises InputError for windows that
    cannot be cut by position.
    """
    done = []
    if keep_angles_exact(model):
        done.append("rotary frequencies had been rounded: computed again in float32")
    if cut_windows_by_position(model):
        done.append("windows of its attention are cut by position instead of by index")
    return tuple(done)


def keep_angles_exact(model: PreTrainedModel) -> bool:
    """Keep the frequencies of all rotary modules in float32, and angles out of matmuls; idempotent.

    True if frequencies had been rounded: they are computed again from the config.
    """
    rounded = False
    for rotary in rotary_modules(model):
        rounded |= _restore(rotary)
        _protect(rotary)
    return rounded


def rotary_modules(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules that turn positions into cos and sin: those with frequencies and a config."""
    for module in model.modules():
        if hasattr(module, "config") and any(name.endswith("inv_freq") for name in module._buffers):
            yield module


def _restore(rotary: torch.nn.Module) -> bool:
    """Fresh buffers, and True, where they are not what the config says."""
    now = dict(rotary.named_buffers())
    fresh = type(rotary)(rotary.config).named_buffers()
    exact = {name: buffer.cpu() for name, buffer in fresh if name in now}  # one may have been renamed (CWM)
    changing = any(each in str(getattr(rotary, "rope_type", "")) for each in ("longrope", "dynamic"))
    telling = [name for name in exact if name.endswith("original_inv_freq") or not changing]
    if all(
        now[name].dtype == torch.float32 and torch.equal(now[name].cpu(), exact[name]) for name in telling
    ):
        return False
    for name, buffer in exact.items():
        rotary._buffers[name] = buffer.to(now[name].device)
    return True


def _protect(rotary: torch.nn.Module) -> None:
    """Let no later cast reach the buffers, and no matmul precision the angles."""
    if not isinstance(rotary.__dict__.get("_apply"), partial):
        rotary._apply = partial(_moved_not_cast, rotary)  # type: ignore[method-assign]
        rotary.forward = partial(_without_matmul, rotary.forward)


def _moved_not_cast(
    rotary: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> torch.nn.Module:
    """``Module._apply``, by which ``to``, ``half`` and the like go: to another device, not another dtype."""
    exact = dict(rotary._buffers)
    type(rotary)._apply(rotary, change, recurse)
    for name, buffer in exact.items():
        moved = rotary._buffers[name]
        if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
            rotary._buffers[name] = buffer.to(moved.device)
    return rotary


def _without_matmul(forward: Callable[..., Any], *args: Any, **inputs: Any) -> Any:
    with _Elementwise():
        return forward(*args, **inputs)


class _Elementwise(TorchFunctionMode):
    """Outer products, written as matmuls of ``(..., n, 1)`` and ``(..., 1, m)``, as products of elements."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _MATMULS and args[0].shape[-1] == 1:
            return args[0] * args[1]
        return func(*args, **(kwargs or {}))
