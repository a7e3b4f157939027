"""Seconds of a training step, from counts of operations and bytes.

A token's forward pass takes F operations in matrix products (2 to a weight that it meets; Kaplan et al.
2020, arXiv 2001.08361, table 1), and its attention 2 w T / 2 in a layer, for T tokens in a row of which it
sees half on average, w being heads x (size of a key + size of a value). The backward pass takes 2 F where
every weight is trained and F beside frozen ones, and attention's 2.5 times as many as forward, since the
scores are computed again (Dao 2023, arXiv 2307.08691, section 4.1). Gradient checkpointing repeats the
forward pass of the layers.

To the time of these, at the shares of the datasheet's speed below, comes that of moving bytes: what the
forward pass keeps is written and read many times over by the small operations between matrix products,
autocast copies float32 weights, the optimizer reads and writes everything it has, 4-bit weights are unpacked.
A step takes no less than launching its kernels, which is what a small model waits for.

The constants were fitted to 19 measured steps on one H200 (benchmarks/plan); for other GPUs they are assumed,
and launching depends on the host's processor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from skipwise.plan.memory import Settings, trained_parameters

if TYPE_CHECKING:
    from skipwise.models.size import ModelSize
    from skipwise.plan.hardware import Hardware

MATRIX_SHARE = 0.8
"""Of the datasheet's speed, in matrix products."""
ATTENTION_SHARE = 0.53
"""Of the datasheet's speed, in attention."""
BANDWIDTH_SHARE = 0.8
"""Of the datasheet's bandwidth."""
MOVES, MOVES_AGAIN = 21.0, 3.0
"""How often what a forward pass keeps is written or read, forward and back; more with checkpointing."""
ADAPTER_MOVES = 1.6
"""So many times as much with adapters, which copy and add."""
LAUNCH, LAUNCH_ADAPTERS = 3.0e-3, 6.2e-3
"""Seconds to launch the kernels of a layer, forward and back; with adapters."""
LAUNCH_AGAIN = 1.75
"""So many times as long with checkpointing."""
UPDATE = {"float32": 46.0, "bfloat16": 30.0, "stochastic": 30.0, "adamw-8bit": 205.0}
"""Bytes moved to clip and update a weight: by torch's fused AdamW; by one compiled kernel that rounds
stochastically (53 ms for 6.7B weights on an H200, benchmarks/speed); by torchao's 8-bit one."""
PARALLEL_SHARE = 0.9
"""Of the speed of one GPU, for each of several (assumed, not measured)."""


def step_seconds(size: ModelSize, settings: Settings, hardware: Hardware, micro_batches: int) -> float:
    """Of one optimizer step of ``micro_batches`` forward and backward passes on each GPU."""
    flops = hardware.tflops * 1e12
    bandwidth = hardware.bandwidth * 1e9 * BANDWIDTH_SHARE
    matrices = matrix_flops(size, settings) / (flops * MATRIX_SHARE)
    attention = attention_flops(size, settings) / (flops * ATTENTION_SHARE)
    moving = _moved(size, settings) / bandwidth
    launching = size.layers * (LAUNCH if settings.method == "full" else LAUNCH_ADAPTERS)
    launching *= LAUNCH_AGAIN if settings.gradient_checkpointing else 1.0
    update = _updated(size, settings) / bandwidth
    seconds = micro_batches * max(matrices + attention + moving, launching) + update
    return seconds / (PARALLEL_SHARE if settings.gpus > 1 else 1.0)


def matrix_flops(size: ModelSize, settings: Settings) -> float:
    """Operations of the matrix products of one forward and backward pass on one GPU."""
    adapters = 2.0 * settings.rank * size.matrix_sides if settings.method != "full" else 0.0
    layers, head = size.flops - 2.0 * size.head, 2.0 * size.head
    passes = 3 if settings.method == "full" else 2
    again = settings.gradient_checkpointing
    return settings.tokens * ((passes + again) * layers + passes * head + (3 + again) * adapters)


def attention_flops(size: ModelSize, settings: Settings) -> float:
    """Operations of attention in one forward and backward pass on one GPU.

    A layer with a window computes all pairs: its mask is cut by position, which no kernel knows.
    """
    length = settings.row_length
    forward = sum(2.0 * each.width * (length if each.window else length / 2) for each in size.attention)
    return settings.tokens * forward * (3.5 + settings.gradient_checkpointing)


def model_flops(size: ModelSize, settings: Settings) -> float:
    """Operations that the method itself takes, for the share of the GPU's speed (MFU; Chowdhery et al. 2022).

    Nothing that is computed again counts, and of attention only the pairs that are seen.
    """
    plain = replace(settings, gradient_checkpointing=False)
    length = settings.row_length
    seen = sum(
        2.0 * each.width * _keys(length, min(each.window or length, length)) for each in size.attention
    )
    return matrix_flops(size, plain) + 3 * settings.tokens * seen


def _keys(length: int, window: int) -> float:
    """Keys that a token of a row sees on average."""
    return window - window**2 / (2 * length)


def _moved(size: ModelSize, settings: Settings) -> float:
    """Bytes moved in one forward and backward pass on one GPU, besides those of the matrix products."""
    again = settings.gradient_checkpointing
    moves = MOVES + MOVES_AGAIN * again
    moves *= 1.0 if settings.method == "full" else ADAPTER_MOVES
    moved = moves * settings.kept(size).everything * settings.tokens
    moved += (8.0 if settings.loss == "fused" else 40.0) * settings.tokens * size.vocabulary
    if settings.training == "float32":  # copied; gradients made float32, and added
        moved += (6.0 * (1 + again) + 18.0) * size.parameters
    if settings.training == "bfloat16":
        moved += 6.0 * size.parameters
    if settings.method == "qlora":
        moved += 5.0 * (2 + again) * size.matrices
    return moved


def _updated(size: ModelSize, settings: Settings) -> float:
    """Bytes moved on each GPU to clip gradients and to update weights and moments."""
    kind = "stochastic" if settings.training == "bfloat16" and settings.stochastic else "float32"
    if settings.training == "bfloat16" and not settings.stochastic:
        kind = "bfloat16"
    if settings.optimizer == "adamw-8bit":
        kind = "adamw-8bit"
    return UPDATE[kind] * trained_parameters(size, settings) / settings.gpus
