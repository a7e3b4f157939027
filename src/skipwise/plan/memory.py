"""Memory of a training step and of inference, in bytes on each GPU.

A step passes several moments: the loss at the end of a forward pass, the start of the backward pass, its
way through the layers, its end, the optimizer's update. Each is the sum of what is alive then; the peak is
the largest. Alive throughout: weights and the optimizer's moments, and gradients from the first backward
pass of a step to the update. Bytes of each number:

==============================  =============================  =========  ================  =============
what is trained                 weights                        gradients  AdamW's moments   in 8 bits
==============================  =============================  =========  ================  =============
every weight, float32           4                              4          8                 2.03
every weight, bfloat16          2                              2          4                 2.03
adapters                        2 (frozen), 4 (adapters)       4          8                 2.03
adapters beside 4-bit weights   0.516, 2 outside of layers, 4  4          8                 2.03
==============================  =============================  =========  ================  =============

4-bit weights have one 8-bit scale to 64 of them and a float32 one to 256 scales (Dettmers et al. 2023, arXiv
2305.14314): 0.5 + 1/64 + 4/(64 x 256) bytes; 8-bit moments a float32 scale to 256. Autocast keeps a bfloat16
copy of a float32 weight from its use in the forward pass to that in the backward pass. FSDP2 divides weights,
gradients and moments by the number of GPUs (Zhao et al. 2023, arXiv 2304.11277) and holds two gathered layers
and the gathered embeddings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from skipwise.models.size import ModelSize
    from skipwise.models.trace import Kept, Training

Method = Literal["full", "lora", "qlora"]
Loss = Literal["fused", "chunked", "whole"]

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight of four bits, its scales included."""

LAYER_GRADIENTS = 0.4
"""Gradients alive on the way back through a layer, as a share of what its forward pass kept (measured)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One training; the fields are those of `skipwise.config.TrainingRecipe`.

    row_length: tokens in a row. stochastic: whether bfloat16 weights are rounded so by the optimizer.
    micro_batch: rows in one forward pass of one GPU. accumulates: whether an optimizer step has several of
    them. liger: its kernels for norms and MLPs. loss: fused (Liger's kernel), chunked (``logits_chunk``
    tokens at a time), or whole (the micro-batch at once). gpus: between which rows, weights, gradients and
    moments are divided. taught: whether the untouched model lies beside it, from which rows are learned.
    """

    row_length: int
    method: Method = "full"
    weights: Literal["float32", "bfloat16"] = "float32"
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    micro_batch: int = 1
    accumulates: bool = True
    stochastic: bool = True
    gradient_checkpointing: bool = False
    liger: bool = True
    loss: Loss = "fused"
    logits_chunk: int = 1024
    rank: int = 16
    gpus: int = 1
    taught: bool = False

    @property
    def training(self) -> Training:
        """What the row was traced for."""
        return self.weights if self.method == "full" else self.method

    def kept(self, size: ModelSize) -> Kept:
        """Bytes a token that the forward pass keeps."""
        return (size.kept_liger if self.liger else size.kept)[self.training]

    @property
    def tokens(self) -> int:
        """In one forward pass of one GPU."""
        return self.micro_batch * self.row_length


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each GPU at the peak of a step, by what they are for, and when that is."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    loss: float
    temporary: float
    moment: str

    @property
    def total(self) -> float:
        """Bytes of all of it."""
        return float(sum(getattr(self, each.name) for each in fields(self) if each.name != "moment"))


def training_memory(size: ModelSize, settings: Settings) -> Memory:
    """The peak of one training step."""
    weights, gradients, optimizer = _at_rest(size, settings)
    kept = _activations(size, settings)
    before = gradients if settings.accumulates else 0.0
    moments = {
        "loss": (
            before,
            kept,
            _loss(size, settings, backward=False),
            _copies(size, settings, all_layers=True),
        ),
        "backward": (before, kept, _loss(size, settings, backward=True), _copies(size, settings)),
        "layers": (before, kept, *_on_the_way_back(size, settings)),
        "gradients": (gradients, 0.0, 0.0, _embedding_gradients(size, settings)),
        "update": (gradients, 0.0, 0.0, _update(size, settings)),
    }
    gathered = _gathered(size, settings)
    found = [
        Memory(weights, there, optimizer, activations, loss, temporary + gathered, moment)
        for moment, (there, activations, loss, temporary) in moments.items()
    ]
    return max(found, key=lambda each: each.total)


def trained_parameters(size: ModelSize, settings: Settings) -> int:
    """Numbers that the optimizer changes."""
    return size.parameters if settings.method == "full" else settings.rank * size.matrix_sides


def _at_rest(size: ModelSize, settings: Settings) -> tuple[float, float, float]:
    """Bytes of weights, gradients and the optimizer's moments."""
    trained = trained_parameters(size, settings)
    each = 2 if settings.method == "full" and settings.weights == "bfloat16" else 4
    weights = float(each * trained)
    if settings.method == "lora":
        weights += 2 * size.parameters
    if settings.method == "qlora":
        weights += NF4 * size.matrices + 2 * (size.parameters - size.matrices)
    moments = 2.0 * (1 + 4 / 256) if settings.optimizer == "adamw-8bit" else 2.0 * each
    teacher = 2.0 * size.parameters if settings.taught else 0.0  # bfloat16, whole on each GPU
    return (
        weights / settings.gpus + teacher,
        each * trained / settings.gpus,
        moments * trained / settings.gpus,
    )


def _activations(size: ModelSize, settings: Settings) -> float:
    """Bytes kept for the backward pass, and the mask of windows that are cut by position.

    It is there in full: a byte for each pair of tokens of a row, two more where it becomes a bias.
    """
    kept = settings.kept(size)
    each = kept.layer_inputs if settings.gradient_checkpointing else kept.everything
    windowed = any(layer.window for layer in size.attention)
    mask = 3.0 * settings.micro_batch * settings.row_length**2 if windowed else 0.0
    return each * settings.tokens + mask


def _wide(settings: Settings) -> bool:
    """Whether the residual stream, and the gradients of weights, have four bytes a number."""
    return settings.training == "float32"


def _trains_head(settings: Settings) -> bool:
    return settings.method == "full"


def _loss(size: ModelSize, settings: Settings, *, backward: bool) -> float:
    """Bytes of logits and what is made of them.

    whole: bfloat16 logits, float32 ones and their log-softmax on the way forward (2 + 4 + 4), the latter, its
    gradient and theirs on the way back (4 + 4 + 4). fused: Liger (Hsu et al. 2024, arXiv 2410.10989) makes
    logits for so many tokens at a time that they take as much as the hidden states, and with them the
    gradients of hidden states and head, which wait for the backward pass.
    """
    wide = 4 if _wide(settings) else 2
    if settings.loss == "fused":
        gradients = wide * settings.tokens * size.hidden + _trains_head(settings) * wide * size.head
        return (
            gradients if backward else gradients + 2.0 * _liger_chunk(size, settings.tokens) * size.vocabulary
        )
    tokens = min(settings.logits_chunk, settings.tokens) if settings.loss == "chunked" else settings.tokens
    hidden = wide * settings.tokens * size.hidden if settings.loss == "chunked" else 0
    return (12.0 if backward or settings.loss == "chunked" else 10.0) * tokens * size.vocabulary + hidden


def _liger_chunk(size: ModelSize, tokens: int) -> int:
    """Tokens whose logits Liger has in memory at once: a power of two."""
    parts = math.ceil(size.vocabulary / size.hidden)
    return int(min(2 ** math.ceil(math.log2(math.ceil(tokens / parts))), tokens))


def _copies(size: ModelSize, settings: Settings, *, all_layers: bool = False) -> float:
    """Bytes of autocast's bfloat16 copies of weights, when the loss is computed or its backward pass begins.

    A checkpointed layer drops its copies when autocast ends, with the forward pass. With shards, what is
    gathered is bfloat16 already.
    """
    if not _wide(settings) or settings.gpus > 1:
        return 0.0
    layers = size.parameters - size.embedding - (0 if size.tied else size.head)
    return 2.0 * (layers * (all_layers or not settings.gradient_checkpointing) + size.head)


def _on_the_way_back(size: ModelSize, settings: Settings) -> tuple[float, float]:
    """Bytes of the loss's gradients and of temporary tensors while the backward pass is in the last layer."""
    wide = 4 if _wide(settings) else 2
    layer = settings.kept(size).largest_layer * settings.tokens
    recomputed = layer if settings.gradient_checkpointing else 0.0
    head = wide * size.head if _trains_head(settings) and (size.tied or not settings.accumulates) else 0
    copies = max(_copies(size, settings) - 2.0 * size.head, 0.0)
    unpacked = 2.0 * size.largest_matrix if settings.method == "qlora" else 0.0
    return head, recomputed + LAYER_GRADIENTS * layer + copies + unpacked


def _embedding_gradients(size: ModelSize, settings: Settings) -> float:
    """Bytes of the embeddings' gradient, before it is added to what is there: as large as they are."""
    if settings.method != "full":
        return 0.0
    return (4.0 if _wide(settings) else 2.0) * size.embedding * (2 if size.tied else 1)


def _update(size: ModelSize, settings: Settings) -> float:
    """Bytes of the optimizer's float32 copies: of the largest weight, or of pieces of 2^24 numbers."""
    if settings.optimizer == "adamw-8bit":
        return 8.0 * size.largest_matrix / settings.gpus
    return 32.0 * min(size.largest_matrix, 2**24) if settings.training == "bfloat16" else 0.0


def _gathered(size: ModelSize, settings: Settings) -> float:
    """Bytes of weights gathered from the other GPUs: two layers and what is outside of the layers."""
    if settings.gpus == 1:
        return 0.0
    return 2.0 * (2 * size.layer + size.embedding + (0 if size.tied else size.head))


@dataclass(frozen=True, slots=True)
class Inference:
    """Bytes of the weights (bfloat16) and of the cache of one sequence (bfloat16)."""

    weights: float
    cache: float

    @property
    def total(self) -> float:
        """Bytes of both."""
        return self.weights + self.cache


def inference_memory(size: ModelSize, tokens: int) -> Inference:
    """A sequence of ``tokens``: keys and values of every layer, of layers with a window only so many."""
    cached = sum(each.numbers * min(tokens, each.window or tokens) for each in size.cache)
    return Inference(2.0 * size.parameters, 2.0 * cached)
