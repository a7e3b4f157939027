"""RESULTS.md from the lines of `search.py`, given in the order in which they were measured.

    cd benchmarks/smollm2 && python table.py results/{first,second}.jsonl > RESULTS.md

A section for each grid, its rows in the grid's order; then whatever belongs to no grid. A section of which
nothing is measured says so. Of a setting with several lines the last counts, the others stand at the end.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cells import Rows, percent, ppl, table
from runs import APART, Run, grid, is_untouched, load, of_grid, of_seeds, told
from together import crossed, equal_quality, seeds

from skipwise.report.words import length_label

SECTIONS = {
    "flagship": "The flagship",
    "table1": "Table 1 in small: the same tokens, steps and recipe for all, target 131,072",
    "factors": "Interpolation by target over the window of 8,192",
    "train_length": "Train length, target 131,072",
    "steps": "Steps, target 131,072",
    "cost": "Rows of the full length with fewer steps",
    "beyond": "Beyond 131,072, rows of 8,192",
}
"""Grid -> title, in the order of the page."""
COSTS = ["books", "8k bucket", "last", "from 8k", "near", "from near", "other 2k", "other 8k"]
COSTS += ["steps", "tokens (M)", "s", "tokens/s", "GiB", "loss"]


def main() -> None:
    """Print the page."""
    print(page(load(map(Path, sys.argv[1:]))))


def page(runs: Sequence[Run]) -> str:
    """The whole of RESULTS.md."""
    shown: dict[str, dict[str, Run]] = {name: of_grid(runs, grid(name)) for name in SECTIONS}
    several = of_seeds(runs, grid("seeds"))
    used = {id(run) for rows in shown.values() for run in rows.values()}
    used |= {id(run) for mine in several.values() for run in mine}
    good = [run for run in runs if "error" not in run.line]
    rest = {str(number): run for number, run in enumerate((r for r in good if id(r) not in used), 1)}
    parts = [head(runs)]
    for name, rows in shown.items():
        parts += section(name, rows)
        if name == "table1":
            parts += seeds(several)
        if name == "cost":
            parts += equal_quality(shown)
    parts += ["## The search, and what else was measured", searched(rest), *details(rest)] if rest else []
    return "\n\n".join([*parts, *failures(runs)])


def head(runs: Sequence[Run]) -> str:
    """The machine and how to read the tables."""
    devices = sorted({str(run.line.get("device", "?")) for run in runs})
    versions = {str(key): str(value) for run in runs for key, value in run.line.get("versions", {}).items()}
    return f"""\
# SmolLM2-135M-Instruct: every number

Made by `table.py` of `results/`; what was wanted and what came out: README.md.

{", ".join(devices)}; {", ".join(f"{name} {value}" for name, value in versions.items())}.

- Passkey: keys found / prompts. Perplexity: of the first tokens of the dev novels (books: how many); by
  position: from half the length to it, 512 from the start. Last: the bucket that ends at the target; from 8k:
  how far it is above (+) or below (-) the 8k bucket, in %, which holds other words of the same books.
- Near: the tokens of the last bucket once more, each read with the 4,096 to 8,191 before it only. From near:
  how far the last bucket is above or below that, so what all the context before is worth (- is better).
- Other: perplexity of other text relative to the untouched model's, in %, mean of the English kinds; german
  apart. GiB: torch's largest allocation in training. Loss: mean of the last tenth of the steps; in lines
  without `target`, of one step.\
"""


def section(name: str, rows: Rows) -> list[str]:
    """Title, tables, and the settings without a line."""
    entries = [each["name"] for each in grid(name)]
    if not entries:
        return []
    missing = [each for each in entries if each not in rows]
    if not rows:
        return [f"## {SECTIONS[name]}", "Not measured."]
    last = [f"Not measured: {'; '.join(missing)}."] if missing else []
    first = crossed(rows) if name == "factors" else []
    return [f"## {SECTIONS[name]}", *first, overview(rows), *details(rows), *last]


def overview(rows: Rows) -> str:
    """What a setting gives and costs."""
    return table(["setting", *COSTS], ([name, *costs(run)] for name, run in rows.items()))


def searched(rows: Rows) -> str:
    """The same with all settings and where the line is; * marks rows taught by the untouched model."""
    lines = (
        [number, told(run.line), *costs(run), f"{run.file} {run.number}"] for number, run in rows.items()
    )
    return table(["no", "setting", *COSTS, "from"], lines)


def costs(run: Run) -> list[str]:
    """The cells of COSTS."""
    line, trained = run.line, "train_seconds" in run.line
    eight = run.buckets.get(8192, math.nan)
    return [
        str(run.books or ""),
        *(ppl(eight), ppl(run.last), percent(run.last / eight - 1)),
        *(ppl(run.near), percent(run.last / run.near - 1)),
        *(percent(run.change(place)) if not is_untouched(line) else "" for place in (0, 1)),
        f"{line['steps']:,}" if trained else "",
        f"{line['tokens'] / 1e6:.1f}" if trained else "",
        f"{line['train_seconds']:.0f}" if trained else "",
        f"{line['tokens'] / line['train_seconds']:,.0f}" if trained else "",
        str(line.get("training_memory_gib", line.get("peak_memory_gib", ""))) if trained else "",
        f"{line['loss'][-1]:.3f}" if line.get("loss") else "",
    ]


def details(rows: Rows) -> list[str]:
    """Retrieval, perplexity, other text, each by what it depends on."""
    found = [
        by_length("passkey", rows, lambda run: run.passkey, lambda cell: f"{cell[0]}/{cell[1]}"),
        by_length("perplexity to", rows, lambda run: run.windows, ppl),
        by_length("bucket to", rows, lambda run: run.buckets, ppl),
        others(rows),
        rulers(rows),
    ]
    return [each for each in found if each]


def by_length(
    title: str, rows: Rows, values: Callable[[Run], dict[int, Any]], text: Callable[[Any], str]
) -> str:
    """A column for every length that any of the rows has; rows without any are left out."""
    lengths = sorted({length for run in rows.values() for length in values(run)})
    cells = (
        [name, *(text(mine[length]) if length in mine else "" for length in lengths)]
        for name, run in rows.items()
        if (mine := values(run))
    )
    return table([title, *map(length_label, lengths)], cells) if lengths else ""


def others(rows: Rows) -> str:
    """Change on other text by kind, at 2,048 / at 8,192 tokens."""
    mine = {name: run for name, run in rows.items() if run.changes and not is_untouched(run.line)}
    kinds = sorted(
        {kind for run in mine.values() for kind in run.changes}, key=lambda kind: (kind == APART, kind)
    )
    cells = (
        [name, *(" / ".join(map(percent, run.changes.get(kind, []))) for kind in kinds)]
        for name, run in mine.items()
    )
    return table(["other text, 2k / 8k", *kinds], cells) if mine else ""


def rulers(rows: Rows) -> str:
    """RULER: the mean of its tasks, then each."""
    tasks = sorted({task for run in rows.values() for each in run.ruler.values() for task in each})
    cells = (
        [f"{name}, {length_label(length)}", f"{100 * statistics.mean(each.values()):.0f}"]
        + [f"{100 * each[task]:.0f}" if task in each else "" for task in tasks]
        for name, run in rows.items()
        for length, each in sorted(run.ruler.items())
    )
    return table(["RULER (%)", "mean", *tasks], cells) if tasks else ""


def failures(runs: Sequence[Run]) -> list[str]:
    """What broke off, and why."""
    lines = [
        [f"{run.file} {run.number}", run.line.get("name") or told(run.line), str(run.line["error"])[:160]]
        for run in runs
        if "error" in run.line
    ]
    return ["## What failed", table(["from", "setting", "reason"], lines)] if lines else []


if __name__ == "__main__":
    main()
