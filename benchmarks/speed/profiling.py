"""Where the time of a step goes: kernels by name and by kind, and the time in which there is none."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = (
    ("attention", r"flash|fmha|sdpa|attention"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|xmma|splitk|scaled_mm"),
    ("clipping", r"multi_tensor|lpnorm|foreach"),
    ("copies between host and device, and fills", r"memcpy|memset|fillfunctor"),
    ("copies and casts", r"copy|_cast|cat(array|_)"),
    ("loss", r"cross_entropy|softmax|nll"),
    ("element by element", r""),
)
MARK = "spin_kernel"


def mark() -> None:
    """A tiny kernel of a known name: the kernels between two of them are the optimizer's."""
    if torch.cuda.is_available():
        torch.cuda._sleep(1)


class Profile:
    """Records from now on, until `stop`."""

    def __init__(self) -> None:
        self.on_gpu = torch.cuda.is_available()
        kind = ProfilerActivity.CUDA if self.on_gpu else ProfilerActivity.CPU
        self.profiler = profile(activities=[kind])
        self.profiler.start()
        mark()  # time counts from here; twice, so that no optimizer begins
        mark()
        self.events: list[tuple[int, int, str]] = []

    def stop(self) -> None:
        """Keep name, start and end of each kernel, in nanoseconds."""
        self.profiler.stop()
        wanted = torch.autograd.DeviceType.CUDA if self.on_gpu else torch.autograd.DeviceType.CPU
        for event in self.profiler.profiler.kineto_results.events():
            name = event.name()
            ranges = name.startswith(("ProfilerStep", "Optimizer.", "##", "Torch-Compiled", "CompiledF"))
            if event.device_type() == wanted and event.duration_ns() > 0 and not ranges:
                start = event.start_ns()
                self.events.append((start, start + event.duration_ns(), name))
        self.events.sort()

    def found(self, steps: int) -> dict[str, Any]:
        """Milliseconds a step of each kind, the share without a kernel, and the longest kernels in words."""
        if not self.events:
            return {"lines": ["the profiler saw nothing"]}
        kinds, kernels, calls, updating = Counter[str](), Counter[str](), Counter[str](), False
        for start, end, name in self.events:
            if MARK in name:
                updating = not updating
                continue
            kind = "optimizer" if updating else kind_of(name)
            kinds[kind] += end - start
            kernels[name] += end - start
            calls[name] += 1
        first, last = self.events[0][0], max(end for _, end, _ in self.events)
        idle = 1 - busy(self.events) / (last - first)
        each = 1e6 * steps
        parts = {kind: time / each for kind, time in kinds.most_common()}
        total = sum(kinds.values())
        lines = [f"{time:9.2f} ms  {time * each / total:6.1%}  {kind}" for kind, time in parts.items()]
        lines.append(f"GPU without a kernel: {idle:.2%} of {(last - first) / each:.1f} ms a step (profiled)")
        top = [
            {"name": name[:140], "ms": time / each, "calls": calls[name] / steps, "kind": kind_of(name)}
            for name, time in kernels.most_common(25)
        ]
        lines += [f"{one['ms']:9.2f} ms  {one['calls']:6.0f} x  {one['name'][:100]}" for one in top]
        return {"parts_ms": parts, "idle": idle, "kernels": top, "lines": lines}


def kind_of(name: str) -> str:
    """What a kernel does, by its name."""
    return next(kind for kind, pattern in KINDS if re.search(pattern, name.lower()))


def busy(events: list[tuple[int, int, str]]) -> int:
    """Nanoseconds in which at least one kernel runs; ``events`` in order of their start."""
    total, reached = 0, 0
    for start, end, _ in events:
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
