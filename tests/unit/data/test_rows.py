"""Rows: a pure function of (seed, index), whatever reads them, in whatever order."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from skipwise.data import passages as memory_mapped
from skipwise.data.collate import SkipCollator
from skipwise.data.rows import Rows
from skipwise.data.skips import PoSE

IN_ANOTHER_PROCESS = """
import pickle, sys
rows = pickle.load(sys.stdin.buffer)
found = [(i, rows[i].token_ids, rows[i].position_ids) for i in reversed(range(len(rows)))]
sys.stdout.buffer.write(pickle.dumps(found))
"""


class Passages:
    """Visits to random places of one long document, with the interface of the real ones."""

    def __init__(self, visits=5):
        self.visits = visits
        self.asked = []

    def __len__(self):
        return self.visits

    def draw(self, epoch, example, rng):
        self.asked.append((epoch, example))
        start = int(rng.integers(1_000_000))
        return np.arange(start, start + 31)


def rows_of(count=23, seed=4, passages=None):
    return Rows(passages or Passages(), PoSE(13, 101), count=count, seed=seed)


def content(row):
    return row.token_ids.tolist(), row.position_ids.tolist()


def test_any_order_gives_the_same_rows():
    once, again = rows_of(), rows_of()
    forward = [content(row) for row in once]
    order = np.random.default_rng(0).permutation(len(again))
    shuffled = {int(i): content(again[int(i)]) for i in order}
    assert [shuffled[i] for i in range(23)] == forward
    assert content(once[7]) == forward[7]


def test_a_longer_run_begins_with_the_same_rows():
    assert [content(row) for row in rows_of(count=40)][:23] == [content(row) for row in rows_of()]


def test_another_process_reads_the_same_rows():
    script = f"import sys; sys.path[:0] = {sys.path!r}\n" + IN_ANOTHER_PROCESS
    found = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(rows_of()), capture_output=True, check=True
    )
    there = {i: (tokens.tolist(), places.tolist()) for i, tokens, places in pickle.loads(found.stdout)}
    assert there == dict(enumerate(content(row) for row in rows_of()))


def test_every_epoch_visits_every_passage_and_draws_anew():
    passages = Passages(visits=5)
    rows = [content(row) for row in rows_of(passages=passages)]
    assert passages.asked == [divmod(i, 5) for i in range(23)]
    tokens, positions = zip(*rows, strict=True)
    for epoch in range(1, 4):
        for example in range(5):
            assert tokens[example] != tokens[5 * epoch + example]
            assert positions[example] != positions[5 * epoch + example]


def test_no_two_rows_and_no_two_seeds_are_alike():
    rows = [str(content(row)) for seed in (0, 1, 4) for row in rows_of(seed=seed)]
    assert len(set(rows)) == 3 * 23


@pytest.fixture
def on_disk(tmp_path):
    """Rows of passages from a memory-mapped file: three epochs of 15 visits, and five of a fourth."""
    ids = [np.random.default_rng(i).integers(0, 97, 13 * i + 5, dtype=np.int32) for i in range(1, 6)]
    Dataset.from_dict({"input_ids": ids}).save_to_disk(tmp_path)
    documents = memory_mapped.TokenizedDocuments.from_ids(Dataset.load_from_disk(tmp_path))
    passages = memory_mapped.Passages(documents, min_length=13, max_length=101, seed=2)
    assert len(passages) == 15
    return Rows(passages, PoSE(13, 101), count=50, seed=4)


def read(rows, indices, workers=0, start=None):
    """All that a trainer would see, in order: tensors of three rows at a time, put together again."""
    loader = DataLoader(
        rows,
        batch_size=3,
        sampler=indices,
        collate_fn=SkipCollator(),
        num_workers=workers,
        multiprocessing_context=start,
    )
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:This process .* is multi-threaded")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0, None), (3, "fork")),
        ((3, "fork"), (1, "fork")),
        ((1, "fork"), (0, None)),
        ((0, None), (1, "spawn")),
    ],
    ids=["0 then 3 workers", "3 then 1", "1 then 0", "0 then a fresh process"],
)
def test_any_workers_read_the_same_rows_also_after_a_resume(on_disk, before, after):
    expected = [SkipCollator()([row]) for row in on_disk]
    first = read(on_disk, range(22), *before)
    on_disk.passages._order = None  # as in a new process
    rest = read(on_disk, range(22, 50), *after)  # from the middle of the second epoch
    for key in expected[0]:
        assert torch.equal(torch.cat([first[key], rest[key]]), torch.cat([row[key] for row in expected])), key


@pytest.mark.parametrize("index", [23, 24, -1, -23])
def test_outside_of_the_run(index):
    with pytest.raises(IndexError, match=f"row {index} of 23"):
        rows_of()[index]


def test_no_rows():
    assert len(rows_of(count=0)) == 0
    assert list(rows_of(count=0)) == []
