"""RESULTS.md from the JSON files of `run.py`, in the order in which they were measured.

    cd benchmarks/speed && python table.py results/{first,second,third,fourth}.json > RESULTS.md

A case with good results in several files has a line for each. What failed is listed with its reason, what has
no result at all by name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cases import CASES
from reading import Found, nearest, read

_SMOOTH = 20
_LONGEST = 6
_ONE_SETTING = {
    "curve-fp8-rowwise": "curve-ours",
    "curve-compile": "curve-liger",
    "curve-8bit": "curve-liger",
}
"""The loss curve that differs in one setting alone: compared where both are of one file."""


def main() -> None:
    """Print the page."""
    cases, failures, gpus = read([Path(name) for name in sys.argv[1:]])
    parts = [head(cases, gpus), seven_b(cases), small(cases), figure(cases), curves(cases)]
    parts += [profiles(cases), chip(cases), missing(cases, failures)]
    print("\n\n".join(part for part in parts if part))


def head(cases: Found, gpus: set[str]) -> str:
    """The machine and the versions."""
    environment = next((each["environment"] for each in cases.values() if "environment" in each), {})
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "device")
    return f"""\
# Speed on one GPU

Made by `table.py` of `results/`; how it was measured, what was expected and what failed: README.md.

{environment.get("device", "")} ({"; ".join(sorted(gpus)) or "no clocks read"}), {versions}.

- Seconds are medians of the measured steps. GiB: torch's largest allocation. From: the file in `results/`.
  The files are of different times, perhaps of different cards. Times plain: of the plain case of the same
  file, else of the file that has one.
- MFU, of 989 TFLOP/s, strict: 6 operations for each weight of a matrix product, and attention's of the pairs
  that are seen. In brackets, usual: 6 for every parameter, and attention's of all pairs.
- Data: the share of the step in which `Trainer` waits for batches. Idle: that without any kernel, profiled.\
"""


def seven_b(cases: Found) -> str:
    """LLaMA-7B, the slowest first."""
    found = {name: each for name, each in cases.items() if name.startswith(("7b-", "plain-mb"))}
    if not found:
        return ""
    ordered = dict(sorted(found.items(), key=lambda item: -item[1]["step_seconds"]))
    title = "## LLaMA-7B shape, 16 rows of 2,048 tokens a step, target 131,072"
    return f"{title}\n\n{speeds(ordered, cases, '7b-plain')}"


def small(cases: Found) -> str:
    """SmolLM2-135M."""
    parts = []
    for rows, words in (("8k", "8 rows of 8,192"), ("2k", "32 rows of 2,048")):
        found = {name: each for name, each in cases.items() if name.startswith(f"135m-{rows}")}
        if found:
            found = dict(sorted(found.items(), key=lambda item: -item[1]["step_seconds"]))
            table = speeds(found, cases, f"135m-{rows}-plain")
            parts.append(f"## SmolLM2-135M shape, {words} tokens a step\n\n{table}")
    return "\n\n".join(parts)


def speeds(found: Found, cases: Found, plain: str) -> str:
    """One line a case; rows: of a micro-batch."""
    lines = [
        "| case | rows | s a step | shortest to longest | tokens/s | times plain | TFLOP/s | MFU | GiB "
        "| data | idle | MHz, W | from |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, each in found.items():
        gpu, slow = each.get("gpu", {}), nearest(cases, plain, each)
        cells = [
            name,
            str(each["micro_batch"]),
            f"{each['step_seconds']:.3f}",
            f"{min(each['steps']):.3f} to {max(each['steps']):.3f}",
            f"{each['tokens_per_second']:,.0f}",
            f"{slow['step_seconds'] / each['step_seconds']:.2f}" if slow else "",
            f"{each['tflops_strict']:.0f}",
            f"{each['mfu']:.1%} ({each['mfu_usual']:.1%})",
            f"{each['peak_gib']:.1f}",
            f"{each['waiting']:.2%}",
            f"{each['idle']:.1%}" if "idle" in each else "",
            f"{gpu.get('sm_mhz', 0):.0f}, {gpu.get('watts', 0):.0f}" if gpu else "",
            each["file"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    refused = [
        f"- {name} ({each['file']}): {each['probes']}" for name, each in found.items() if each.get("probes")
    ]
    return "\n".join(
        [*lines, *(["", "Measured although a probe did not hold:", "", *refused] if refused else [])]
    )


def figure(cases: Found) -> str:
    """Both panels of Figure 3."""
    points = cases.get("figure3", {}).get("points", [])
    if not points:
        return ""
    lines = [
        "## The paper's Figure 3: one step of 131,072 tokens, LLaMA-7B shape",
        "",
        "PoSE: rows of 2,048 tokens, positions up to the length; full: rows of the length.",
        "",
        "| length | PoSE, s | full, s | PoSE, GiB | full, GiB |",
        "|---|---|---|---|---|",
    ]
    for length in sorted({each["length"] for each in points}):
        cells = [f"{length:,}"]
        for key in ("seconds", "gib"):
            for kind in ("PoSE", "full"):
                same = [p for p in points if (p["rows"], p["length"]) == (kind, length)]
                cells.append("; ".join(cell(one, key) for one in same))
        lines.append(f"| {' | '.join(cells)} |")
    pose = [each for each in points if each["rows"] == "PoSE" and "seconds" in each]
    if len(pose) > 1:
        times, sizes = [each["seconds"] for each in pose], [each["gib"] for each in pose]
        lines += ["", f"PoSE: seconds within {spread(times):.1%}, memory within {spread(sizes):.1%}."]
        if pose[-1]["length"] == pose[0]["length"]:
            lines[-1] += (
                f" The first point again at the end: {times[-1] / times[0] - 1:+.1%}. All but the first"
                f" measurement: seconds within {spread(times[1:]):.1%}."
            )
    return "\n".join(lines)


def cell(point: dict[str, Any], key: str) -> str:
    """One number of Figure 3, or why there is none."""
    if "error" in point:
        return str(point["error"])
    return f"{point[key]:.2f}" + (" (checkpointing)" if point["checkpointing"] and key == "gib" else "")


def spread(values: list[float]) -> float:
    """Largest over smallest, less one."""
    return max(values) / min(values) - 1 if min(values) else 0.0


def curves(cases: Found) -> str:
    """Loss curves against the plain one, and against the one that differs in one setting."""
    plain = cases.get("curve-plain", {}).get("losses")
    if not plain:
        return ""
    lines = [
        f"## Loss curves: {len(plain)} steps",
        "",
        f"Means over {_SMOOTH} steps, nats a token; at: the step with which the mean ends. One run each.",
        "Rows are of this repository's text, which changes between files; and plain (to `fourth`) takes the",
        "rows of its file in another order. So what is from plain is from other rows. One setting: from the",
        "curve of the same file that has the same rows in the same order and differs in that setting alone.",
        "",
        "| case | the last | from plain | most above plain | most below plain | from, one setting | s a step "
        "| from |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, each in cases.items():
        if not name.startswith("curve-") or len(each["losses"]) != len(plain):
            continue
        found, expected = smooth(each["losses"]), smooth(nearest(cases, "curve-plain", each)["losses"])
        cells = [name, f"{found[-1]:.4f}"]
        cells += ["", "", ""] if each["name"] == "curve-plain" else compared(found, expected)
        other = nearest(cases, _ONE_SETTING.get(each["name"], ""), each)
        paired = other.get("file") == each["file"]
        cells.append(f"{other['name']}: {compared(found, smooth(other['losses']))[0]}" if paired else "")
        cells += [f"{each['step_seconds']:.3f}", each["file"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compared(found: list[float], expected: list[float]) -> list[str]:
    """The last difference of two curves, and its extremes."""
    off = [second - first for first, second in zip(expected, found, strict=True)]
    return [f"{off[-1]:+.4f} ({off[-1] / expected[-1]:+.1%})", extreme(off, max), extreme(off, min)]


def smooth(losses: list[float]) -> list[float]:
    """Means over `_SMOOTH` steps."""
    size = min(_SMOOTH, len(losses))
    return [sum(losses[first : first + size]) / size for first in range(len(losses) - size + 1)]


def extreme(off: list[float], choose: Any) -> str:
    """The largest or the smallest difference, and where it is."""
    return f"{choose(off):+.4f} at {off.index(choose(off)) + _SMOOTH}"


def profiles(cases: Found) -> str:
    """Where the time goes, for each case that was profiled."""
    found = {name: each for name, each in cases.items() if "parts_ms" in each}
    if not found:
        return ""
    kinds = list(dict.fromkeys(kind for each in found.values() for kind in each["parts_ms"]))
    lines = [
        "## Where the time of a step goes",
        "",
        "Milliseconds under the profiler, by the kernels' names. TFLOP/s: those that the method needs, what",
        "checkpointing computes again not counted.",
        "",
        f"| | {' | '.join(found)} |",
        "|---" * (len(found) + 1) + "|",
    ]
    for kind in kinds:
        cells = [f"{each['parts_ms'].get(kind, 0):.1f}" for each in found.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    totals = {
        "TFLOP/s of the products": [f"{rate(each):.0f}" for each in found.values()],
        "GPU without a kernel": [f"{each['idle']:.1%}" for each in found.values()],
    }
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in totals.items()]
    for name, each in found.items():
        lines += ["", f"### The longest kernels of {name}", "", "| ms | times | kernel |", "|---|---|---|"]
        for one in each["kernels"][:_LONGEST]:
            lines.append(f"| {one['ms']:.1f} | {one['calls']:.0f} | `{one['name'][:90]}` |")
    return "\n".join(lines)


def rate(case: dict[str, Any]) -> float:
    """TFLOP/s of the matrix products: all operations but attention's, which the two counts differ in."""
    counted = case["operations_per_token"]
    attention = (counted["usual"] - 6 * counted["parameters"]) / 2
    tokens = case["tokens_per_second"] * case["step_seconds"]
    return float((counted["strict"] - attention) * tokens / case["parts_ms"]["matrix products"] / 1e9)


def chip(cases: Found) -> str:
    """What the chip gives."""
    found = cases.get("ceilings", {}).get("ceilings")
    if not found:
        return ""
    lines = ["## What the chip gives to the shapes of a LLaMA-7B", "", "| what | found |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in found.items() if name != "copy_tb_s"]
    return "\n".join([*lines, f"| copies, bytes read and written | {found['copy_tb_s']} TB/s |"])


def missing(cases: Found, failures: list[dict[str, Any]]) -> str:
    """What failed and why; what has no result."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for each in failures:
        why = each.get("error") or each.get("skipped") or "not whole"
        name = each["name"] + (
            f" (measured in {cases[each['name']]['file']})" if each["name"] in cases else ""
        )
        reasons.setdefault((each["file"], why), []).append(name)
    lines = ["## What failed", "", "| file | cases | reason, as far as it was kept |", "|---|---|---|"]
    lines += [f"| {file} | {', '.join(names)} | {why} |" for (file, why), names in reasons.items()]
    tried = {each["name"] for each in failures}
    never = [name for name in CASES if name not in cases and name not in tried]
    failed = [name for name in CASES if name not in cases and name in tried]
    return "\n".join(
        [
            *(lines if reasons else ["## What has no result"]),
            "",
            f"Tried and without a result: {', '.join(failed) or 'none'}.",
            "",
            f"Never run: {', '.join(never) or 'none'}.",
        ]
    )


if __name__ == "__main__":
    main()
