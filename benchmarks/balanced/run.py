"""How flat samplers cover the distances beyond the train length, and how flat any sampler could.

python benchmarks/balanced/run.py

Writes results.json and RESULTS.md beside this file. Needs scipy for the linear programmes.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.optimize import linprog

from skipwise.data.balanced import Balanced, _last_skips
from skipwise.data.coverage import coverage
from skipwise.data.cream import Cream
from skipwise.data.mixture import Mixture
from skipwise.data.skips import Contiguous, PoSE, RandPos, Sampler
from skipwise.data.until_seen import examples_until_seen

HERE = Path(__file__).parent
SEED = 0
SMALL = [(2, 6, 24), (2, 8, 57), (2, 16, 128), (3, 6, 24), (3, 8, 57), (3, 11, 88), (3, 16, 128)]
LARGE = [(2_048, 16_384), (2_048, 131_072), (8_192, 131_072)]
DRAWS = 40_000
"""Rows of each Monte Carlo estimate: a probability near 0.25 is then known to 0.002."""
PAIR_ROWS = 1_000
Floats = NDArray[np.float64]


def main() -> None:
    """Measure and write both files."""
    small = [optimum(*case) for case in SMALL]
    large = [measured(sampler, name) for lengths in LARGE for name, sampler in samplers(*lengths).items()]
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    found = {"seed": SEED, "draws": DRAWS, "pair_rows": PAIR_ROWS, "versions": versions}
    found |= {"optimum": small, "samplers": large}
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (HERE / "RESULTS.md").write_text(page(found), encoding="utf-8")


def samplers(train: int, target: int) -> dict[str, Sampler]:
    """What is compared at one pair of lengths."""
    balanced = Balanced(train, target, 3)
    return {
        "PoSE, N = 2": PoSE(train, target, 2),
        "PoSE, N = 3": PoSE(train, target, 3),
        "CREAM": Cream(train, target),
        "RandPos": RandPos(train, target),
        "Balanced, N = 2": Balanced(train, target, 2),
        "Balanced, N = 3": balanced,
        "80 % Balanced N = 3, 20 % contiguous": Mixture((balanced, Contiguous(train, target)), (0.8, 0.2)),
    }


def measured(sampler: Sampler, name: str) -> dict[str, Any]:
    """Coverage, pairs of tokens and examples needed, of one sampler."""
    train, target = sampler.row_length, sampler.target_length
    found = coverage(sampler, draws=DRAWS, seed=SEED)
    share, far = found.probability, found.probability[train - 1 :]
    pairs = pairs_by_distance(sampler)
    near, usual = pairs[: train - 1], np.arange(train - 1, 0, -1.0)
    until = examples_until_seen(sampler, found=found, seed=SEED)
    return {
        "sampler": name,
        "train_length": train,
        "target_length": target,
        "exact": found.exact,
        "least_far": float(far.min()),
        "least_far_at": train + int(far.argmin()),
        "most_far": float(far.max()),
        "near": {f"{part}/4": float(share[part * train // 4 - 1]) for part in (1, 2, 3)},
        "far_pairs": float(pairs[train - 1 :].sum() / pairs.sum()),
        "near_shift": float(np.abs(near / near.sum() - usual / usual.sum()).sum() / 2),
        "examples": until.mean,
        "examples_error": until.error,
        "examples_bounds": [until.lower, until.upper],
    }


def pairs_by_distance(sampler: Sampler) -> Floats:
    """Expected pairs of tokens of one row at each distance 1 .. target - 1, over `PAIR_ROWS` rows."""
    rng, passage = np.random.default_rng(SEED), np.zeros(sampler.passage_length[1], dtype=np.int32)
    counts = np.zeros(2 * sampler.target_length)
    for _ in range(PAIR_ROWS if not isinstance(sampler, RandPos) else PAIR_ROWS // 20):
        present = np.zeros(2 * sampler.target_length)
        present[sampler.sample(passage, rng).position_ids] = 1.0
        counts[: len(present) // 2 + 1] += np.abs(np.fft.rfft(present)) ** 2
    return np.fft.irfft(counts[: len(counts) // 2 + 1])[1 : sampler.target_length].clip(0)


def optimum(chunks: int, train: int, target: int) -> dict[str, Any]:
    """Every row of a small size: what both samplers reach, and what any law of the skips could."""
    skips, covers = rows(chunks, train, target)
    largest = target - train
    if chunks == 2:
        balanced, pose = Balanced(train, target).skip_probabilities(), np.full(largest + 1, 1 / (largest + 1))
    else:
        _, below = _last_skips(train, target)
        balanced = (np.diff(below, prepend=0)[::-1] / np.arange(1, largest + 2))[skips[:, 2]]
        pose = 1 / (largest + 1) / (largest - skips[:, 1] + 1)
    covered = covers @ balanced
    near, far = covered[: train - 1], covered[train - 1 :]
    return {
        "chunks": chunks,
        "train_length": train,
        "target_length": target,
        "pose": float((covers @ pose)[train - 1 :].min()),
        "balanced": float(far.min()),
        "balanced_most": float(far.max()),
        "best_same_near": best_floor(covers, train, near - 1e-9),
        "best": best_floor(covers, train, np.zeros(train - 1)),
        "bound": ((chunks - 1) * train - (1, 3)[chunks - 2]) / (target - train),
    }


def rows(chunks: int, train: int, target: int) -> tuple[NDArray[np.int64], Floats]:
    """Every choice of skips, and the probability that chunks of PoSE's lengths then cover each distance."""
    span = range(target - train + 1)
    skips = np.array(
        [(0, u) for u in span] if chunks == 2 else [(0, u, v) for v in span for u in range(v + 1)]
    )
    distance = np.arange(1, target)[:, None]
    covers = np.zeros((target - 1, len(skips)))
    for lengths, chance in compositions(chunks, train):
        starts = np.cumsum(lengths) - lengths + skips
        ends = starts + lengths - 1
        seen = np.broadcast_to(distance < max(lengths), covers.shape)
        for i, j in zip(*np.triu_indices(chunks, 1), strict=True):
            seen = seen | ((distance >= starts[:, j] - ends[:, i]) & (distance <= ends[:, j] - starts[:, i]))
        covers += chance * seen
    return skips, covers


def compositions(chunks: int, train: int) -> list[tuple[NDArray[np.int64], float]]:
    """PoSE's chunk lengths and their probabilities."""
    if chunks == 2:
        return [(np.array([first, train - first]), 1 / (train - 1)) for first in range(1, train)]
    return [
        (np.array([first, second, train - first - second]), 1 / (train - 2) / (train - first - 1))
        for first in range(1, train - 1)
        for second in range(1, train - first)
    ]


def best_floor(covers: Floats, train: int, near_at_least: Floats) -> float:
    """The largest c such that some law of the columns covers every distance from ``train`` on with it."""
    far, near, columns = covers[train - 1 :], covers[: train - 1], covers.shape[1]
    found = linprog(
        np.append(np.zeros(columns), -1.0),
        A_ub=np.block([[-far, np.ones((len(far), 1))], [-near, np.zeros((len(near), 1))]]),
        b_ub=np.append(np.zeros(len(far)), -near_at_least),
        A_eq=np.append(np.ones(columns), 0.0)[None],
        b_eq=[1.0],
    )
    return float(-found.fun)


def page(found: dict[str, Any]) -> str:
    """RESULTS.md."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n".join(
        [
            "# How flat the coverage of far distances is",
            "",
            f"Generated by `run.py` (seed {found['seed']}, {versions}); README.md says what the columns are.",
            "",
            "## Against the best law",
            "",
            *table(
                "N | train | target | PoSE | Balanced | max/min | best, near as often | best | bound",
                [against_the_best(case) for case in found["optimum"]],
            ),
            "",
            "## At real sizes",
            "",
            *table(
                "train | target | sampler | least | at | max/min | Lc/4 | Lc/2 | 3Lc/4 | far | shift | until",
                [at_real_size(case) for case in found["samplers"]],
            ),
            "",
        ]
    )


def table(head: str, rows: list[list[str]]) -> list[str]:
    """Markdown lines."""
    ruler = "|" + "---|" * len(head.split("|"))
    return [f"| {head} |", ruler, *(f"| {' | '.join(row)} |" for row in rows)]


def against_the_best(case: dict[str, Any]) -> list[str]:
    """One row of the first table."""
    share = case["balanced"] / case["best_same_near"]
    return [
        *(str(case[key]) for key in ("chunks", "train_length", "target_length")),
        f"{case['pose']:.4f}",
        f"{case['balanced']:.4f}",
        f"{case['balanced_most'] / case['balanced']:.3f}",
        f"{case['best_same_near']:.4f} ({share:.1%} of it)",
        f"{case['best']:.4f}",
        f"{case['bound']:.4f}",
    ]


def at_real_size(case: dict[str, Any]) -> list[str]:
    """One row of the second table; `~` marks a Monte Carlo estimate."""
    least, sign = case["least_far"], "" if case["exact"] else "~"
    return [
        str(case["train_length"]),
        str(case["target_length"]),
        case["sampler"],
        f"{sign}{least:.5f}",
        str(case["least_far_at"]),
        f"{sign}{case['most_far'] / least:,.2f}" if least else "-",
        *(f"{case['near'][part]:.3f}" for part in ("1/4", "2/4", "3/4")),
        f"{case['far_pairs']:.1%}",
        f"{case['near_shift']:.3f}",
        told(case),
    ]


def told(case: dict[str, Any]) -> str:
    """Examples until every distance has been seen, with what is known of it."""
    if case["examples"] is not None:
        return f"{case['examples']:,.0f} +- {case['examples_error']:,.0f}"
    low, high = case["examples_bounds"]
    return "?" if low is None else f"{low:,.0f} to {high:,.0f}"


if __name__ == "__main__":
    main()
