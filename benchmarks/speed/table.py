"""RESULTS.md from the JSON files of `run.py`; of a case that is in several, the last.

python benchmarks/speed/table.py benchmarks/speed/results/*.json > benchmarks/speed/RESULTS.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Found = dict[str, dict[str, Any]]
_SMOOTH = 20


def main() -> None:
    """Print the page."""
    cases: Found = {}
    gpus = set()
    for file in map(Path, sys.argv[1:]):
        content = json.loads(file.read_text(encoding="utf-8"))
        gpus.add(content["gpu"])
        cases |= {each["name"]: each for each in content["cases"]}
    parts = [head(cases, gpus), seven_b(cases), small(cases), figure(cases), curves(cases), chip(cases)]
    print("\n\n".join(part for part in (*parts, profiles(cases)) if part))


def head(cases: Found, gpus: set[str]) -> str:
    """The machine and the versions."""
    environment = next((each["environment"] for each in cases.values() if "environment" in each), {})
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "device")
    return "\n".join(
        [
            "# Speed on one GPU",
            "",
            f"{environment.get('device', '')} ({'; '.join(sorted(gpus)) or 'no clocks read'}), {versions}.",
            "Medians of the measured steps. MFU: of 989 TFLOP/s, 6 operations for each weight of a matrix",
            "product and attention's of the pairs that are seen; in brackets as most published figures",
            "count, 6 for every parameter and attention's of all pairs. GiB: torch's largest allocation.",
            "Data: the share of the step in which `Trainer` waits for batches.",
        ]
    )


def seven_b(cases: Found) -> str:
    """LLaMA-7B."""
    found = {name: each for name, each in cases.items() if name.startswith(("7b-", "plain-mb"))}
    return found and "## LLaMA-7B shape, 16 rows of 2,048 tokens, target 131,072\n\n" + speeds(
        found, cases.get("7b-plain")
    )


def small(cases: Found) -> str:
    """SmolLM2-135M."""
    parts = []
    for rows, words in (("8k", "8 rows of 8,192"), ("2k", "32 rows of 2,048")):
        found = {name: each for name, each in cases.items() if name.startswith(f"135m-{rows}")}
        if found:
            table = speeds(found, cases.get(f"135m-{rows}-plain"))
            parts.append(f"## SmolLM2-135M shape, {words} tokens\n\n{table}")
    return "\n\n".join(parts)


def speeds(found: Found, plain: dict[str, Any] | None) -> str:
    """One line a case, and its note."""
    lines = [
        "| case | rows | s a step | tokens/s | times plain | TFLOP/s | MFU | GiB | data | idle | MHz, W |"
        " expected |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, each in found.items():
        note = each["settings"]["note"]
        if "step_seconds" not in each:
            why = each.get("error") or each.get("skipped", "")
            lines.append(f"| {name} | {each['settings']['micro_batch']} | {why} | | | | | | | | | {note} |")
            continue
        times = f"{plain['step_seconds'] / each['step_seconds']:.2f}" if plain else ""
        idle = f"{each['idle']:.1%}" if "idle" in each else ""
        gpu = each.get("gpu", {})
        clocks = f"{gpu.get('sm_mhz', 0):.0f}, {gpu.get('watts', 0):.0f}" if gpu else ""
        mfu = f"{each['mfu']:.1%} ({each['mfu_usual']:.1%})"
        cells = [
            name,
            each["micro_batch"],
            f"{each['step_seconds']:.3f}",
            f"{each['tokens_per_second']:,.0f}",
        ]
        cells += [times, f"{each['tflops_strict']:.0f}", mfu, f"{each['peak_gib']:.1f}"]
        cells += [f"{each['waiting']:.2%}", idle, clocks, note]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    failed = [f"- {name}: {each['probes']}" for name, each in found.items() if each.get("probes")]
    return "\n".join([*lines, *(["", "Probes that do not hold:", "", *failed] if failed else [])])


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
                one = next((p for p in points if (p["rows"], p["length"]) == (kind, length)), {})
                text = one.get("error") or (f"{one[key]:.2f}" if key in one else "")
                again = " (checkpointing)" if one.get("checkpointing") and key == "gib" else ""
                cells.append(text + again)
        lines.append(f"| {' | '.join(cells)} |")
    pose = [each for each in points if each["rows"] == "PoSE" and "seconds" in each]
    if len(pose) > 1:
        times, sizes = [each["seconds"] for each in pose], [each["gib"] for each in pose]
        lines += ["", f"PoSE: seconds within {spread(times):.1%}, memory within {spread(sizes):.1%}."]
        if pose[-1]["length"] == pose[0]["length"]:
            lines[-1] += f" The first length again at the end: {times[-1] / times[0] - 1:+.1%}."
    return "\n".join(lines)


def spread(values: list[float]) -> float:
    """Largest over smallest, less one."""
    return max(values) / min(values) - 1 if min(values) else 0.0


def curves(cases: Found) -> str:
    """Loss curves against the plain one."""
    plain = cases.get("curve-plain", {}).get("losses")
    if not plain:
        return ""
    expected = smooth(plain)
    lines = [
        f"## Loss curves: {len(plain)} steps on the same rows, against the plain one",
        "",
        f"Means over {_SMOOTH} steps; nats a token.",
        "",
        "| case | last | largest difference | where | of the last | seconds a step |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in cases.items():
        if not name.startswith("curve-"):
            continue
        if len(each.get("losses", [])) != len(plain):
            lines.append(f"| {name} | {each.get('error') or each.get('skipped', 'not whole')} | | | | |")
            continue
        found = smooth(each["losses"])
        off = [second - first for first, second in zip(expected, found, strict=True)]
        place = max(range(len(off)), key=lambda index: abs(off[index]))
        cells = [name, f"{found[-1]:.4f}", f"{off[place]:+.4f}", f"step {place + _SMOOTH}", f"{off[-1]:+.4f}"]
        cells.append(f"{each['step_seconds']:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def smooth(losses: list[float]) -> list[float]:
    """Means over `_SMOOTH` steps."""
    size = min(_SMOOTH, len(losses))
    return [sum(losses[first : first + size]) / size for first in range(len(losses) - size + 1)]


def chip(cases: Found) -> str:
    """What the chip gives."""
    found = cases.get("ceilings", {}).get("ceilings")
    if not found:
        return ""
    lines = ["## What the chip gives to the shapes of a LLaMA-7B", "", "| what | found |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in found.items())])


def profiles(cases: Found) -> str:
    """Where the time goes, for each case that was profiled."""
    parts = [
        "\n".join([f"### {name}", "", "```text", *each["lines"], "```"])
        for name, each in cases.items()
        if "kernels" in each
    ]
    return "\n\n".join(["## Where the time goes", *parts]) if parts else ""


if __name__ == "__main__":
    main()
