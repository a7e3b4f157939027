"""Optimizers for `Trainer`, by the recipe: its own AdamW, one for bfloat16 weights, one with 8-bit moments.

bfloat16 has 8 significant bits: an update below 1/512 of a weight is lost when it is rounded to the nearest,
and a weight of 1 never moves at learning rates below 1e-3. Rounded up or down with the probabilities that
keep the mean, updates are right on average (Gupta et al. 2015; Zamirai et al. 2020 for bfloat16). The same is
true of the second moment, whose decay is a thousandth a step: rounded to the nearest, as by torchao's AdamW
(0.18), it stays at 0.40 for ever when the gradients become ten times smaller, where float32 falls to 0.15 in
1,000 steps.

On a GPU each tensor is updated by one compiled kernel, which moves 14 bytes of a bfloat16 weight; operation
by operation it would be 220, a seventh of a step of a 7B model (benchmarks/speed).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from random import Random
from typing import Any

import torch
from transformers import PreTrainedModel

from skipwise.config import TrainingRecipe
from skipwise.errors import InputError

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's, as `Trainer` has them."""

_PIECE = 2**24
"""Numbers of a tensor updated at once where nothing is compiled: float32 copies of all would need the memory
that bfloat16 saves."""


def optimizer_for(
    model: PreTrainedModel, recipe: TrainingRecipe
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """`Trainer`'s ``optimizer_cls_and_kwargs``; None: what its arguments say. `Trainer` groups the weights.

    Raises InputError when torchao is needed and not installed.
    """
    arguments = {"lr": recipe.learning_rate, "betas": BETAS, "eps": EPSILON}
    if recipe.optimizer == "adamw-8bit":
        try:
            eight_bit = import_module("torchao.optim").AdamW8bit
        except ImportError as error:
            raise InputError(
                "training.optimizer = adamw-8bit needs torchao: pip install torchao, or choose adamw"
            ) from error
        return eight_bit, {**arguments, "bf16_stochastic_round": True}
    if any(each.dtype == torch.bfloat16 for each in model.parameters() if each.requires_grad):
        return StochasticAdamW, arguments
    return None


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019), computed in float32; what is stored in bfloat16 is rounded
    stochastically: weights and both moments, 6 bytes a weight. Tensors in float32 are updated as by torch.

    The random bits are a function of the step, the tensor's place and the number's alone: a resumed run draws
    what the uninterrupted one does, and copies of a model on several devices stay equal.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = BETAS,
        eps: float = EPSILON,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        place = 0
        for group in self.param_groups:
            weights = [each for each in group["params"] if each.grad is not None]
            steps = [self._next(each) for each in weights]
            numbers = torch.tensor([_numbers(group, step) for step in steps])
            seeds = torch.tensor([_words(step, place + index) for index, step in enumerate(steps)])
            place += len(group["params"])
            self._update(weights, numbers, seeds.to(torch.int32))
        return loss

    def _next(self, weight: torch.Tensor) -> int:
        state = self.state[weight]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        state["step"] += 1
        return int(state["step"])

    def _update(self, weights: list[torch.Tensor], numbers: torch.Tensor, seeds: torch.Tensor) -> None:
        if not weights:
            return
        device = weights[0].device
        update = _update_on(device)
        rows = zip(weights, numbers.to(device), seeds.to(device), strict=True)
        for weight, own_numbers, own_seeds in rows:
            state = self.state[weight]
            tensors = (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"])
            update(*map(_flat, tensors), own_numbers, own_seeds)


def _numbers(group: dict[str, Any], step: int) -> list[float]:
    """What one step has in common for all numbers of a tensor; in a tensor, since numbers are compiled in."""
    (first, second), rate = group["betas"], float(group["lr"])
    return [
        *(1 - first, second, 1 - second, 1 / (1 - second**step), group["eps"]),
        *(1 - rate * group["weight_decay"], rate / (1 - first**step), 0.0),
    ]


def _words(step: int, place: int) -> list[int]:
    """Random words for the hash: four, since the compiler wants rows of 16 bytes."""
    draw = Random(step * 1_000_003 + place)
    return [draw.getrandbits(32) - 2**31 for _ in range(4)]


def _flat(tensor: Any) -> torch.Tensor:
    """A flat view of ``tensor``; of this device's shard, if it is sharded."""
    local: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach().view(-1)


def _adamw(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    numbers: torch.Tensor,
    seeds: torch.Tensor,
    start: int = 0,
) -> None:
    """Algorithm 2 of the paper, in place, on flat tensors that begin at number ``start`` of theirs."""
    rise, keep, add, scale, eps, decay, rate, _ = numbers.unbind()
    slope = gradient.float()
    exact_mean = mean.float() + rise * (slope - mean.float())
    exact_square = keep * square.float() + add * slope * slope
    exact = weight.float() * decay - rate * exact_mean / ((exact_square * scale).sqrt() + eps)
    index = torch.arange(start, start + weight.numel(), dtype=torch.int32, device=weight.device)
    bits, more = hashed(index, seeds[0]), hashed(index, seeds[1])
    weight.copy_(_as_stored(exact, weight.dtype, bits))
    mean.copy_(_as_stored(exact_mean, mean.dtype, bits >> 16))
    square.copy_(_as_stored(exact_square, square.dtype, more))


def _adamw_whole(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    numbers: torch.Tensor,
    seeds: torch.Tensor,
) -> None:
    """`_adamw` without a start: the compiler would take one, zero too, for a number that changes, of 64 bits,
    and Triton would then hash in 64 bits."""
    _adamw(weight, gradient, mean, square, numbers, seeds, 0)


@cache
def _update_on(device: torch.device) -> Callable[..., None]:
    """The compiled update on a GPU that can have it (Triton needs a C compiler, for one), else in pieces."""
    if device.type != "cuda" or not find_spec("triton"):
        return _adamw_in_pieces
    return _tried(_adamw_compiled(), device)


def _tried(update: Callable[..., None], device: torch.device) -> Callable[..., None]:
    """``update`` if it does on a few numbers what the plain one does, else the plain one, and a warning."""
    group = {"betas": BETAS, "lr": 1e-3, "eps": EPSILON, "weight_decay": 0.1}
    numbers = torch.tensor(_numbers(group, 1), device=device)
    seeds = torch.tensor(_words(1, 1), device=device).to(torch.int32)
    values = torch.linspace(0.5, 2.0, 1_000, device=device).to(torch.bfloat16)
    expected, found = ([values.clone() for _ in range(4)] for _ in range(2))
    _adamw_in_pieces(*expected, numbers, seeds)
    try:
        update(*found, numbers, seeds)
    except RuntimeError as error:  # of torch's compiler; of Triton's, inside it
        reason = str(error).strip().partition("\n")[0]
    else:
        differs = max(float((a != b).float().mean()) for a, b in zip(found, expected, strict=True))
        if differs < 0.01:  # fused products round once
            return update
        reason = f"it gave other numbers in {differs:.0%} of the places"
    warnings.warn(f"the optimizer's update is not compiled, and slower: {reason}", stacklevel=2)
    return _adamw_in_pieces


@cache
def _adamw_compiled(backend: Any = "inductor") -> Callable[..., None]:
    """One kernel for tensors of whatever length."""
    compiled: Callable[..., None] = torch.compile(_adamw_whole, dynamic=True, fullgraph=True, backend=backend)
    return compiled


def _adamw_in_pieces(*tensors: torch.Tensor) -> None:
    """The same, operation by operation."""
    *flat, numbers, seeds = tensors
    pieces = zip(*(each.split(_PIECE) for each in flat), strict=True)
    for place, (weight, gradient, mean, square) in enumerate(pieces):
        _adamw(weight, gradient, mean, square, numbers, seeds, place * _PIECE)


def _as_stored(values: torch.Tensor, dtype: torch.dtype, bits: torch.Tensor) -> torch.Tensor:
    return stochastically_rounded(values, bits) if dtype == torch.bfloat16 else values


def stochastically_rounded(values: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Float32 ``values`` in bfloat16: one of the two neighbours, with the mean kept.

    bfloat16 is the upper half of float32: the lower halves of ``bits``, uniform int32, are added to the lower
    half, which is then cut off.
    """
    raised = (values.view(torch.int32) + (bits & 0xFFFF)) & -0x10000
    return raised.view(torch.float32).to(torch.bfloat16)


def hashed(index: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """32 well mixed bits for each int32 ``index``: the integer hash lowbias32 (Wellons 2018).

    Products wrap around; an int32 has no logical shift, so what comes in from the left is masked away.
    """
    bits = index * -0x61C88647 + seed  # 2^32 / golden ratio: neighbours begin far apart
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        bits = (bits ^ ((bits >> shift) & (2 ** (32 - shift) - 1))) * factor
    return bits ^ ((bits >> 16) & 0xFFFF)
