"""How sure a difference between two models is: intervals from the units behind two scores.

**Bootstrap.** Units (documents, trials, questions) are drawn anew with replacement 10,000 times, and the
difference of the two means is taken of each draw (Efron 1979; for language models Koehn 2004, EMNLP).
*Paired*: both models answered the same units, so a unit is drawn with both of its results, and what makes a
document hard for both cancels. *Unpaired*: each model's units are drawn on their own, which gives a wider
interval. The mean over several parts (the tasks of RULER) draws within each part.

The interval lies between two percentiles of these differences. Percentiles at 2.5 and 97.5 % are too narrow
for few units, by about sqrt((n - 1) / n) and by the step from Student's t to the normal; so the ones taken
lie at Phi(-sqrt(n / (n - 1)) t(n - 1)), as Hesterberg 2015 has it (The American Statistician 69, 371-386:
the "expanded percentile interval"). Under six units there is no interval: even the whole range of their
differences would hold the truth in under 95 % of cases.

**Newcombe's intervals.** A bootstrap knows only what it saw: 50 of 50 against 50 of 50 keys would give an
interval of no width at all, as if no trial could ever fail. So where the result of fewer than ten units
differs from that of most (paired: the two models' difference there), the interval is that of Newcombe 1998
instead (Statistics in Medicine 17, 2635-2650, method 10, for pairs; 873-890, method 10, for two groups),
made of Wilson's intervals for the two shares. For 50 of 50 against the same it is -7.1 .. +7.1 percentage
points, of the size of the one-sided bound that the rule of three gives (3 / 50). Shares between 0 and 1
(some of the answers) vary less than the rights and wrongs of the same mean, so for them the interval is on
the wide side.

How often the intervals hold the truth was simulated (`tests/unit/report/test_bootstrap.py`): shares of 20
to 100 trials in 93 to 100 % of cases, losses of ten documents or more in 91 to 95 %, of six or eight in 89
to 93 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 10_000
FEWEST = 6
"""Units that an interval needs."""
TELLING = 10
"""Units that must differ for the bootstrap of shares."""
_NUMBERS_AT_ONCE = 2**20
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


@dataclass(frozen=True, eq=False)
class Units:
    """What each unit contributed to a score: ``values`` and ``weights``, both (units,)."""

    values: FloatArray
    weights: FloatArray

    @property
    def mean(self) -> float:
        """The weighted mean."""
        return float(np.average(self.values, weights=self.weights))


Parts = Sequence[Units]
"""A score is the plain mean over its parts of their weighted means; mostly there is one."""


@dataclass(frozen=True)
class Interval:
    """Of the mean of the second model less that of the first, at 95 % confidence."""

    low: float
    high: float
    method: Literal["bootstrap", "newcombe"]

    @property
    def excludes_zero(self) -> bool:
        """Whether the two models differ; what rounding leaves does not count."""
        return self.low > 1e-12 or self.high < -1e-12


def interval(first: Parts, second: Parts, *, paired: bool, shares: bool, seed: int) -> Interval | None:
    """The interval of ``second``'s mean less ``first``'s, which have as many parts.

    ``paired``: unit i of a part is the same for both. ``shares``: all values lie in 0 .. 1, and any number of
    units will do. None: too few units, or a value that is not finite.
    """
    everything = [array for part in (*first, *second) for array in (part.values, part.weights)]
    if not all(np.isfinite(array).all() for array in everything):
        return None
    first, second = _used(first, second, paired)
    if shares and _telling(first, second, paired) < TELLING:
        return newcombe(first, second, paired=paired)
    arms = [first] if paired else [first, second]
    freedom = min(sum(len(part.values) - 1 for part in arm) for arm in arms)
    if freedom < FEWEST - 1:
        return None
    smallest = min(len(part.values) for arm in arms for part in arm)
    tail = expanded_tail(freedom, math.sqrt(smallest / (smallest - 1)) if smallest > 1 else 1.0)
    differences = resampled_differences(first, second, paired=paired, seed=seed)
    low, high = np.nanquantile(differences, [tail, 1 - tail])
    return Interval(float(low), float(high), "bootstrap")


def _used(first: Parts, second: Parts, paired: bool) -> tuple[Parts, Parts]:
    """Without the units that have no weight: documents that hold nothing of what is measured."""
    found: tuple[list[Units], list[Units]] = ([], [])
    for one, other in zip(first, second, strict=True):
        kept = [one.weights > 0, other.weights > 0]
        if paired:
            kept = [kept[0] | kept[1]] * 2
        for part, arm, keep in zip((one, other), found, kept, strict=True):
            arm.append(Units(part.values[keep], part.weights[keep]))
    return found


def resampled_differences(first: Parts, second: Parts, *, paired: bool, seed: int) -> FloatArray:
    """The difference of the means in each of RESAMPLES draws of the units, (RESAMPLES,)."""
    rng = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for one, other in zip(first, second, strict=True):
        if paired:
            means = _resampled_means([one, other], rng)
            total += means[:, 1] - means[:, 0]
        else:
            total += _resampled_means([other], rng)[:, 0] - _resampled_means([one], rng)[:, 0]
    return total / len(first)


def _resampled_means(models: Sequence[Units], rng: np.random.Generator) -> FloatArray:
    """(RESAMPLES, models): the weighted means of units that are drawn together.

    How often each unit is drawn is multinomial, so units that are alike (right and right, right and wrong)
    are drawn as one with their number: 10,000 questions take no longer than four.
    """
    columns = [column for each in models for column in (each.values * each.weights, each.weights)]
    kinds, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    means = np.empty((RESAMPLES, len(models)))
    rows = max(1, _NUMBERS_AT_ONCE // len(kinds))
    for start in range(0, RESAMPLES, rows):
        part = means[start : start + rows]
        drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=len(part))
        sums = drawn @ kinds
        with np.errstate(invalid="ignore"):  # a draw of nothing but units without weight has no mean
            part[:] = sums[:, 0::2] / sums[:, 1::2]
    return means


def expanded_tail(freedom: int, narrow: float) -> float:
    """The share of the draws to leave out at either end: ``narrow`` and ``freedom`` widen the interval."""
    return NormalDist().cdf(-narrow * student_quantile(freedom))


def student_quantile(freedom: int) -> float:
    """Student's t at 97.5 %, to 0.001 from 5 degrees of freedom on (Abramowitz and Stegun, 26.7.5)."""
    z = _Z
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


def newcombe(first: Parts, second: Parts, *, paired: bool) -> Interval:
    """Newcombe's interval for the difference of two shares; the parts of a score are taken together."""
    p, q = (float(np.mean([part.mean for part in parts])) for parts in (second, first))
    n, m = (sum(len(part.values) for part in parts) for parts in (second, first))
    (p_low, p_high), (q_low, q_high) = wilson(p, n), wilson(q, m)
    bond = _correlation(first, second, p, q) if paired else 0.0
    return Interval(
        p - q - _apart(p - p_low, q_high - q, bond),
        p - q + _apart(p_high - p, q - q_low, bond),
        "newcombe",
    )


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share of ``n``."""
    middle = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    scale = 1 + _Z**2 / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _apart(one: float, other: float, bond: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * bond * one * other + other**2))


def _correlation(first: Parts, second: Parts, p: float, q: float) -> float:
    """Newcombe's phi, corrected for continuity; 0 where a share is 0 or 1."""
    one, other = (np.concatenate([part.values for part in parts]) for parts in (first, second))
    shared = float(np.mean(one * other)) - float(one.mean()) * float(other.mean())
    if shared > 0:
        shared = max(shared - 1 / (2 * len(one)), 0.0)
    spread = math.sqrt(p * (1 - p) * q * (1 - q)) if 0 < p < 1 and 0 < q < 1 else 0.0
    return min(1.0, max(-1.0, shared / spread)) if spread else 0.0


def _telling(first: Parts, second: Parts, paired: bool) -> int:
    """How many units the bootstrap can learn from: those whose result is unlike that of most."""
    if paired:
        pairs = zip(first, second, strict=True)
        return sum(_unusual(other.values - one.values) for one, other in pairs)
    return min(sum(_unusual(part.values) for part in parts) for parts in (first, second))


def _unusual(values: FloatArray) -> int:
    return len(values) - int(np.unique(values.round(9), return_counts=True)[1].max(initial=0))
