"""The grids of the page's tables, written out so that every setting that matters is seen in them.

    python benchmarks/smollm2/grids/make.py                       (all but seeds.json)
    python benchmarks/smollm2/grids/make.py 'PoSE, N = 2' [...]   (seeds.json: these again with seeds 1 and 2)

An entry is a list of changes to the defaults of `search.py` with a name, which the tables show.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

HERE = Path(__file__).parent
WINDOW, TARGET = 8192, 131_072
BASE: Entry = {
    **{"target": TARGET, "interpolation": "abf", "rope": {"rope_theta": 4e6}, "sharpen": 1.0},
    **{"sampler": "pose", "chunks": 2, "content": "uniform", "headroom": 0, "train_length": WINDOW},
    **{"mix": {"long": 3, "recall": 1}, "taught": [], "trained": "", "steps": 100, "step_tokens": 131_072},
    **{"learning_rate": 8e-4, "schedule": "cosine", "seed": 0},
}
"""What all trained rows of Table 1 share. No row is taught by the untouched model: it knows no position
beyond its window, so rows of the full length could not have that, and all get the same."""
JUDGED: Entry = {
    **{"documents": 4, "trials": 10, "retrieval_lengths": [2048 * 2**i for i in range(7)]},
    **{"ruler_samples": 10, "ruler_lengths": [WINDOW, TARGET]},
}
FULL_32K: Entry = {"sampler": "contiguous", "train_length": 32_768}
FULL_128K: Entry = {"sampler": "contiguous", "train_length": TARGET}
TABLE1: dict[str, Entry] = {
    "contiguous control": {"sampler": "contiguous"},
    "full-length, rows of 32,768": FULL_32K,
    "full-length, rows of 131,072": FULL_128K,
    "RandPos": {"sampler": "randpos"},
    "PoSE, N = 2": {},
    "PoSE, N = 3": {"chunks": 3},
    "PoSE, headroom 8,192": {"headroom": WINDOW},
    "PoSE, aligned text": {"content": "aligned"},
    "CREAM": {"sampler": "cream"},
    "Balanced": {"sampler": "balanced"},
    "80 % PoSE, 20 % contiguous": {"sampler": "pose:0.8,contiguous:0.2"},
    "50 % PoSE, 50 % Balanced": {"sampler": "pose:0.5,balanced:0.5"},
}


def trained(name: str, **changes: Any) -> Entry:
    """One training as in Table 1 but for ``changes``."""
    return {"name": name, **BASE, **JUDGED, **changes}


def flagship() -> list[Entry]:
    """What `build.py` made, judged as it is: its line says so by its name."""
    return [{"name": "flagship", "interpolation": "untouched", "steps": 0}]


def table1() -> list[Entry]:
    """All samplers at the same tokens and steps, between the untouched model and one interpolated only."""
    interpolated = {key: BASE[key] for key in ("target", "interpolation", "rope", "sharpen")}
    return [
        {"name": "untouched", "interpolation": "untouched", "steps": 0, **JUDGED},
        {"name": "interpolated, untrained", **interpolated, "steps": 0, **JUDGED},
        *(trained(name, **changes) for name, changes in TABLE1.items()),
    ]


def factors() -> list[Entry]:
    """Methods of interpolation by target over the window; half of Table 1's tokens."""
    found = []
    for method in ("linear", "ntk", "yarn", "pose-yarn"):
        for factor in (2, 4, 16, 64):
            target = factor * WINDOW
            asked = {"trials": 10, "retrieval_lengths": sorted({2048, WINDOW, target // 2, target})}
            if target > TARGET:
                asked = {"trials": 5, "retrieval_lengths": [WINDOW, TARGET, target]}
            how = {"target": target, "interpolation": method, "rope": {}, "step_tokens": 65_536}
            found.append(trained(f"{method}, {factor} times", **how, **asked, ruler_samples=0))
    return found


def train_length() -> list[Entry]:
    """Rows of three lengths; the longest are Table 1's."""
    return [trained(f"rows of {rows:,}", train_length=rows) for rows in (512, 2048, WINDOW)]


def steps() -> list[Entry]:
    """How few steps are enough; 100 are Table 1's."""
    return [trained(f"{count} steps", steps=count) for count in (10, 20, 50, 100, 200, 400)]


def cost() -> list[Entry]:
    """Rows of the full length with fewer steps, for quality against seconds."""
    return [
        *(trained(f"full-length 32,768, {count} steps", **FULL_32K, steps=count) for count in (25, 50)),
        *(trained(f"full-length 131,072, {count} steps", **FULL_128K, steps=count) for count in (10, 25, 50)),
    ]


def beyond() -> list[Entry]:
    """Targets past 131,072 on rows of 8,192; the base doubles with the target."""
    found = []
    for times, trials in ((2, 10), (4, 5), (8, 3)):
        lengths = [WINDOW, *(TARGET * 2**i for i in range(times.bit_length()))]
        how = {"target": times * TARGET, "rope": {"rope_theta": times * 4e6}, "headroom": WINDOW}
        asked = {"trials": trials, "retrieval_lengths": lengths, "ruler_samples": 0}
        found.append(trained(f"target {times * TARGET:,}", **how, **asked))
    return found


def seeds(names: list[str]) -> list[Entry]:
    """These of Table 1 again, with other seeds and 50 prompts a length."""
    return [trained(name, **TABLE1[name], seed=seed, trials=50) for name in names for seed in (1, 2)]


def write(name: str, entries: list[Entry]) -> None:
    """One entry a line."""
    lines = ",\n ".join(json.dumps(each) for each in entries)
    (HERE / f"{name}.json").write_text(f"[{lines}]\n", encoding="utf-8")


def main() -> None:
    """Write the files."""
    if sys.argv[1:]:
        write("seeds", seeds(sys.argv[1:]))
        return
    for grid in (flagship, table1, factors, train_length, steps, cost, beyond):
        write(grid.__name__, grid())


if __name__ == "__main__":
    main()
