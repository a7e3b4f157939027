"""Several parts in one training: shares of every step, and rows that depend on (seed, index) alone."""

import pickle
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from skipwise.data.blend import Blend, counted_out, part_seed, together
from skipwise.data.collate import SkipCollator
from skipwise.data.mixture import Mixture
from skipwise.data.rows import Rows
from skipwise.data.skips import Contiguous, FullLength, PoSE

SHARES = (Fraction("0.55"), Fraction("0.2"), Fraction("0.25"))
SAMPLERS = (PoSE(13, 101), PoSE(13, 101), Contiguous(13, 101))


class Text:
    """Visits to random places of one long document; its tokens tell which part it is."""

    def __init__(self, part, visits):
        self.part, self.visits = part, visits

    def __len__(self):
        return self.visits

    def draw(self, epoch, example, rng):
        start = int(rng.integers(1000))
        return np.arange(start, start + 31) + 1_000_000 * self.part


def blend_of(shares=SHARES, samplers=SAMPLERS, *, steps=9, rows_per_step=7, seed=4):
    sources = [Text(part, visits=3 + 2 * part) for part in range(len(shares))]
    return Blend(sources, samplers, shares, steps=steps, rows_per_step=rows_per_step, seed=seed)


def content(row):
    return row.token_ids.tolist(), row.position_ids.tolist()


def parts_of(rows):
    return [int(row.token_ids[0]) // 1_000_000 for row in rows]


@st.composite
def shares_of_parts(draw):
    weights = draw(st.lists(st.integers(1, 997), min_size=1, max_size=6))
    return tuple(Fraction(weight, sum(weights)) for weight in weights)


@settings(max_examples=200, deadline=None)
@given(shares=shares_of_parts(), rows=st.integers(1, 37), steps=st.integers(0, 60))
@example(shares=(Fraction(1, 2), Fraction(1, 4), Fraction(1, 8), Fraction(1, 8)), rows=1, steps=60)
@example(shares=(1 - Fraction(str(1 / 3)), Fraction(str(1 / 3))), rows=3, steps=60)
def test_every_step_has_each_share_as_exactly_as_whole_numbers_allow(shares, rows, steps):
    before = counted_out(shares, rows, steps)
    assert before.shape == (steps + 1, len(shares))
    assert (before.sum(axis=1) == rows * np.arange(steps + 1)).all()
    for part, share in enumerate(shares):
        in_step = np.diff(before[:, part])
        assert set(in_step.tolist()) <= {floor(rows * share), ceil(rows * share)}
        away = [abs(count - step * rows * share) for step, count in enumerate(before[:, part].tolist())]
        assert max(away) < (1 if len(shares) <= 3 else 1.25)


def test_a_share_is_exact_whenever_it_can_be():
    before = counted_out(SHARES, 7, 60)
    assert before[20].tolist() == [77, 28, 35]  # 140 rows
    assert before[60].tolist() == [231, 84, 105]
    assert (counted_out(SHARES, 20, 3) == [[0, 0, 0], [11, 4, 5], [22, 8, 10], [33, 12, 15]]).all()


def test_rows_of_one_part_lie_next_to_each_other():
    parts = parts_of(blend_of())
    for step in range(9):
        assert parts[7 * step : 7 * step + 7] == sorted(parts[7 * step : 7 * step + 7])
    assert set(parts) == {0, 1, 2}


def test_the_rows_of_a_part_are_read_one_after_the_other():
    rows = blend_of()
    found, parts = [content(row) for row in rows], parts_of(rows)
    for part in range(3):
        seed = part_seed(4, part)
        alone = Rows(Text(part, visits=3 + 2 * part), SAMPLERS[part], count=parts.count(part), seed=seed)
        assert [content(row) for row in alone] == [
            each for each, of in zip(found, parts, strict=True) if of == part
        ]
        assert len(rows.parts[part]) == parts.count(part)


def test_one_part_has_the_rows_it_always_had():
    rows = blend_of((Fraction(1),), SAMPLERS[:1])
    alone = Rows(Text(0, visits=3), SAMPLERS[0], count=63, seed=4)
    assert [content(row) for row in rows] == [content(row) for row in alone]
    assert rows.sampler is SAMPLERS[0]


def test_a_longer_run_begins_with_the_same_rows():
    assert [content(row) for row in blend_of(steps=20)][:63] == [content(row) for row in blend_of()]


def test_parts_do_not_share_what_they_draw():
    same = Blend(
        [Text(0, visits=5)] * 2, [PoSE(13, 101)] * 2, [Fraction(1, 2)] * 2, steps=9, rows_per_step=2, seed=0
    )
    rows = [content(row) for row in same]
    assert len({str(row) for row in rows}) == 18
    assert len({part_seed(seed, part) for seed in range(9) for part in range(9)}) == 81


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:This process .* is multi-threaded")
@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 1)])
def test_any_workers_read_the_same_rows_also_after_a_resume(before, after):
    def read(rows, indices, workers):
        start = "fork" if workers else None
        options = {"batch_size": 2, "num_workers": workers, "multiprocessing_context": start}
        batches = list(DataLoader(rows, sampler=indices, collate_fn=SkipCollator(), **options))
        return torch.cat([batch["input_ids"] for batch in batches])

    expected = torch.tensor(np.stack([row.token_ids for row in blend_of()]))
    rest = read(pickle.loads(pickle.dumps(blend_of())), range(24, 63), after)  # within a step
    assert torch.equal(torch.cat([read(blend_of(), range(24), before), rest]), expected)


@pytest.mark.parametrize("index", [63, -1])
def test_outside_of_the_run(index):
    with pytest.raises(IndexError, match=f"row {index} of 63"):
        blend_of()[index]


def test_one_sampler_stands_for_all():
    pose, contiguous = PoSE(13, 101), Contiguous(13, 101)
    mixed = Mixture((pose, contiguous), (0.5, 0.5))
    assert blend_of().sampler == Mixture((pose, contiguous), (0.75, 0.25))
    assert together((mixed, mixed), (Fraction(1, 3), Fraction(2, 3))) is mixed
    assert together((contiguous, mixed), (Fraction(1, 2),) * 2) == Mixture((contiguous, pose), (0.75, 0.25))


def test_rows_of_two_lengths():
    with pytest.raises(ValueError, match="must have one row length"):
        together((PoSE(13, 101), FullLength(13, 101)), (Fraction(1, 2),) * 2)


def taught_blend(taught, samplers=SAMPLERS):
    sources = [Text(part, visits=3 + 2 * part) for part in range(3)]
    return Blend(sources, samplers, SHARES, steps=9, rows_per_step=7, seed=4, taught=taught)


@pytest.mark.parametrize("taught", [(), (2,), [0, 2]])
def test_rows_of_taught_parts_say_so_and_are_the_same(taught):
    samplers = (Contiguous(13, 101), PoSE(13, 101), Contiguous(13, 101))
    rows, others = taught_blend(taught, samplers), blend_of(samplers=samplers)
    assert [row.taught for row in rows] == [part in taught for part in parts_of(others)]
    assert [content(row) for row in rows] == [content(row) for row in others]
    assert rows.taught == set(taught)


@pytest.mark.parametrize(
    "sampler",
    [PoSE(13, 101), PoSE(13, 101, 1), FullLength(13, 101), Mixture((Contiguous(13, 101),), (1.0,))],
)
def test_only_plain_contiguous_rows_can_be_taught(sampler):
    """Full-length rows are contiguous too, and lie outside of what the untouched model knows."""
    samplers = (sampler,) * 2 + (sampler if isinstance(sampler, FullLength) else Contiguous(13, 101),)
    taught_blend((), samplers)
    with pytest.raises(ValueError, match="must be contiguous: it knows no others"):
        taught_blend((2, 1), samplers)
