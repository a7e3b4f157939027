"""What makes a training step leaner and faster, on one model instance and only while it is trained: Liger's
kernels where they compute the same, a loss without all logits, products in float8, compiled decoder layers.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from skipwise.config import TrainingRecipe
from skipwise.errors import InputError
from skipwise.train.adapters import half_products
from skipwise.train.fp8 import fp8_products
from skipwise.train.loss import chunk_the_loss, differs, loss_and_gradient

_FUSED = "fused_linear_cross_entropy"
_FOR_ALL_MODELS = {"rope": False, "cross_entropy": False}
"""What Liger replaces for every model of the process, or in torch itself: left out."""

_IN_LAYERS = ("rms_norm", "layer_norm", "swiglu", "geglu")

_ABSENT = object()

_log = logging.getLogger(__name__)  # not set up by anybody: one line on stderr


@contextmanager
def fast_kernels(
    model: PreTrainedModel, recipe: TrainingRecipe, device: torch.device, row_length: int
) -> Iterator[None]:
    """While this lasts, ``model`` (adapters and all) trains as ``recipe`` says in ``liger``,
    ``logits_chunk``, ``fp8`` and ``compile``; afterwards it is the stock model again.

    ``device``: where it will be trained, on rows of ``row_length`` tokens. Says what it had to leave out.
    Raises InputError for ``liger = on`` and ``fp8`` where that cannot be.
    """
    autocast = recipe.weights == "float32" and half_products(recipe, device.type)
    stock = cast(PreTrainedModel, getattr(model, "get_base_model", lambda: model)())
    before = _attributes(stock.modules())
    with torch.autocast(stock.device.type, torch.bfloat16, enabled=autocast):
        notes = [apply_liger(stock, recipe.liger, in_layers=not recipe.compile)]
        rows = recipe.rows_per_step if recipe.micro_batch == "auto" else recipe.micro_batch
        if "forward" not in vars(stock) and rows * row_length > recipe.logits_chunk:
            notes.append(chunk_the_loss(stock, recipe.logits_chunk))
    changes = _changes(before)
    for note in filter(None, notes):
        _log.warning("%s", note)
    try:
        with (
            fp8_products(stock, device) if recipe.fp8 else nullcontext(),
            compiled_layers(stock) if recipe.compile else nullcontext(),
        ):
            yield
    finally:
        _undo(changes)


def apply_liger(
    model: PreTrainedModel, choice: Literal["auto", "on", "off"] = "auto", *, in_layers: bool = True
) -> str | None:
    """Let ``model`` run Liger's kernels (Hsu et al. 2024) for norms, MLPs and the loss; with its loss,
    training makes no logits, and ``model`` has a forward pass of its own.

    ``in_layers`` False leaves norms and MLPs out, for layers that will be compiled: compiled under autocast,
    Liger's kernels made the loss of a sound run explode (one H200, torch 2.11, Triton 3.6, Liger 0.8.5), and
    the compiler fuses the same operations.

    ``auto``: on a GPU, where Liger is installed and knows the family. The kernels must give the loss and the
    gradient of stock on a short row; if they do not, those without the loss are tried. None if all are in
    use, or none was to be; else one sentence that says what is not. Raises InputError for ``on`` where none
    can be.
    """
    missing = _missing(model) if choice != "off" else None
    if missing and choice == "on":
        raise InputError(f"training.liger = on: {missing}, or set it to auto")
    if missing or choice == "off":
        return None
    expected, kind = loss_and_gradient(model), model.config.model_type
    reason = _try_liger(model, expected, fused=True, in_layers=in_layers)
    if reason is None:
        return None
    rest = _try_liger(model, expected, fused=False, in_layers=in_layers)
    if rest and choice == "on":
        raise InputError(f"training.liger = on: its kernels do not compute {kind} ({rest}): set it to off")
    return f"Liger's {'kernels are' if rest else 'loss is'} not used for {kind}: {rest or reason}"


def _try_liger(
    model: PreTrainedModel, expected: tuple[torch.Tensor, torch.Tensor], *, fused: bool, in_layers: bool
) -> str | None:
    """None if ``model`` now runs Liger's kernels; else why it does not, and it is as before."""
    family = sys.modules[type(model).__module__]
    classes = [each for each in vars(family).values() if isinstance(each, type)]
    before, around = _attributes(model.modules()), _attributes([family, *classes])
    try:
        try:
            left_out = _FOR_ALL_MODELS if in_layers else _FOR_ALL_MODELS | dict.fromkeys(_IN_LAYERS, False)
            _liger()._apply_liger_kernel_to_instance(model=model, **left_out, **{_FUSED: fused})
        finally:
            _undo(_changes(around))  # where the next model would find Liger, on whatever device
        reason = differs(expected, loss_and_gradient(model))
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, ImportError) as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if reason is not None:
        _undo(_changes(before))
    return reason


def _missing(model: PreTrainedModel) -> str | None:
    """What ``model`` lacks to run Liger's kernels, and the way out."""
    if model.device.type != "cuda":
        return (
            f"Liger runs on a GPU and the model is loaded on the {model.device.type}: leave sharding to none"
        )
    if find_spec("liger_kernel") is None:
        return "Liger is not installed: pip install liger-kernel"
    known = import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
    if model.config.model_type not in known:
        return f"Liger has no kernels for {model.config.model_type}: set it to off"
    return None


def _liger() -> Any:
    return import_module("liger_kernel.transformers")


@contextmanager
def compiled_layers(model: PreTrainedModel, *, backend: str = "inductor") -> Iterator[None]:
    """While this lasts, training passes of ``model`` run every decoder layer through `torch.compile`.

    One graph serves all layers that are alike; their names and weights stay what they are. Rows of a
    training have one length, so it is compiled in. What runs without gradients, in many lengths (probes,
    retrieval), is not compiled: it would use up the few graphs that torch keeps, and training would go on
    without.
    """
    layers: list[Any] = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(backend=backend, dynamic=False)
        layer._compiled_call_impl = partial(_call, layer, layer._compiled_call_impl)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("_compiled_call_impl")  # the class has None


def _call(layer: Any, compiled: Any, *args: Any, **inputs: Any) -> Any:
    run = compiled if layer.training and torch.is_grad_enabled() else layer._call_impl
    return run(*args, **inputs)


def _attributes(owners: Iterable[Any]) -> list[tuple[Any, dict[str, Any]]]:
    return [(owner, dict(vars(owner))) for owner in owners]


def _changes(before: list[tuple[Any, dict[str, Any]]]) -> list[tuple[Any, str, Any]]:
    """Owner, name and former value of every attribute that is another object than ``before``."""
    return [
        (owner, name, attributes.get(name, _ABSENT))
        for owner, attributes in before
        for name in {*attributes, *vars(owner)}
        if vars(owner).get(name, _ABSENT) is not attributes.get(name, _ABSENT)
    ]


def _undo(changes: list[tuple[Any, str, Any]]) -> None:
    for owner, name, value in changes:
        if value is not _ABSENT:
            setattr(owner, name, value)
        elif name in vars(owner):
            delattr(owner, name)
