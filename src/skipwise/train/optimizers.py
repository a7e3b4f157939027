"""Optimizers for `Trainer`, by the recipe: its own AdamW, one for bfloat16 weights, one with 8-bit moments.

bfloat16 has 8 significant bits: an update below 1/512 of a weight is lost when it is rounded to the nearest,
and a weight of 1 never moves at learning rates below 1e-3. Rounded up or down with the probabilities that
keep the mean, updates are right on average (Gupta et al. 2015; Zamirai et al. 2020 for bfloat16). The same is
true of the second moment, whose decay is a thousandth a step: rounded to the nearest, as by torchao's AdamW
(0.18), it stays at 0.40 for ever when the gradients become ten times smaller, where float32 falls to 0.15 in
1,000 steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

import torch
from transformers import PreTrainedModel

from skipwise.config import TrainingRecipe
from skipwise.errors import InputError

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's, as `Trainer` has them."""

_PIECE = 2**24
"""Numbers of a tensor updated at once: float32 copies of all would need the memory that bfloat16 saves."""


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

    The random bits are a function of the step and the tensor's place alone: a resumed run draws what the
    uninterrupted one does, and copies of a model on several devices stay equal.
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
            for weight in group["params"]:
                place += 1
                if weight.grad is not None:
                    self._update(weight, group, place)
        return loss

    def _update(self, weight: torch.Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[weight]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        state["step"] += 1
        random = torch.Generator(weight.device).manual_seed(state["step"] * 1_000_003 + place)
        tensors = (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"])
        for weights, gradients, means, squares in zip(*map(_pieces, tensors), strict=True):
            exact = weights.float(), means.float(), squares.float()
            _adamw(gradients.float(), *exact, group, state["step"])
            for stored, value in zip((weights, means, squares), exact, strict=True):
                if stored.dtype == torch.bfloat16:
                    stored.copy_(stochastically_rounded(value, random))


def _adamw(
    gradient: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    group: dict[str, Any],
    step: int,
) -> None:
    """Algorithm 2 of the paper, in place, on float32 tensors of one shape."""
    first, second = group["betas"]
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    root = (square / (1 - second**step)).sqrt_().add_(group["eps"])
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.addcdiv_(mean, root, value=-group["lr"] / (1 - first**step))


def _pieces(tensor: Any) -> Iterator[torch.Tensor]:
    """Flat views of ``tensor``; of this device's shard, if it is sharded."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    yield from local.view(-1).split(_PIECE)


def stochastically_rounded(values: torch.Tensor, random: torch.Generator | None = None) -> torch.Tensor:
    """Float32 ``values`` in bfloat16: one of the two neighbours, with the mean kept.

    bfloat16 is the upper half of float32: uniform bits are added to the lower half, which is then cut off.
    """
    noise = torch.randint(2**16, values.shape, generator=random, dtype=torch.int32, device=values.device)
    bits = (values.view(torch.int32) + noise).bitwise_and_(-(2**16))
    return bits.view(torch.float32).to(torch.bfloat16)
