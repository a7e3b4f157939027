"""How fast a training goes: tokens a second, memory, and model FLOPs utilisation."""

from __future__ import annotations

import time
from collections import deque

import torch

_STEPS = 10
"""The mean is over so many optimizer steps, so that one slow step does not shake it."""
_GIB = 1024**3


class Speed:
    """Reads the clock after every optimizer step.

    ``flops``: operations that the model needs for one token forward and backward, recomputation not counted,
    and those that all devices together can do in a second (`skipwise.train.planned`). Without them there is
    no MFU (Chowdhery et al. 2022, appendix B).
    """

    def __init__(self, tokens_per_step: int, flops: tuple[float, float] | None = None) -> None:
        self.tokens_per_step = tokens_per_step
        self.flops = flops
        self._ends: deque[tuple[int, float]] = deque(maxlen=_STEPS + 1)

    def read(self, step: int) -> dict[str, float]:
        """``tokens_per_second``, ``mfu`` (0 to 1) and ``memory_gib`` (largest so far on this GPU), as known.

        The first step only starts the clock: it also warms up.
        """
        self._ends.append((step, time.perf_counter()))
        found: dict[str, float] = {}
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        if last > first:
            speed = (last - first) * self.tokens_per_step / (ended - began)
            found["tokens_per_second"] = speed
            if self.flops:
                each, peak = self.flops
                found["mfu"] = speed * each / peak
        if torch.cuda.is_available():
            found["memory_gib"] = torch.cuda.max_memory_allocated() / _GIB
        return found
