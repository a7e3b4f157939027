"""What the chip gives to the shapes of a LLaMA-7B: matrix products, attention, copies; and for how long."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from cases import SHAPES, Case
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

_SECONDS = 3.0


def measure(_: Case, report: Callable[[dict[str, Any]], None]) -> None:
    """Report TFLOP/s and TB/s, piece by piece."""
    torch.manual_seed(0)
    found: dict[str, Any] = {"copy_tb_s": copies()}
    for tokens in (4_096, 8_192, 16_384):
        found[f"matrices {tokens}"] = products(tokens, "bfloat16", 0.4)
    found["matrices 16384 sustained"] = products(16_384, "bfloat16", _SECONDS)
    for kind in ("tensorwise", "rowwise"):
        found[f"matrices 16384 fp8 {kind}"] = attempt(products, 16_384, kind, 1.0)
    found["head 2048"] = head(2_048)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        name = backend.name.lower().removesuffix("_attention")
        for rows, length in ((8, 2_048), (1, 32_768)):
            found[f"attention {name} {rows} x {length}"] = attempt(attention, backend, rows, length)
    lines = [f"{name:34} {each}" for name, each in found.items()]
    report({"ceilings": found, "lines": lines})


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """What it finds, or why it cannot."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


def seconds(run: Callable[[], object], least: float = 0.3) -> float:
    """The median of single runs, by events, over at least so many seconds."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    events, began = [torch.cuda.Event(enable_timing=True)], time.perf_counter()
    events[0].record()
    while time.perf_counter() - began < least or len(events) < 6:
        run()
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
        if len(events) % 8 == 0:
            events[-1].synchronize()
    torch.cuda.synchronize()
    times = [first.elapsed_time(second) / 1e3 for first, second in pairwise(events)]
    return statistics.median(times[len(times) // 2 :])  # the later half: the chip is warm


def copies() -> float:
    """TB/s of a copy on the device, bytes read and written."""
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return round(2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e12, 2)


def products(tokens: int, kind: str, least: float) -> str:
    """TFLOP/s of all matrix products of a layer: forward, gradients of inputs, gradients of weights."""
    shape = SHAPES["7b"]
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    sides = [(hidden, hidden)] * 4 + [(hidden, inner)] * 2 + [(inner, hidden)]
    made = {side: matrices(tokens, *side) for side in set(sides)}
    run = {"tensorwise": tensorwise, "rowwise": rowwise}.get(kind, torch.mm)
    pairs = [(prepared(run, a, b)) for side in sides for a, b in made[side]]
    taken = seconds(lambda: [run_it() for run_it in pairs], least)
    work = sum(3 * 2 * tokens * first * second for first, second in sides)
    return f"{work / taken / 1e12:.0f} TFLOP/s, {taken * 1e3:.2f} ms"


def matrices(tokens: int, first: int, second: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The operands of y = x W', dx = dy W, dW = dy' x, as autograd has them."""
    made = {"device": "cuda", "dtype": torch.bfloat16}
    inputs, weight = torch.randn(tokens, first, **made), 0.02 * torch.randn(second, first, **made)
    gradient = 1e-3 * torch.randn(tokens, second, **made)
    return [(inputs, weight.t()), (gradient, weight), (gradient.t(), inputs)]


def prepared(run: Callable[..., object], left: torch.Tensor, right: torch.Tensor) -> Callable[[], object]:
    """The product with its operands ready, in float8 for the two kinds that have scales."""
    if run is torch.mm:
        return lambda: torch.mm(left, right)
    wide = run is rowwise
    one = left.abs().amax(1, keepdim=True).float() if wide else left.abs().amax().float()
    other = right.abs().amax(0, keepdim=True).float() if wide else right.abs().amax().float()
    scales = (one.clamp(min=1e-12) / 448).contiguous(), (other.clamp(min=1e-12) / 448).contiguous()
    small = (left / scales[0]).to(torch.float8_e4m3fn).contiguous()
    turned = (right / scales[1]).to(torch.float8_e4m3fn).t().contiguous().t()
    return lambda: run(small, turned, *scales)


def tensorwise(left: torch.Tensor, right: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> object:
    """A product of float8 matrices with a scale each."""
    return torch._scaled_mm(left, right, one, other, out_dtype=torch.bfloat16, use_fast_accum=True)


def rowwise(left: torch.Tensor, right: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> object:
    """A product of float8 matrices with a scale to a row and to a column."""
    return torch._scaled_mm(left, right, one, other, out_dtype=torch.bfloat16, use_fast_accum=True)


def head(tokens: int) -> str:
    """TFLOP/s of the head's products on a chunk of so many tokens."""
    shape = SHAPES["7b"]
    pairs = matrices(tokens, shape["hidden_size"], shape["vocab_size"])
    taken = seconds(lambda: [left @ right for left, right in pairs])
    work = 3 * 2 * tokens * shape["hidden_size"] * shape["vocab_size"]
    return f"{work / taken / 1e12:.0f} TFLOP/s, {taken * 1e3:.2f} ms"


def attention(backend: SDPBackend, rows: int, length: int) -> str:
    """TFLOP/s of causal attention, forward and with backward, of the pairs that are seen."""
    made = {"device": "cuda", "dtype": torch.bfloat16, "requires_grad": True}
    query, key, value = (
        torch.randn(rows, length, 32, 128, **made).transpose(1, 2) for _ in range(3)
    )  # as the projections leave it
    gradient = torch.randn(rows, 32, length, 128, device="cuda", dtype=torch.bfloat16)

    def forward() -> torch.Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=True)

    with sdpa_kernel(backend):
        alone = seconds(forward)
        both = seconds(lambda: torch.autograd.grad(forward(), (query, key, value), gradient))
    work = 2 * 2 * rows * 32 * 128 * length**2 / 2
    forwards, all_of_it = work / alone / 1e12, 3.5 * work / both / 1e12
    return f"{forwards:.0f} TFLOP/s forward, {all_of_it:.0f} with backward ({both * 1e3:.2f} ms)"
