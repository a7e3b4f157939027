"""What the tests of samplers share: traceable passages, and chi-square tests with a stated error."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

FALSE_ALARM = 1e-6
"""Chance that one distribution test rejects a correct sampler, before its seed was fixed."""


def passage_of(length, dtype=np.int32):
    """A passage whose tokens name their own index, so that text can be traced back."""
    return np.arange(length).astype(dtype)


def assert_distribution(draws, expected):
    """Chi-square of the drawn values against exact probabilities; an impossible value fails outright.

    Values expected fewer than ten times are counted together.
    """
    counts = Counter(draws)
    assert set(counts) <= set(expected), set(counts) - set(expected)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-12)
    wanted = {value: p * len(draws) for value, p in expected.items()}
    rare = [value for value in wanted if wanted[value] < 10]
    cells = [[value] for value in wanted if wanted[value] >= 10] + [rare] * bool(rare)
    found = chisquare(
        [sum(counts[value] for value in cell) for cell in cells],
        [sum(wanted[value] for value in cell) for cell in cells],
    )
    assert found.pvalue > FALSE_ALARM, found
