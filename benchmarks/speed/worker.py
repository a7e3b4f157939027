"""One case in a process of its own: ``worker.py NAME FILE``; imports, waits for a line, measures, writes."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import training
from cases import CASES, Case, tiny
from transformers import Trainer  # noqa: F401 - what takes long to import is imported before the line

_PACKAGES = ("torch", "triton", "transformers", "accelerate", "liger-kernel", "torchao")


def main() -> None:
    """Measure the case that the arguments name."""
    name, file = sys.argv[1], Path(sys.argv[2])
    case = CASES[name]
    if "--tiny" in sys.argv:
        case = tiny(case)
    modules = [preloaded(case)]
    sys.stdin.readline()
    found: dict[str, Any] = {"settings": asdict(case), "environment": environment()}
    started = time.time()

    def report(more: dict[str, Any]) -> None:
        found.update(more)
        found.setdefault("window", [started, time.time()])
        file.write_text(json.dumps(found), encoding="utf-8")

    try:
        why = reason_to_skip(case)
        if why:
            report({"skipped": why})
        else:
            with tempfile.TemporaryDirectory() as folder:
                measure(modules[0], case, Path(folder), report)
    except Exception as error:  # noqa: BLE001 - said in the results
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0][:300]
        report({"error": f"{type(error).__name__}: {first}"})


def preloaded(case: Case) -> Any:
    """The module that measures the case, with what it imports."""
    if case.kind == "ceilings":
        import ceilings

        return ceilings
    if case.kind == "figure3":
        import figure3

        return figure3
    if case.fp8:
        _try_import("torchao.float8")
    if case.liger != "off" and find_spec("liger_kernel"):
        _try_import("liger_kernel.transformers")
    if case.compile or case.optimizer == "compiled":
        _try_import("torch._inductor.compile_fx")
    return training


def measure(module: Any, case: Case, folder: Path, report: Any) -> None:
    """Run the case; ``report`` takes what is known so far."""
    if module is not training:
        module.measure(case, report)
    elif case.kind == "loop":
        report(training.loop(case))
    else:
        report(training.train(case, folder))


def reason_to_skip(case: Case) -> str:
    """Why this machine cannot run it; nothing if it can."""
    on_gpu = torch.cuda.is_available()
    if case.kind == "ceilings" and not on_gpu:
        return "needs a GPU"
    if case.optimizer == "8bit" and not _try_import("torchao.optim"):
        return "torchao is not installed"
    if case.fp8 and not _try_import("torchao.float8"):
        return "torchao is not installed"
    if on_gpu and case.fp8 and torch.cuda.get_device_capability() < (8, 9):
        return "needs a GPU with float8"
    return ""


def _try_import(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        traceback.print_exc()
        return False
    return True


def environment() -> dict[str, Any]:
    """Versions and the device."""
    found: dict[str, Any] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    found["cudnn"] = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return found


if __name__ == "__main__":
    main()
