"""Which relative distances a sampler shows: the probability that one example covers each of them.

A row covers distance d when some pair of its tokens is d positions apart. This is the quantity of the
paper's figure on chunk numbers (arXiv 2309.10400, section 5): a distance that no row covers is not taught.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skipwise.data.skips import Chunks, Contiguous, PoSE, RandPos, Sampler


def coverage(sampler: Sampler, *, draws: int = 2_000, seed: int = 0) -> NDArray[np.float64]:
    """Probability that one row of ``sampler`` covers distance d, for d = 1 .. target_length - 1.

    Returns float64 of shape ``(target_length - 1,)``; entry ``d - 1`` belongs to distance d. Exact for PoSE
    with up to two chunks and for contiguous rows; otherwise a Monte Carlo mean over ``draws`` rows, with a
    standard error of at most ``0.5 / sqrt(draws)``.
    """
    if isinstance(sampler, Contiguous) or (isinstance(sampler, PoSE) and sampler.chunks == 1):
        return (np.arange(1, sampler.target_length) < sampler.row_length).astype(np.float64)
    if isinstance(sampler, PoSE) and sampler.chunks == 2:
        return _two_chunks(sampler.train_length, sampler.target_length)
    return _monte_carlo(sampler, draws, np.random.default_rng(seed))


def _two_chunks(train_length: int, target_length: int) -> NDArray[np.float64]:
    """Closed form for N = 2: lengths and skip are independent, so the chance to miss d is a product.

    Inside a chunk the distances 1 .. max(l_0, l_1) - 1 are covered; across the two, u + 1 .. u + Lc - 1.
    """
    distance = np.arange(1, target_length)
    first = np.arange(1, train_length)
    longest = np.sort(np.maximum(first, train_length - first))
    miss_inside = np.searchsorted(longest, distance, side="right") / len(longest)
    largest_skip = target_length - train_length
    low = np.maximum(distance - train_length + 1, 0)
    high = np.minimum(distance - 1, largest_skip)
    hit_across = np.maximum(high - low + 1, 0) / (largest_skip + 1)
    return np.asarray(1.0 - miss_inside * (1.0 - hit_across))


def _monte_carlo(sampler: Sampler, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    passage = np.zeros(sampler.passage_length[1], dtype=np.int32)
    hits = np.zeros(sampler.target_length, dtype=np.int64)
    for _ in range(draws):
        row = sampler.sample(passage, rng)
        if isinstance(sampler, RandPos):
            hits += _distances_of_points(row.position_ids, sampler.target_length)
        else:
            hits += _distances_of_chunks(row.chunks, sampler.target_length)
    return np.asarray(hits[1:] / draws)


def _distances_of_points(position_ids: NDArray[np.int64], target_length: int) -> NDArray[np.bool_]:
    """Covered distances of any set of positions: where its autocorrelation is not zero."""
    size = 2 * target_length
    present = np.zeros(size)
    present[position_ids] = 1.0
    spectrum = np.fft.rfft(present)
    pairs = np.fft.irfft(spectrum * spectrum.conj(), size)[:target_length]
    return np.asarray(pairs > 0.5)


def _distances_of_chunks(chunks: Chunks, target_length: int) -> NDArray[np.bool_]:
    """Covered distances of a few chunks: each pair of chunks covers one interval; take their union."""
    starts = np.cumsum(chunks.lengths) - chunks.lengths + chunks.skips
    ends = starts + chunks.lengths - 1
    first, second = np.triu_indices(len(starts))
    low = np.maximum(starts[second] - ends[first], 1)
    high = ends[second] - starts[first]
    edges = np.zeros(target_length + 1, dtype=np.int64)
    some = low <= high
    np.add.at(edges, low[some], 1)
    np.add.at(edges, high[some] + 1, -1)
    return np.asarray(np.cumsum(edges)[:target_length] > 0)
