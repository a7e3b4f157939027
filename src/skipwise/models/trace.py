"""A row run through a model on the meta device as on a GPU: what is computed, what the backward pass keeps.

Matrix products run under bfloat16 autocast, attention by a fused kernel (which keeps queries, keys, values,
its output and one number a row of scores; Dao 2023, arXiv 2307.08691). What autograd would keep is counted
storage by storage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

Training = Literal["float32", "bfloat16", "lora", "qlora"]
"""Every weight is trained, in float32 or in bfloat16; or adapters in float32, beside frozen weights in
bfloat16 or of four bits."""

TOKENS = 64
"""Tokens of the row that is run: all counts but those of masks are proportional to it."""

LIGER_FAMILIES = frozenset(
    (
        *(
            "deepseek_v2",
            "deepseek_v3",
            "exaone4",
            "falcon_h1",
            "gemma",
            "gemma2",
            "gemma3_text",
            "gemma4_text",
        ),
        *("glm4", "gpt_oss", "granite", "hunyuan_v1_dense", "hunyuan_v1_moe", "llama", "llama4_text"),
        *("ministral", "mistral", "mixtral", "nemotron", "olmo2", "olmo3", "phi3", "qwen2", "qwen3"),
        *("qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "smollm3"),
    )
)
"""Families of language models that Liger 0.8 has kernels for."""

RANK = 16
"""Of the adapters: next to nothing of what is kept depends on it."""

_LOW = {
    *(F.linear, F.scaled_dot_product_attention, F.conv1d, torch.matmul, torch.bmm, torch.mm, torch.addmm),
    *(
        torch.baddbmm,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
        torch.Tensor.__rmatmul__,
        torch.Tensor.bmm,
    ),
    *filter(None, (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None))),  # experts
}
_HIGH = {
    *(F.softmax, F.layer_norm, F.softplus, torch.softmax, torch.pow, torch.rsqrt, torch.exp, torch.cumsum),
    *(torch.Tensor.softmax, torch.Tensor.pow, torch.Tensor.__pow__, torch.Tensor.rsqrt, torch.Tensor.exp),
    *(torch.sum, torch.Tensor.sum, torch.Tensor.cumsum, torch.prod, torch.Tensor.prod),
}
"""What autocast on CUDA runs in bfloat16, and in float32 (torch's "Automatic Mixed Precision" page)."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes a token that a forward pass keeps for the backward pass.

    everything: without gradient checkpointing. largest_layer: of it in one layer. layer_inputs: what is kept
    instead with checkpointing. None of it counts weights, logits or the loss.
    """

    everything: float
    largest_layer: float
    layer_inputs: float


def row() -> torch.Tensor:
    """Token ids ``(1, TOKENS)``, on the meta device."""
    return torch.zeros(1, TOKENS, dtype=torch.long, device="meta")


def kept_for_backward(
    model: PreTrainedModel, layers: list[nn.Module], training: Training, *, liger: bool = False
) -> Kept:
    """What the decoder of ``model`` keeps of a row, under Liger's norms and MLPs if ``liger``.

    The model's dtype and flags are changed for it.
    """
    nn.Module.to(model, torch.float32 if training == "float32" else torch.bfloat16)
    model.requires_grad_(training in ("float32", "bfloat16"))
    counter = _Counter(model)
    with ExitStack() as stack:
        for handle in _hooks(layers, training, counter):
            stack.callback(handle.remove)
        if liger:
            stack.enter_context(liger_kernels(model))
        stack.enter_context(OnGpu(autocast=training != "bfloat16", weights=counter.weights))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda tensor: tensor))
        model.base_model(row(), use_cache=False)
    return counter.kept()


def _hooks(layers: list[nn.Module], training: Training, counter: _Counter) -> Iterator[Any]:
    for number, layer in enumerate(layers):
        yield from counter.watch(layer, number)
    if training in ("float32", "bfloat16"):
        return
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                yield module.register_forward_hook(_Adapter(module, training, counter.weights))


class _Adapter:
    """PEFT's adapter of one linear map, as a forward hook: adds B A x, the factors in float32.

    Beside four-bit weights, PEFT leaves the casting of x to autocast; else it makes a float32 copy of it.
    """

    def __init__(self, linear: nn.Linear, training: Training, weights: set[int]) -> None:
        sizes = (RANK, linear.in_features), (linear.out_features, RANK)
        self.factors = [nn.Parameter(torch.empty(size, dtype=torch.float32, device="meta")) for size in sizes]
        self.copies = training == "lora"
        weights.update(each.untyped_storage()._cdata for each in self.factors)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG002
        if not isinstance(output, torch.Tensor):  # a router that calls itself a linear map
            return output
        down, up = self.factors
        given = args[0].float() if self.copies else args[0]
        return output + F.linear(F.linear(given, down), up) * 2.0


@contextmanager
def liger_kernels(model: nn.Module) -> Iterator[None]:
    """While this lasts, norms and gated MLPs of ``model`` have the shapes of Liger's kernels.

    They keep their input and a number a token, and gate and up (Hsu et al. 2024, arXiv 2410.10989).
    """
    replaced = []
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and getattr(module, "weight", None) is not None:
            module.forward = partial(_Norm.apply, module.weight)
        elif hasattr(module, "gate_proj") and hasattr(module, "down_proj") and hasattr(module, "act_fn"):
            module.forward = partial(_gated, module)
        elif hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, nn.Linear):
            module.forward = partial(_gated_as_one, module)
        else:
            continue
        replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def _gated(mlp: Any, given: torch.Tensor) -> Any:
    return mlp.down_proj(_Gate.apply(mlp.gate_proj(given), mlp.up_proj(given)))  # type: ignore[no-untyped-call]


def _gated_as_one(mlp: Any, given: torch.Tensor) -> Any:
    gate, up = mlp.gate_up_proj(given).chunk(2, dim=-1)
    return mlp.down_proj(_Gate.apply(gate.contiguous(), up.contiguous()))  # type: ignore[no-untyped-call]


class _Norm(torch.autograd.Function):
    """The shapes of Liger's norm."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(given, weight, given.new_empty(given.shape[:-1], dtype=torch.float32))
        return torch.empty_like(given)


class _Gate(torch.autograd.Function):
    """The shapes of Liger's product of an activation and what it gates."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)


class _Counter:
    """Counts the storages that autograd keeps, each once, by layer (-1: outside of layers)."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {each.untyped_storage()._cdata for each in model.parameters()}
        self.storages: dict[int, torch.UntypedStorage] = {}  # held, or an id might come again
        self.bytes: dict[int, int] = {}
        self.inputs: dict[int, torch.UntypedStorage] = {}
        self.layer = -1

    def watch(self, layer: nn.Module, number: int) -> Iterator[Any]:
        def enter(module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG001
            hidden = args[0] if args else inputs["hidden_states"]
            self.layer = number
            self.inputs[hidden.untyped_storage()._cdata] = hidden.untyped_storage()

        def leave(*_: Any) -> None:
            self.layer = -1

        yield layer.register_forward_pre_hook(enter, with_kwargs=True)
        yield layer.register_forward_hook(leave)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights and storage._cdata not in self.storages:
            self.storages[storage._cdata] = storage
            self.bytes[self.layer] = self.bytes.get(self.layer, 0) + storage.nbytes()
        return tensor

    def kept(self) -> Kept:
        layers = [size for layer, size in self.bytes.items() if layer >= 0]
        inputs = sum(each.nbytes() for each in self.inputs.values()) + self.bytes.get(-1, 0)
        numbers = sum(self.bytes.values()), max(layers, default=0), inputs
        return Kept(*(each / TOKENS for each in numbers))


class OnGpu(TorchFunctionMode):
    """Shapes as on a GPU: autocast's dtypes if ``autocast``, and attention that keeps no scores.

    ``widths`` collects heads x (key size + value size) of every attention call; the storages of the copies
    that autocast makes of weights are added to ``weights``.
    """

    def __init__(self, autocast: bool, weights: set[int] | None = None) -> None:
        super().__init__()
        self.autocast, self.weights = autocast, set() if weights is None else weights
        self.widths, self.copies = list[int](), dict[int, torch.Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__bool__:
            return True  # all tokens are real, all of one row: what decoders ask before they leave a mask out
        if self.autocast and (func in _LOW or func in _HIGH):
            dtype = torch.bfloat16 if func in _LOW else torch.float32
            args = [self._as(dtype, each) for each in args]
            kwargs = {key: self._as(dtype, each) for key, each in kwargs.items()}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        self.widths.append(query.shape[1] * (query.shape[-1] + value.shape[-1]))
        return _FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]

    def _as(self, dtype: torch.dtype, value: Any) -> Any:
        """``value`` as autocast hands it on; bfloat16 copies of weights are made once."""
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (isinstance(value, nn.Parameter) and dtype == torch.bfloat16):
            return value.to(dtype)
        if id(value) not in self.copies:
            self.copies[id(value)] = value.to(dtype)
            self.weights.add(self.copies[id(value)].untyped_storage()._cdata)
        return self.copies[id(value)]


class _FusedAttention(torch.autograd.Function):
    """The shapes of a fused attention kernel: (batch, heads, tokens, size) in, as many out."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        batch, heads, tokens, size = query.shape
        output = torch.empty_like(query)  # in the query's layout, as the kernels do
        if value.shape[-1] != size:
            output = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(batch, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output
