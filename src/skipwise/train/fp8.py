"""Matrix products in float8 while a model is trained: torchao's, with a scale for every row ("rowwise").

The decoder's linear layers round both factors of each of their three products to 8 bits (e4m3; Micikevicius
et al. 2022, arXiv 2209.05433): forward, gradient by the input, gradient by the weight. Going forward, a token
has a scale of its own and so has an output channel; what comes out is bfloat16. Weights, gradients and
optimizer are what they were, and so are names, classes and everything that is saved.

One scale for a whole tensor is faster and not offered: a later token would change what earlier ones become,
and the probes refuse that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from skipwise.errors import InputError
from skipwise.models.windows import decoder_of

_MULTIPLE = 16
"""Both sizes of a weight must be multiples of this: the kernels take no others."""
_CAPABILITY = (8, 9)
"""The first compute capability that multiplies in float8 (Ada; Hopper is 9.0)."""


@contextmanager
def fp8_products(
    model: PreTrainedModel, device: torch.device, *, scaling: str = "rowwise", emulate: bool = False
) -> Iterator[None]:
    """While this lasts, the linear layers in ``model``'s decoder layers multiply in float8 in training mode.

    In evaluation mode they are stock: what is judged on the way is the model that will be exported. Left out
    are weights whose sizes are no multiples of 16, everything but plain linear layers (quantised ones,
    experts in one tensor), embeddings and the output layer. ``device``: where it will be trained.
    ``scaling``: a recipe of torchao. ``emulate``: on any device, slowly, in float32.

    Raises InputError where a GPU, torchao, or a layer to do this with is missing.
    """
    if not emulate:
        _check_device(device)
    twin, linears = _twins(scaling, emulate), _linears(model)
    if not linears:
        raise InputError(
            f"training.fp8: the layers of {model.config.model_type} have no linear layer with sizes that are "
            f"multiples of {_MULTIPLE}: set it to false"
        )
    twins = [twin(linear) for linear in linears]
    for linear, each in zip(linears, twins, strict=True):
        vars(linear)["fp8_twin"] = each  # not as a module of the model: they are saved and counted
        linear.forward = MethodType(_product, linear)  # a partial would be compiled anew for every layer
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward, linear.fp8_twin


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise InputError(f"training.fp8 needs a GPU, and this trains on the {device.type}: set it to false")
    found = torch.cuda.get_device_capability(device)
    if found < _CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise InputError(
            f"training.fp8 needs a GPU of compute capability 8.9 or more (Ada, Hopper), and {name} has "
            f"{found[0]}.{found[1]}: set it to false"
        )


def _twins(scaling: str, emulate: bool) -> partial[Any]:
    """What makes a layer of torchao that multiplies with the weight of the one given."""
    try:
        float8 = import_module("torchao.float8")
    except ImportError:
        raise InputError(
            "training.fp8 needs torchao: pip install 'skipwise[fast]', or set it to false"
        ) from None
    config = float8.Float8LinearConfig.from_recipe_name(scaling)
    # Sums over tokens (gradients by weights) run over a multiple of 16 too: others are filled up with zeros.
    config = replace(config, emulate=emulate, pad_inner_dim=True)
    return partial(float8.convert_to_float8_training, config=config)


def _linears(model: PreTrainedModel) -> list[Any]:
    """The layers that can: plain, in a decoder layer, of sizes that the kernels take. Shared ones once."""
    layers = [each for each in decoder_of(model).modules() if isinstance(each, GradientCheckpointingLayer)]
    found = {each: None for layer in layers for each in layer.modules() if type(each) is torch.nn.Linear}
    return [
        each
        for each in found
        if not any(size % _MULTIPLE for size in each.weight.shape) and "forward" not in vars(each)
    ]


def _product(self: Any, hidden: torch.Tensor) -> Any:
    """The forward pass of a linear layer whose ``fp8_twin`` is torchao's layer with the same weight."""
    return self.fp8_twin(hidden) if self.training else type(self).forward(self, hidden)
