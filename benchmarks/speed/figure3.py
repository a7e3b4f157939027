"""Both panels of the paper's Figure 3: memory and seconds of a step, PoSE beside rows of the full length.

Every step has as many tokens, in micro-batches of at least `_MICRO` tokens (one row, where a row is longer).
The engine's kernels and optimizer in a bare loop. Activations are computed again only where a step does not
fit without; what does not fit at all is marked.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import training
from candidates import CompiledStochasticAdamW
from cases import Case, config_of

from skipwise.data.rows import Rows
from skipwise.data.skips import FullLength, PoSE
from skipwise.models.repairs import repair
from skipwise.rope import extend_rope
from skipwise.train.kernels import fast_kernels

_MICRO = 16_384
_TOKENS = 131_072
_TARGETS = tuple(2**power for power in (12, 14, 16, 17, 18, 20))
_LENGTHS = tuple(2**power for power in range(12, 18))


def measure(case: Case, report: Callable[[dict[str, Any]], None]) -> None:
    """Report after every point: PoSE first, the shortest last again, as a look at drift."""
    on_gpu = training.DEVICE.type == "cuda"
    short, scale = (2_048, 1) if on_gpu else (32, 64)
    case = replace(case, row_length=short, target=_TARGETS[0] // scale)
    model = training.build(case)
    optimizer = CompiledStochasticAdamW(model.parameters(), lr=1e-7)
    points: list[dict[str, Any]] = []
    state = {"checkpointing": False}
    wanted = [("PoSE", each) for each in (*_TARGETS, _TARGETS[0])] + [("full", each) for each in _LENGTHS]
    with fast_kernels(model, training.recipe_of(case), training.DEVICE, _MICRO):
        for kind, length in wanted:
            length = length // scale
            sampler = PoSE(short, length) if kind == "PoSE" else FullLength(short, length)
            points.append({"rows": kind, "length": length})
            turn(model, case, length)
            points[-1] |= point(case, model, optimizer, sampler, _TOKENS // scale, _MICRO // scale, state)
            report({"points": points, "lines": [str(each) for each in points]})


def turn(model: Any, case: Case, target: int) -> None:
    """Give ``model`` the rotary frequencies of another target."""
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(extend_rope(config_of(case), target, "yarn")).to(training.DEVICE)
    repair(model)


def point(
    case: Case,
    model: Any,
    optimizer: Any,
    sampler: Any,
    tokens: int,
    micro: int,
    state: dict[str, bool],
) -> dict[str, Any]:
    """Seconds and GiB of a step; with activations computed again where it must be, or marked."""
    size = max(1, micro // sampler.row_length)
    case = replace(case, row_length=sampler.row_length, rows=tokens // sampler.row_length)
    rows: Rows = training.make_rows(case, sampler, steps=1)
    parts = training.micro_batches(case, rows, 0, case.rows // size)
    batches = [training.on_device(part) for part in parts]
    while True:
        try:
            return {**state, "micro_batch": size} | timed_step(model, optimizer, batches)
        except torch.OutOfMemoryError:
            optimizer.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        if state["checkpointing"]:
            return {**state, "micro_batch": size, "error": "out of memory"}
        state["checkpointing"] = True
        model.gradient_checkpointing_enable({"use_reentrant": False})


def timed_step(model: Any, optimizer: Any, batches: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """A micro-batch to warm up, then one step with a clock at each part."""
    model(**batches[0], use_cache=False).loss.backward()
    if not optimizer.state:
        optimizer.step()  # makes the moments, compiles
    optimizer.zero_grad(set_to_none=True)
    training.synchronize()
    on_gpu = training.DEVICE.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    began, times = time.perf_counter(), []
    for batch in batches:
        model(**batch, use_cache=False).loss.backward()
        training.synchronize()
        times.append(time.perf_counter())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    training.synchronize()
    end = time.perf_counter()
    each = [round(second - first, 4) for first, second in zip([began, *times], times, strict=False)]
    gib = torch.cuda.max_memory_allocated() / training.GIB if on_gpu else 0.0
    return {"seconds": round(end - began, 4), "gib": round(gib, 2), "micro_batches": each}
