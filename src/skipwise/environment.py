"""What a run ran on: versions, hardware and memory, for the record beside every figure."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib import metadata
from typing import Any

import psutil
import torch

_PACKAGES = ("skipwise", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")
_GIB = 1024**3


def default_device() -> str:
    """The device models run on: the GPU of this process among a launcher's, the first GPU, or the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{int(rank) % torch.cuda.device_count()}" if rank else "cuda"


def idle_gpus() -> str | None:
    """A hint for the user of a run that leaves GPUs of this machine unused, without a launcher."""
    count = torch.cuda.device_count()
    if count < 2 or "LOCAL_RANK" in os.environ:
        return None
    return (
        f"this machine has {count} GPUs and this run uses one: torchrun --nproc-per-node {count} -m skipwise "
        "train RECIPE uses all"
    )


def exact_matmuls() -> None:
    """Keep float32 matrix products in float32.

    Some versions of `transformers` compute rotary angles by a matmul; under TF32 every position above 2,048
    would be rounded.
    """
    torch.set_float32_matmul_precision("highest")


def facts() -> dict[str, Any]:
    """Versions and hardware, as `run.json` holds them."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    hardware = {
        "device": gpu or "CPU",
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / _GIB, 1),
    }
    return {"versions": versions, "hardware": hardware}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from its sources
        return "not installed"


def peak_memory_gib() -> float:
    """Largest memory of this process so far: on the GPU where one is used, else resident in RAM."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / _GIB)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / _GIB if sys.platform == "darwin" else peak * 1024 / _GIB)


def _cpu_name() -> str:
    if sys.platform.startswith("linux"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
