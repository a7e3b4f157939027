"""Tables that put several runs together: seeds, methods by factor, PoSE against rows of the full length."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from cells import Rows, ppl, table
from runs import Run, grid, method

from skipwise.report.bootstrap import wilson
from skipwise.report.words import length_label

T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t, 97.5 %, by degrees of freedom."""


def crossed(rows: Rows) -> list[str]:
    """Methods by factor: perplexity of the last bucket, and keys found at the target."""
    cells = {(method(run.line), run.line["target"] // 8192): run for run in rows.values()}
    methods, factors = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    factors.sort()

    def crossing(title: str, text: Callable[[Run], str]) -> str:
        lines = (
            [name, *(text(cells[name, each]) if (name, each) in cells else "" for each in factors)]
            for name in methods
        )
        return table([title, *(f"{each} times" for each in factors)], lines)

    def keys(run: Run) -> str:
        found = run.passkey.get(run.line["target"])
        return f"{found[0]}/{found[1]}" if found else ""

    if not cells:
        return []
    return [crossing("last bucket", lambda run: ppl(run.last)), crossing("passkey at the target", keys)]


def seeds(found: Mapping[str, Sequence[Run]]) -> list[str]:
    """Means over seeds with 95 % intervals: Student's t, for keys found Wilson's of all prompts together."""
    several = {name: runs for name, runs in found.items() if len(runs) > 1}
    title = "## Seeds"
    if not several:
        return [title, "Not measured."] if grid("seeds") else []
    head = "setting,seeds,8k bucket,last,near,other 2k (%),other 8k (%),s,GiB"
    cells = (
        [
            name,
            ", ".join(str(run.line.get("seed", 0)) for run in runs),
            mean(run.buckets.get(8192, math.nan) for run in runs),
            mean(run.last for run in runs),
            mean(run.near for run in runs),
            *(mean(100 * run.change(place) for run in runs) for place in (0, 1)),
            mean(run.line.get("train_seconds", math.nan) for run in runs),
            mean(run.line.get("training_memory_gib", math.nan) for run in runs),
        ]
        for name, runs in several.items()
    )
    words = (
        "Mean [95 % interval], Student's t over the seeds. Keys found: Wilson's interval of all prompts "
        "together, which knows nothing of differences between seeds."
    )
    return [title, words, table(head.split(","), cells), keys_of_seeds(several)]


def keys_of_seeds(found: Mapping[str, Sequence[Run]]) -> str:
    """Keys found by length, of all seeds."""
    lengths = sorted({length for runs in found.values() for run in runs for length in run.passkey})
    lines = []
    for name, runs in found.items():
        cells = [name]
        for length in lengths:
            mine = [run.passkey[length] for run in runs if length in run.passkey]
            right, asked = (sum(each[place] for each in mine) for place in (0, 1))
            low, high = wilson(right / asked, asked) if asked else (0.0, 0.0)
            cells.append(f"{right}/{asked} [{100 * low:.1f}, {100 * high:.1f}]" if asked else "")
        lines.append(cells)
    return table(["passkey (% in brackets)", *map(length_label, lengths)], lines) if lengths else ""


def mean(values: Iterable[float]) -> str:
    """Mean and interval of a few numbers; nan are left out."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return f"{known[0]:.2f}" if known else ""
    middle = statistics.mean(known)
    half = T95.get(len(known) - 1, 1.96) * statistics.stdev(known) / math.sqrt(len(known))
    return f"{middle:.2f} [{middle - half:.2f}, {middle + half:.2f}]"


def equal_quality(shown: Mapping[str, Rows]) -> list[str]:
    """Beside each run on rows of the full length the cheapest of PoSE that is as good in the last bucket."""
    pose = [run for name in ("table1", "steps") for key, run in shown[name].items() if is_pose(key, name)]
    lines = []
    for key, full in (pair for name in ("table1", "cost") for pair in shown[name].items()):
        if key.startswith("full-length"):
            alike = [run for run in pose if run.books == full.books and run.last <= full.last]
            best = min(alike, key=lambda run: run.line["train_seconds"], default=None)
            lines.append([key, *side(full), *(side(best) if best else ["none measured", "", "", "", ""])])
            lines[-1] += [times(full, best, each) for each in ("train_seconds", "training_memory_gib")]
    head = [
        "full-length",
        "steps",
        "last",
        "passkey",
        "s",
        "GiB",
        "PoSE, steps",
        "last",
        "passkey",
        "s",
        "GiB",
    ]
    title = "### PoSE (N = 2, rows of 8,192) at equal quality: its cheapest run with as low a last bucket"
    words = "Passkey: at the longest length that was asked. At the right: full-length over PoSE."
    return [title, words, table([*head, "times s", "times GiB"], lines)] if lines and pose else []


def is_pose(key: str, name: str) -> bool:
    """Table 1's PoSE and the same with other numbers of steps."""
    return name == "steps" or key == "PoSE, N = 2"


def side(run: Run) -> list[str]:
    """Five cells."""
    right, asked = next(reversed(run.passkey.values()), (0, 0))
    line = run.line
    keys = f"{right}/{asked}" if asked else ""
    cost = [f"{line['train_seconds']:.0f}", str(line.get("training_memory_gib", ""))]
    return [f"{line['steps']:,}", ppl(run.last), keys, *cost]


def times(full: Run, pose: Run | None, key: str) -> str:
    """One over the other."""
    mine = pose.line.get(key) if pose else None
    return f"{full.line[key] / mine:.1f}" if mine and key in full.line else ""
