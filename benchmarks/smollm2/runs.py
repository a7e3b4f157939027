"""The lines that `search.py` wrote, read alike whatever its age, and the settings of the grids among them."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GRIDS = Path(__file__).parent / "grids"
BASE = 100_000
"""theta of the untouched model."""
APART = "german"
"""Kind of other text that is not English, and so in no mean."""

JUDGING = {"name", "documents", "trials", "retrieval_lengths", "ruler_samples", "ruler_lengths"}
MACHINE = {"keep", "workers", "compile", "micro_batch", "micro_tokens"}
SCORES = {
    *("perplexity", "buckets", "last_bucket_8k", "other", "retrieval", "retrieval_at_depth", "ruler"),
    *("retrieval_found", "train_seconds", "judge_seconds", "tokens", "tokens_per_second", "loss", "dev"),
    *("training_memory_gib", "peak_memory_gib", "versions", "device", "error"),
}
USUAL: dict[str, Any] = {
    **{"target": 131_072, "only": [], "headroom": 0, "seed": 0, "schedule": "cosine"},
    **{"step_tokens": 65_536, "rows": 8, "library": 0.0, "content": "uniform"},
}
"""Settings that go without saying."""
SAID = {"interpolation", "rope", "sampler", "chunks", "train_length", "steps", "mix", "learning_rate"}
SAID |= {"taught", "restore"}


@dataclass(frozen=True)
class Run:
    """One line. Lengths are in tokens, shares of 0 .. 1; what was not measured is empty."""

    line: dict[str, Any]
    file: str = ""
    number: int = 0
    """Of the line in its file, from 1."""
    base: dict[str, list[float]] = field(default_factory=dict, repr=False)
    """Perplexity of other text of the untouched model, by kind."""

    @property
    def books(self) -> int:
        """Dev novels that it was judged on; 0: not known."""
        named = self.line.get("dev")
        return len(named) if isinstance(named, list) else int(self.line.get("documents", 0))

    @property
    def windows(self) -> dict[int, float]:
        """Perplexity of the first tokens of the novels, by their number."""
        return {2048 << number: value for number, value in enumerate(self.line.get("perplexity") or [])}

    @property
    def buckets(self) -> dict[int, float]:
        """Perplexity from half a length (512: from the start) to it."""
        return {512 << number: value for number, value in enumerate(self.line.get("buckets") or [])}

    @property
    def last(self) -> float:
        """Perplexity of the last bucket; nan without."""
        return next(reversed(self.buckets.values()), math.nan)

    @property
    def near(self) -> float:
        """Of the same tokens, read with 4,096 to 8,191 before each; nan without."""
        return float(self.line.get("last_bucket_8k") or math.nan)

    @property
    def passkey(self) -> dict[int, tuple[int, int]]:
        """Keys found and prompts, by length."""
        shares, trials = self.line.get("retrieval") or [], self.line.get("trials", 0)
        # In ascending order; those past the target were not asked and have no share.
        lengths = sorted(self.line.get("retrieval_lengths") or [2048 << number for number in range(7)])
        prompts = trials if isinstance(trials, list) else [trials] * len(lengths)
        exact = [share * count for share, count in zip(shares, prompts, strict=False)]
        found = self.line.get("retrieval_found") or [round(each) for each in exact]
        return dict(zip(lengths, zip(found, prompts, strict=False), strict=False))

    @property
    def ruler(self) -> dict[int, dict[str, float]]:
        """Share of each of RULER's tasks, by length."""
        return {int(length): tasks for length, tasks in (self.line.get("ruler") or {}).items() if tasks}

    @property
    def other(self) -> dict[str, list[float]]:
        """Perplexity of other text by kind, at 2,048 and 8,192 tokens."""
        found = self.line.get("other") or {}
        found = found if isinstance(found, dict) else {"other": found}
        return {kind: each if isinstance(each, list) else [each] for kind, each in found.items()}

    @property
    def changes(self) -> dict[str, list[float]]:
        """The same relative to the untouched model: 0.05 is 5 % worse."""
        return {
            kind: [value / base - 1 for value, base in zip(values, self.base[kind], strict=False)]
            for kind, values in self.other.items()
            if kind in self.base
        }

    def change(self, place: int) -> float:
        """Mean over the English kinds (of logarithms) at 2,048 (place 0) or 8,192 tokens (1); nan without."""
        logs = [
            math.log1p(values[place])
            for kind, values in self.changes.items()
            if kind != APART and len(values) > place
        ]
        return math.expm1(sum(logs) / len(logs)) if logs else math.nan


def load(files: Iterable[Path]) -> list[Run]:
    """The runs of the files, in their order, other text compared with the untouched model's.

    That is the last line of the untouched model before a run that has this kind of text, else the next.
    """
    read = [
        (json.loads(text), file.stem, number)
        for file in files
        for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if text.strip()
    ]
    untouched = [(place, Run(line).other) for place, (line, *_) in enumerate(read) if is_untouched(line)]
    every = {kind: values for _, other in reversed(untouched) for kind, values in other.items()}
    before: dict[str, list[float]] = {}
    found = []
    for place, (line, file, number) in enumerate(read):
        before = before | dict(untouched).get(place, {})
        found.append(Run(line, file, number, every | before))
    return found


def is_untouched(line: dict[str, Any]) -> bool:
    """Whether it tells of the model as it came."""
    named = line.get("name", "untouched") == "untouched"
    return named and line.get("interpolation") == "untouched" and "error" not in line


def grid(name: str) -> list[dict[str, Any]]:
    """The entries of a grid; none where it does not exist."""
    file = GRIDS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def fits(entry: dict[str, Any], line: dict[str, Any]) -> bool:
    """Whether a line is of this entry: equal in all that the entry sets, books too, however it was judged.

    A checkpoint judged as it is (`interpolation: untouched`) says by its name what it is; without: untouched.
    """
    if line.get("interpolation") == "untouched" and line.get("name", "untouched") != entry.get(
        "name", "untouched"
    ):
        return False
    free = (JUDGING | MACHINE) - {"documents"}
    return all(line.get(key) == value for key, value in entry.items() if key not in free)


def of_grid(runs: Sequence[Run], entries: Sequence[dict[str, Any]]) -> dict[str, Run]:
    """Name of an entry -> the last run of it that did not fail, in the order of the entries."""
    found = {}
    for entry in entries:
        mine = [run for run in runs if fits(entry, run.line) and "error" not in run.line]
        if mine:
            found[entry["name"]] = mine[-1]
    return found


def of_seeds(runs: Sequence[Run], entries: Sequence[dict[str, Any]]) -> dict[str, list[Run]]:
    """Name of an entry -> the last run of each of its seeds, whether or not the grid has that seed."""
    found: dict[str, list[Run]] = {}
    for entry in entries:
        rest = {key: value for key, value in entry.items() if key != "seed"}
        good = [run for run in runs if fits(rest, run.line) and "error" not in run.line]
        by_seed = {run.line.get("seed", 0): run for run in good}
        found[entry["name"]] = [by_seed[seed] for seed in sorted(by_seed)]
    return {name: mine for name, mine in found.items() if mine}


def method(line: dict[str, Any]) -> str:
    """The interpolation in a few words, long lists too."""
    name, rope = str(line.get("interpolation", "?")), dict(line.get("rope") or {})
    factors = rope.pop("long_factor", None)
    if rope.pop("short_factor", factors) != factors:
        name += ", two lists"
    parts = [spread(factors)] if factors else []
    if "rope_theta" in rope:
        parts.append(f"base {brief(rope.pop('rope_theta'))}")
    if "attention_factor" in rope:
        parts.append(f"attention × {rope.pop('attention_factor'):.3f}")
    parts += [f"{key} {brief(value)}" for key, value in rope.items()]
    return " ".join([name, *([f"({', '.join(parts)})"] if parts and name != "untouched" else [])])


def spread(factors: Sequence[float]) -> str:
    """LongRoPE's divisors: those of another base by that base, any other list by its range and a checksum."""
    step = factors[1] / factors[0] if len(factors) > 1 else 1.0
    if all(math.isclose(each, step**number, rel_tol=1e-6) for number, each in enumerate(factors)):
        return f"as base {brief(float(f'{BASE * step ** len(factors):.4g}'))}"
    digest = zlib.crc32(json.dumps(list(factors)).encode()) & 0xFFFF
    return f"{min(factors):.3g} to {max(factors):.3g}, list {digest:04x}"


def brief(value: Any) -> str:
    """A setting: 4e6, 0.0008, a list that is long by its length."""
    if isinstance(value, float) or (isinstance(value, int) and abs(value) >= 10**6):
        return f"{value:g}".replace("e+0", "e").replace("e-0", "e-")
    if isinstance(value, (list, tuple)):
        few = len(value) <= 4
        return " ".join(map(brief, value)) if few else f"{len(value)} values"
    if isinstance(value, dict):
        return ", ".join(f"{each} {key}" for key, each in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def told(line: dict[str, Any]) -> str:
    """All settings that tell a line from another; of what is taught, only what the rows hold."""
    if line.get("interpolation") == "untouched":
        return str(line.get("name", "untouched"))
    hidden = JUDGING | MACHINE | SCORES | SAID
    rest = [
        f"{key} {brief(value)[:40]}"
        for key, value in line.items()
        if key not in hidden and (key not in USUAL or value != USUAL[key])
    ]
    if not line.get("steps"):
        kept = [each for each in rest if each.startswith("target")]
        return ", ".join([method(line), "untrained", *kept])
    sampler = str(line.get("sampler", "?"))
    sampler += f" {line['chunks']}" if "pose" in sampler and "chunks" in line else ""
    taught = line.get("taught", ["self", "book", "library"] if line.get("restore") else [])
    parts = [method(line), f"{sampler} on rows of {line.get('train_length', 0):,}"]
    parts += [f"{line['steps']} steps", f"lr {brief(line.get('learning_rate'))}"]
    if line.get("mix"):
        names = {kind: f"{share} {kind}{'*' * (kind in taught)}" for kind, share in line["mix"].items()}
        parts.append(" ".join(names.values()))
    return ", ".join([*parts, *rest])
