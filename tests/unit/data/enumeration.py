"""Every row that a tiny sampler can draw, with its probability: the oracle of the coverage tests."""

import itertools

import numpy as np


def pose_rows(train, target, count):
    """(positions, probability): every choice of lengths and skips, weighted as the paper draws them."""
    for lengths, p_lengths in choose_lengths(train, count):
        for skips, p_skips in choose_skips(target - train, count):
            yield (np.arange(train) + np.repeat(skips, lengths)).tolist(), p_lengths * p_skips


def two_chunk_rows(train, skips):
    """The same for two chunks whose skip u has the probability ``skips[u]``."""
    for lengths, p_lengths in choose_lengths(train, 2):
        for skip, p_skip in enumerate(skips):
            yield (np.arange(train) + np.repeat([0, skip], lengths)).tolist(), p_lengths * p_skip


def random_rows(count, length):
    """The same for ``count`` of ``length`` positions without replacement."""
    rows = list(itertools.combinations(range(length), count))
    for positions in rows:
        yield positions, 1 / len(rows)


def probabilities(rows, target):
    """Entry ``d - 1``: the probability that some pair of positions is d apart."""
    return sum(p * covered(positions, target) for positions, p in rows)


def covered(positions, target):
    """1.0 at ``d - 1`` where some pair of positions is d apart."""
    pairs = {abs(a - b) for a, b in itertools.combinations(positions, 2)}
    return np.array([float(d in pairs) for d in range(1, target)])


def choose_lengths(left, count):
    if count == 1:
        yield (left,), 1.0
        return
    choices = left - (count - 1)
    for first in range(1, choices + 1):
        for rest, p in choose_lengths(left - first, count - 1):
            yield (first, *rest), p / choices


def choose_skips(largest, count, skips=(0,), p=1.0):
    if len(skips) == count:
        yield skips, p
        return
    for nxt in range(skips[-1], largest + 1):
        yield from choose_skips(largest, count, (*skips, nxt), p / (largest - skips[-1] + 1))
