"""Speed of training on one GPU: every case in a process of its own, results in one JSON file.

    python benchmarks/speed/run.py --output DIR --budget 560 [--cases '7b-*,ceilings']     (one H200)
    python benchmarks/speed/run.py --output DIR --tiny     (any machine: does every case run?)

A case that fails, runs out of memory or takes too long does not stop the others. The next case imports its
modules while one is measured, and touches the GPU only when that one is done. Clocks and power are read with
``nvidia-smi`` twice a second; nothing is set.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cases import CASES, Case, tiny

_HERE = Path(__file__).parent
_QUERY = "clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active"


def main() -> None:
    """Run what was asked for, in the order of the table or of ``--cases``, while the budget lasts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", _HERE / "results")))
    parser.add_argument("--name", default="results", help="of the JSON file")
    parser.add_argument("--cases", default="*", help="names or patterns, divided by commas")
    parser.add_argument("--budget", type=float, default=560, help="seconds; no case is started without time")
    parser.add_argument("--least", type=float, default=30, help="seconds that a case needs to be started")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--list", action="store_true", help="only name the cases")
    options = parser.parse_args()
    asked = chosen(options.cases)
    if options.list:
        print("\n".join(f"{each.name:22} {each.note}" for each in asked))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    Runner(options, asked).run()


def chosen(patterns: str) -> list[Case]:
    """The cases that match, in the order of the patterns; each once."""
    found: dict[str, Case] = {}
    for pattern in patterns.split(","):
        some = {name: case for name, case in CASES.items() if fnmatch(name, pattern.strip())}
        if not some:
            sys.exit(f"no case {pattern!r}: known are {', '.join(CASES)}")
        found |= some
    return list(found.values())


class Runner:
    """Starts the processes one after the other and gathers what they found."""

    def __init__(self, options: argparse.Namespace, cases: list[Case]) -> None:
        self.options, self.cases = options, cases
        self.started = time.monotonic()
        self.file = options.output / f"{options.name}.json"
        self.results: list[dict[str, Any]] = []
        self.gpu = Gpu()

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return float(self.options.budget - (time.monotonic() - self.started))

    def run(self) -> None:
        """All cases; the file is written again after each."""
        waiting = [tiny(each) if self.options.tiny else each for each in self.cases]
        following = self._spawn(waiting[0])
        while waiting:
            case, process = waiting.pop(0), following
            if self.left < self.options.least:
                process.kill()
                print(f"out of time before {case.name}", flush=True)
                break
            following = self._spawn(waiting[0]) if waiting else None
            self.results.append(self._finish(case, process))
            self._write()
            print(f"{self.options.budget - self.left:4.0f} s  {line(self.results[-1])}", flush=True)
        self.gpu.stop()

    def _spawn(self, case: Case) -> subprocess.Popen[str]:
        file = self._part(case)
        file.unlink(missing_ok=True)
        command = [sys.executable, str(_HERE / "worker.py"), case.name, str(file)]
        cache = Path(os.environ.get("SPEED_CACHE", "/tmp/skipwise-speed"))  # compiled code, for the next case
        environment = os.environ | {
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "TRITON_CACHE_DIR": str(cache / "triton"),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        log = (self.options.output / f"{self.options.name}.log").open("a", encoding="utf-8")
        return subprocess.Popen(
            [*command, *(["--tiny"] if self.options.tiny else [])],
            **{"stdin": subprocess.PIPE, "stdout": log, "stderr": log, "text": True, "env": environment},
        )

    def _finish(self, case: Case, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Let the process begin, wait for it, and read what it left, whole or in part."""
        began, wall = time.monotonic(), time.time()
        found: dict[str, Any] = {"name": case.name, "settings": asdict(case)}
        try:
            process.communicate("go\n", timeout=max(1.0, min(case.limit, self.left)))
        except (subprocess.TimeoutExpired, BrokenPipeError):
            process.kill()
            process.wait()
            found["error"] = f"ended after {time.monotonic() - began:.0f} s"
        part = self._part(case)
        if part.is_file():
            found |= json.loads(part.read_text(encoding="utf-8"))
            part.unlink()
        elif "error" not in found:
            found["error"] = f"the process ended with exit code {process.returncode}"
        found["gpu"] = self.gpu.between(*found.pop("window", (wall, time.time())))
        found["case_seconds"] = round(time.monotonic() - began, 1)
        return found

    def _part(self, case: Case) -> Path:
        return Path(self.options.output, f".{case.name}.json")

    def _write(self) -> None:
        content = {"command": " ".join(sys.argv), "gpu": self.gpu.name, "cases": self.results}
        self.file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Gpu:
    """Clocks, power and temperature while the cases run, read only."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, list[str]]] = []
        self.name = _ask("name,driver_version,power.limit,clocks.max.sm")
        self.process: subprocess.Popen[str] | None = None
        if self.name:
            command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", "-lms", "500"]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for text in self.process.stdout:
            self.samples.append((time.time(), [each.strip() for each in text.split(",")]))

    def between(self, first: float, last: float) -> dict[str, Any]:
        """Medians of what was read in a time."""
        lines = [values for when, values in list(self.samples) if first <= when <= last]
        found: dict[str, Any] = {}
        for place, name in enumerate(("sm_mhz", "memory_mhz", "watts", "celsius")):
            numbers = [float(each[place]) for each in lines if each[place].replace(".", "").isdigit()]
            if numbers:
                found[name] = statistics.median(numbers)
        reasons = sorted({each[4] for each in lines if len(each) > 4})
        return found | ({"event_reasons": reasons} if reasons else {})

    def stop(self) -> None:
        """End the reader."""
        if self.process:
            self.process.kill()


def _ask(what: str) -> str:
    try:
        command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def line(result: dict[str, Any]) -> str:
    """A case in a line, and what the profiler found below it."""
    words = [f"{result['name']:20}"]
    if "step_seconds" in result:
        words.append(f"{result['step_seconds']:.4f} s/step  {result['tokens_per_second']:,.0f} tok/s")
        if "mfu" in result:
            words.append(f"MFU {result['mfu']:.1%} (usual count {result['mfu_usual']:.1%})")
        words += [f"{result.get('peak_gib', 0):.1f} GiB", f"data {result.get('waiting', 0):.2%}"]
    if result.get("gpu"):
        words.append(f"{result['gpu'].get('sm_mhz', 0):.0f} MHz {result['gpu'].get('watts', 0):.0f} W")
    for key in ("skipped", "error", "probes", "summary"):
        if result.get(key):
            words.append(f"{key.upper()}: {result[key]}")
    words.append(f"[{result['case_seconds']:.0f} s]")
    return "  ".join(words) + "".join(f"\n      {each}" for each in result.get("lines", []))


if __name__ == "__main__":
    main()
