"""What was tried here before it was, or without becoming, part of `skipwise.train`; the results in `results/`
were made with it.

The engine has the compiled update since (`skipwise.train.optimizers.StochasticAdamW`: the same arithmetic and
bytes, other random bits), and float8 products with a scale a row (`training.fp8`, `skipwise.train.fp8`). The
cases `7b-recipe-adamw` and `7b-fp8-recipe` take those of the engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import torch


class CompiledStochasticAdamW(torch.optim.Optimizer):
    """AdamW with stochastic rounding, the whole update of a tensor in one compiled kernel.

    14 bytes of a bfloat16 weight are moved instead of about 220. The random bits are an integer hash of the
    step, the tensor's place and the number's index, which the compiler computes in registers.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
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
            states = [self._state(each) for each in weights]
            if not weights:
                continue
            for state in states:
                state["step"] += 1
            device = weights[0].device
            numbers = torch.tensor(_numbers(group, states[0]["step"]), dtype=torch.float32).to(device)
            seeds = _seeds(states[0]["step"], place, len(weights)).to(device)
            place += len(weights)
            update = _compiled if device.type == "cuda" else _update
            for weight, state, seed in zip(weights, states, seeds, strict=True):
                tensors = (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"])
                update(*(each.detach().view(-1) for each in tensors), numbers, seed)
        return loss

    def _state(self, weight: torch.Tensor) -> dict[str, Any]:
        state = self.state[weight]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        return state


def _numbers(group: dict[str, Any], step: int) -> list[float]:
    """What is the same for all weights of a group, as a tensor: a number would be compiled in."""
    (first, second), rate = group["betas"], group["lr"]
    return [
        *(1 - first, second, 1 - second, 1 / (1 - second**step), group["eps"]),
        *(1 - rate * group["weight_decay"], rate / (1 - first**step)),
    ]


def _seeds(step: int, place: int, count: int) -> torch.Tensor:
    """Four words for each weight (16 bytes: rows as aligned as the compiler likes them)."""
    draw = random.Random(step * 1_000_003 + place)
    words = [[draw.getrandbits(32) - 2**31 for _ in range(4)] for _ in range(count)]
    return torch.tensor(words, dtype=torch.int32)


def _update(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    numbers: torch.Tensor,
    seed: torch.Tensor,
) -> None:
    """Algorithm 2 of AdamW's paper on flat tensors, in float32, and stored as they are."""
    rise, keep, add, scale, eps, decay, rate = numbers.unbind()
    slope = gradient.float()
    exact_mean = mean.float() + rise * (slope - mean.float())
    exact_square = keep * square.float() + add * slope * slope
    moved = rate * exact_mean / ((exact_square * scale).sqrt() + eps)
    exact = weight.float() * decay - moved
    index = torch.arange(weight.numel(), dtype=torch.int32, device=weight.device)
    bits, more = _hash(index, seed[0]), _hash(index, seed[1])
    _store(weight, exact, bits & 0xFFFF)
    _store(mean, exact_mean, (bits >> 16) & 0xFFFF)
    _store(square, exact_square, more & 0xFFFF)


_compiled = torch.compile(_update, dynamic=True, fullgraph=True)


def _store(place: torch.Tensor, value: torch.Tensor, noise: torch.Tensor) -> None:
    if place.dtype == torch.bfloat16:
        kept = (value.view(torch.int32) + noise) & -0x10000
        value = kept.view(torch.float32).to(torch.bfloat16)
    place.copy_(value)


def _hash(index: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """32 well mixed bits for each number (Ellis 2018, "lowbias32"), in int32 that wraps around."""
    bits = index * -0x61C88647 + seed
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        bits = (bits ^ ((bits >> shift) & (2 ** (32 - shift) - 1))) * factor
    return bits ^ ((bits >> 16) & 0xFFFF)


def to_fp8(model: torch.nn.Module, recipe: str) -> None:
    """Matrix products of the layers in float8, by torchao; those of the head stay as they are."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config: Any = Float8LinearConfig.from_recipe_name(recipe)
    if not torch.cuda.is_available():
        config = Float8LinearConfig(
            **{name: getattr(config, name) for name in config.__dataclass_fields__ if name != "emulate"},
            emulate=True,
        )
    convert_to_float8_training(
        model, config=config, module_filter_fn=lambda _, name: not name.endswith("lm_head")
    )


def choose_attention(kernel: str) -> None:
    """Which kernels SDPA may take in this process; the math kernel stays, for what no other can do."""
    if kernel == "default":
        return
    switches = {
        "flash": torch.backends.cuda.enable_flash_sdp,
        "cudnn": torch.backends.cuda.enable_cudnn_sdp,
        "efficient": torch.backends.cuda.enable_mem_efficient_sdp,
    }
    for name, switch in switches.items():
        switch(name == kernel)
