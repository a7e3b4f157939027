"""How fast do passages become tensors, on one core, and in how much memory?

    python benchmarks/row_speed/run.py

For corpora of several sizes, memory-mapped from a temporary folder: tokens a second of the whole CPU path
(`Rows[i]`, that is passage and sampler, then `SkipCollator`), beside a straight Python port of the usual
per-example loop over lists, in turns within one process; and the memory that an epoch of rows takes. Writes
results.json and RESULTS.md beside this script.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pyarrow as pa
import torch
from datasets import Dataset
from python_loop import collate, pose_row

from skipwise.data.balanced import Balanced
from skipwise.data.collate import SkipCollator
from skipwise.data.cream import Cream
from skipwise.data.passages import Passages, TokenizedDocuments
from skipwise.data.rows import Rows
from skipwise.data.skips import Contiguous, PoSE, RandPos, Sampler
from skipwise.environment import facts

TRAIN_LENGTH = 2_048
BATCH = 16
DOCUMENT = 160_000  # tokens of a document: a novel
LIST_PASSAGES = 16  # of the loop that reads lists: few, so that they stay in the processor's cache
SEED = 0

Batch = Callable[[int], Any]


def main() -> None:
    """Measure every corpus in a process of its own, then write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, nargs="+", default=[4, 64, 512], help="sizes of the corpora")
    parser.add_argument("--targets", type=int, nargs="+", default=[16_384, 131_072], help="target lengths")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.2, help="of one repeat of one case")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    settings = options.repeats, options.seconds
    result = about(*settings)
    for megabytes in options.megabytes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            result["corpora"].append(pool.submit(measure, megabytes, options.targets, *settings).result())
        print(f"{megabytes} MB done", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = table(result)
    (options.output / "RESULTS.md").write_text(page, encoding="utf-8")
    print(page)


def about(repeats: int, seconds: float) -> dict[str, Any]:
    """What runs where, when and how."""
    return facts() | {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "load": os.getloadavg(),
        "seed": SEED,
        "train_length": TRAIN_LENGTH,
        "batch": BATCH,
        "repeats": repeats,
        "seconds": seconds,
        "corpora": [],
    }


# One corpus


def measure(megabytes: int, targets: list[int], repeats: int, seconds: float) -> dict[str, Any]:
    """Memory of one epoch, then the speed of every case for every target."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "corpus.arrow", megabytes)
        memory = memory_of_an_epoch(corpus)
        speed = {str(target): speeds(corpus, target, repeats, seconds) for target in targets}
    return {"megabytes": megabytes, "documents": len(corpus), "memory": memory, "tokens_per_second": speed}


def write_corpus(path: Path, megabytes: int) -> Dataset:
    """A file of random token ids, int32, mapped into memory as `datasets` does it."""
    rng = np.random.default_rng(SEED)
    schema = pa.schema({"input_ids": pa.list_(pa.int32())})
    left = max(1, megabytes * 10**6 // (4 * DOCUMENT))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        while left:
            count = min(left, 16)
            ids = rng.integers(32_000, size=count * DOCUMENT, dtype=np.int32)
            bounds = np.arange(count + 1, dtype=np.int32) * DOCUMENT
            stream.write_batch(pa.record_batch([pa.ListArray.from_arrays(bounds, ids)], schema=schema))
            left -= count
    return Dataset.from_file(str(path))


def memory_of_an_epoch(corpus: Dataset) -> dict[str, float]:
    """Memory of this process in MB, before and after an epoch of PoSE batches.

    ``private`` leaves out the pages of mapped files: the system takes these back when it needs memory, and
    processes share them.
    """
    before = memory()
    batch, batches = skipwise_batch(corpus, PoSE(TRAIN_LENGTH, 16_384))
    for i in range(batches):
        batch(i)
    after = memory()
    return {"private_before": before[0], "private_after": after[0], "resident_after": after[1]}


def memory() -> tuple[float, float]:
    """Private and resident memory of this process, in MB; only Linux tells them apart."""
    found = psutil.Process().memory_info()
    return (found.rss - getattr(found, "shared", 0)) / 1e6, found.rss / 1e6


def speeds(corpus: Dataset, target: int, repeats: int, seconds: float) -> dict[str, list[float]]:
    """Tokens a second of every case, one number a repeat; the cases take turns."""
    cases = dict(all_cases(corpus, target))
    found: dict[str, list[float]] = {name: [] for name in cases}
    numbers = {name: itertools.count() for name in cases}
    for repeat in range(repeats + 1):
        for name, batch in cases.items():
            speed = tokens_per_second(batch, numbers[name], seconds if repeat else 0)
            if repeat:  # the first turn is to warm up
                found[name].append(speed)
    return found


def tokens_per_second(batch: Batch, numbers: Iterator[int], seconds: float) -> float:
    """Make batches for about that long, at least one."""
    begin = now = time.perf_counter()
    batches = 0
    while not batches or now < begin + seconds:
        batch(next(numbers))
        batches += 1
        now = time.perf_counter()
    return batches * BATCH * TRAIN_LENGTH / (now - begin)


def all_cases(corpus: Dataset, target: int) -> Iterator[tuple[str, Batch]]:
    """Name and batch function of everything that is compared."""
    yield LOOP, loop_over_lists(corpus, target)
    yield LOOP_ARROW, loop_over_arrow(corpus, target)
    lengths = TRAIN_LENGTH, target
    for name, sampler in {
        "Contiguous": Contiguous(*lengths),
        "PoSE, N = 2": PoSE(*lengths, 2),
        "PoSE, N = 3": PoSE(*lengths, 3),
        "Balanced, N = 2": Balanced(*lengths, 2),
        "Balanced, N = 3": Balanced(*lengths, 3),
        "CREAM": Cream(*lengths),
        "RandPos": RandPos(*lengths),
    }.items():
        yield name, skipwise_batch(corpus, sampler)[0]


def skipwise_batch(corpus: Dataset, sampler: Sampler) -> tuple[Batch, int]:
    """The batches of skipwise, and how many of them make an epoch."""
    shortest, longest = sampler.passage_length
    documents = TokenizedDocuments.from_ids(corpus)
    passages = Passages(documents, min_length=shortest, max_length=longest, seed=SEED)
    rows, collator = Rows(passages, sampler, count=sys.maxsize, seed=SEED), SkipCollator()

    def batch(number: int) -> Any:
        return collator([rows[i] for i in range(number * BATCH, (number + 1) * BATCH)])

    return batch, -(-len(passages) // BATCH)


# The usual loop: PoSE with two chunks, in plain Python

LOOP = "Python loop, from lists"
LOOP_ARROW = "Python loop, from Arrow rows"


def loop_over_lists(corpus: Dataset, target: int) -> Batch:
    """The loop at its best: every passage is a Python list already."""
    passages = [corpus[i % len(corpus)]["input_ids"][:target] for i in range(LIST_PASSAGES)]
    draw = random.Random(SEED)

    def batch(_: int) -> Any:
        chosen = (draw.choice(passages) for _ in range(BATCH))
        return collate([pose_row(ids, TRAIN_LENGTH, target, 2, draw.randint) for ids in chosen])

    return batch


def loop_over_arrow(corpus: Dataset, target: int) -> Batch:
    """The loop as it is met: a dataset with one passage of ``target`` tokens a row, read row by row."""
    passages = corpus.select(range(min(len(corpus), 64)))
    passages = passages.map(lambda row: {"input_ids": row["input_ids"][:target]})
    draw = random.Random(SEED)

    def batch(_: int) -> Any:
        chosen = (passages[draw.randrange(len(passages))]["input_ids"] for _ in range(BATCH))
        return collate([pose_row(ids, TRAIN_LENGTH, target, 2, draw.randint) for ids in chosen])

    return batch


# The page


def table(result: dict[str, Any]) -> str:
    """RESULTS.md: a table of speeds for every target, and one of memory."""
    hardware, versions = result["hardware"], result["versions"]
    page = [
        "# From passage to tensors, on one core",
        "",
        "Written by `run.py`, with every repeat in `results.json`. Million tokens a second: median of "
        f"{result['repeats']} repeats, lowest and highest in brackets; × is how many times the median of "
        f"`{LOOP}` in the same run. Batches of {result['batch']} rows of {result['train_length']:,} tokens.",
        "",
        f"{hardware['cpu']}, {hardware['cores']} cores (one used), load {result['load'][0]:.1f} before; "
        f"Python {versions['python']}, numpy {versions['numpy']}, torch {versions['torch']}, datasets "
        f"{versions['datasets']}; seed {result['seed']}; {result['date']}; `{result['command']}`.",
    ]
    corpora = result["corpora"]
    for target in corpora[0]["tokens_per_second"]:
        page += ["", f"## Target {int(target):,}", ""]
        page += rule("case", *(f"corpus of {corpus['megabytes']} MB" for corpus in corpora))
        for name in corpora[0]["tokens_per_second"][target]:
            page.append(line(name, *(cell(corpus["tokens_per_second"][target], name) for corpus in corpora)))
    page += ["", "## Memory", "", *rule("MB", *(f"corpus of {corpus['megabytes']} MB" for corpus in corpora))]
    for key, words in {
        "private_before": "private, libraries loaded",
        "private_after": "private, after an epoch of rows",
        "resident_after": "resident, with the pages of mapped files",
    }.items():
        page.append(line(words, *(f"{corpus['memory'][key]:,.0f}" for corpus in corpora)))
    return "\n".join(page) + "\n"


def cell(speed: dict[str, list[float]], name: str) -> str:
    """Median, extremes, and the ratio to the loop, of one case."""
    median, low, high = (each(speed[name]) / 1e6 for each in (statistics.median, min, max))
    ratio = median * 1e6 / statistics.median(speed[LOOP])
    return f"{median:.2f} ({low:.2f} to {high:.2f}), {ratio:.1f} ×"


def rule(*cells: str) -> list[str]:
    """The head of a Markdown table."""
    return [line(*cells), line(*["---"] * len(cells))]


def line(*cells: str) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
