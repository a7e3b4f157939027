"""Rows of a sampler -> the intervals of relative distances that each of them covers, many rows at a time.

Two chunks, of first and last positions s_i <= e_i < s_j <= e_j, cover the distances ``s_j - e_i .. e_j -
s_i``; a chunk of l tokens covers ``1 .. l - 1`` by itself. A row covers the union over its pairs of chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skipwise.data.mixture import Mixture
from skipwise.data.skips import Contiguous, FullLength, PoSE, Sampler

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Intervals = tuple[Ints, Ints, Ints]
"""Row number, first and last distance of every interval: ascending by row, disjoint within a row."""

MANY_CHUNKS = 64
"""Rows of more chunks than this are read as sets of positions: they have too many pairs of chunks."""


def draw_intervals(sampler: Sampler, count: int, rng: np.random.Generator) -> Intervals:
    """The distances that ``count`` rows cover, rows numbered from 0.

    PoSE, two-chunk and contiguous rows are drawn all at once (`drawn_at_once`), others with ``sample``.
    """
    if isinstance(sampler, Mixture):
        chosen = rng.choice(len(sampler.samplers), size=count, p=sampler.weights)
        rows_of = [np.flatnonzero(chosen == number) for number in range(len(sampler.samplers))]
        parts = zip(rows_of, sampler.samplers, strict=True)
        return _joined(rows_of, [draw_intervals(part, len(rows), rng) for rows, part in parts])
    if drawn_at_once(sampler):
        return _covered(*_draw_at_once(sampler, count, rng), sampler.target_length)
    passage = np.zeros(sampler.passage_length[1], dtype=np.int32)
    drawn = [sampler.sample(passage, rng).chunks for _ in range(count)]
    chunks = np.array([len(row.lengths) for row in drawn])
    rows_of = [np.flatnonzero(chunks == number) for number in np.unique(chunks)]
    alike = [
        (np.stack([drawn[row].lengths for row in rows]), np.stack([drawn[row].skips for row in rows]))
        for rows in rows_of
    ]
    return _joined(rows_of, [_covered(*each, sampler.target_length) for each in alike])


def drawn_at_once(sampler: Sampler) -> bool:
    """Whether many rows cost little: their lengths and skips are a few array operations."""
    if isinstance(sampler, Mixture):
        return all(map(drawn_at_once, sampler.samplers))
    # Their very types: a subclass may draw otherwise.
    return type(sampler) in (Contiguous, FullLength, PoSE) or skip_probabilities(sampler) is not None


def skip_probabilities(sampler: Sampler) -> Floats | None:
    """P(u = 0), P(u = 1) .. of a sampler of two chunks with PoSE's chunk lengths; None for any other.

    A sampler says that it is one by a method of this name and ``chunks == 2``.
    """
    if getattr(sampler, "chunks", None) != 2:
        return None
    if type(sampler) is PoSE:
        skips = sampler.target_length - sampler.train_length + 1
        return np.full(skips, 1 / skips)
    offered = getattr(sampler, "skip_probabilities", None)
    return None if offered is None else np.asarray(offered(), dtype=np.float64)


def _draw_at_once(sampler: Sampler, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Lengths and skips, both of shape ``(count, N)``, distributed as the sampler's own."""
    if isinstance(sampler, Contiguous):
        return np.full((count, 1), sampler.row_length), np.zeros((count, 1), dtype=np.int64)
    chunks = sampler.chunks if type(sampler) is PoSE else 2
    lengths, skips = np.zeros((2, count, chunks), dtype=np.int64)
    left = np.full(count, sampler.row_length)
    for i in range(chunks - 1):
        lengths[:, i] = rng.integers(1, left - (chunks - 1 - i), endpoint=True)
        left -= lengths[:, i]
    lengths[:, -1] = left
    if type(sampler) is PoSE:
        for i in range(1, chunks):
            skips[:, i] = rng.integers(skips[:, i - 1], sampler.target_length - sampler.train_length + 1)
    else:
        law = skip_probabilities(sampler)
        assert law is not None  # else it would not be drawn at once
        possible = np.flatnonzero(law)
        up_to = np.cumsum(law[possible])
        skips[:, 1] = possible[np.searchsorted(up_to[:-1], up_to[-1] * rng.random(count), side="right")]
    return lengths, skips


def _covered(lengths: Ints, skips: Ints, target_length: int) -> Intervals:
    """The distances covered by rows of chunks, lengths and skips of shape ``(rows, N)``."""
    rows, chunks = lengths.shape
    if chunks > MANY_CHUNKS:
        found = [_runs(*row, target_length) for row in zip(lengths, skips, strict=True)]
        return _joined([np.array([row]) for row in range(rows)], found)
    starts = np.cumsum(lengths, axis=1) - lengths + skips
    ends = starts + lengths - 1
    first, second = np.triu_indices(chunks)
    # Each row has its own stretch of one long axis: there, a single sort puts all intervals in order.
    offset = (target_length + 1) * np.arange(rows)[:, None]
    low = (np.maximum(starts[:, second] - ends[:, first], 1) + offset).ravel()
    high = (ends[:, second] - starts[:, first] + offset).ravel()
    some = low <= high
    order = np.argsort(low[some], kind="stable")
    low, high = low[some][order], high[some][order]
    # Take away from every interval what those before it reached.
    low[1:] = np.maximum(low[1:], np.maximum.accumulate(high)[:-1] + 1)
    some = low <= high
    row, low = np.divmod(low[some], target_length + 1)
    return row, low, high[some] - row * (target_length + 1)


def _runs(lengths: Ints, skips: Ints, target_length: int) -> Intervals:
    """The distances covered by one row of many chunks: where its positions' autocorrelation is not zero."""
    size = 2 * target_length
    present = np.zeros(size)
    present[np.arange(lengths.sum()) + np.repeat(skips, lengths)] = 1.0
    spectrum = np.fft.rfft(present)
    covered = np.fft.irfft(spectrum * spectrum.conj(), size)[:target_length] > 0.5
    covered[0] = False
    edges = np.flatnonzero(np.diff(covered, prepend=False, append=False))
    return np.zeros(len(edges) // 2, dtype=np.int64), edges[::2], edges[1::2] - 1


def _joined(rows_of: Sequence[NDArray[np.integer]], parts: Sequence[Intervals]) -> Intervals:
    """Parts whose row ``i`` is row ``rows_of[part][i]`` of the whole, as one."""
    none = np.empty(0, dtype=np.int64)  # a mixture may draw no row at all from one of its samplers
    row = np.concatenate([none, *(rows[part[0]] for rows, part in zip(rows_of, parts, strict=True))])
    order = np.argsort(row, kind="stable")
    low, high = (np.concatenate([none, *(part[which] for part in parts)])[order] for which in (1, 2))
    return row[order], low, high
