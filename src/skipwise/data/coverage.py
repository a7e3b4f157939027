"""Which relative distances a sampler shows: the probability that one example covers each of them.

A row covers distance d when some pair of its tokens is d positions apart. This is the quantity of the
paper's figure on chunk numbers (arXiv 2309.10400, section 5): a distance that no row covers is not taught.
Closed forms where there is one; else the mean over drawn rows, with its standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skipwise.data.chat import Turns
from skipwise.data.intervals import Floats, draw_intervals, skip_probabilities
from skipwise.data.mixture import Mixture
from skipwise.data.skips import Contiguous, FullLength, PoSE, RandPos, Sampler


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """Two float64 arrays of shape ``(target_length - 1,)``; entry ``d - 1`` belongs to distance d.

    ``probability`` is that of one row covering the distance, ``error`` its standard error: 0 where exact.
    """

    probability: Floats
    error: Floats

    @property
    def exact(self) -> bool:
        """Whether no probability is an estimate."""
        return not self.error.any()


def coverage(sampler: Sampler, *, draws: int = 2_000, seed: int = 0) -> Coverage:
    """Probability that one row of ``sampler`` covers distance d, for d = 1 .. target_length - 1.

    Exact (to about 1e-12) for rows without skips, for two chunks (PoSE and every sampler that offers
    ``skip_probabilities()``), for RandPos and for mixtures of these. Otherwise the share c / n of n =
    ``draws`` rows, and as its standard error ``sqrt(q (1 - q) / n)`` with ``q = (c + 1) / (n + 2)``: about
    ``0.5 / sqrt(n)`` at most, and not 0 where all rows or none covered the distance.

    Raises ValueError for a sampler whose rows depend on the text.
    """
    if isinstance(sampler, Turns):
        raise ValueError("sampler = Turns(...): must not depend on the text, as the borders between turns do")
    if isinstance(sampler, Mixture):
        return _mixture(sampler, draws, seed)
    exact = _closed_form(sampler)
    if exact is not None:
        return Coverage(exact, np.zeros_like(exact))
    return _monte_carlo(sampler, draws, np.random.default_rng(seed))


def _closed_form(sampler: Sampler) -> Floats | None:
    train_length, target_length = sampler.row_length, sampler.target_length
    # Their very types: a subclass may draw otherwise.
    one_chunk = type(sampler) in (Contiguous, FullLength) or (type(sampler) is PoSE and sampler.chunks == 1)
    if one_chunk or train_length in (1, target_length):  # one token has no distance, a full row no skip
        return (np.arange(1, target_length) < train_length).astype(np.float64)
    if type(sampler) is RandPos:
        return _random_points(train_length, target_length)
    skips = skip_probabilities(sampler)
    return None if skips is None else _two_chunks(train_length, target_length, skips)


def _two_chunks(train_length: int, target_length: int, skips: Floats) -> Floats:
    """Closed form for N = 2: lengths and skip are independent, so the chance to miss d is a product.

    Inside a chunk the distances 1 .. max(l_0, l_1) - 1 are covered; across the two, u + 1 .. u + Lc - 1.
    ``l_0 ~ U{1 .. Lc - 1}``; ``skips`` of shape ``(Lt - Lc + 1,)`` holds the probability of every u.
    """
    distance = np.arange(1, target_length)
    first = np.arange(1, train_length)
    longest = np.sort(np.maximum(first, train_length - first))
    miss_inside = np.searchsorted(longest, distance, side="right") / len(longest)
    below = np.append(0.0, np.cumsum(skips))  # P(u < 0), P(u < 1), ...
    low = np.maximum(distance - train_length + 1, 0)
    hit_across = below[np.minimum(distance, len(skips))] - below[np.minimum(low, len(skips))]
    return np.asarray(np.clip((1.0 - miss_inside) + miss_inside * hit_across, 0.0, 1.0))


def _random_points(count: int, length: int) -> Floats:
    """Closed form for k = ``count`` of n = ``length`` positions drawn without replacement.

    Draw each position with probability p = k / n instead, and read off the sets of k by a Fourier inversion:
    ``P(miss d) = sum over t of phi_d(t) exp(-ikt) / sum over t of phi(t) exp(-ikt)``, where ``phi(t)`` is the
    mean of exp(it drawn) and phi_d counts only sets that miss d. Steps of d split the positions into d
    chains, so phi_d is a product of J_q, the same mean over sets without neighbours in a chain of q.
    """
    distance = np.arange(1, length)
    size, longer = np.divmod(length, distance)  # `longer` chains of size + 1, the others of size
    sizes, which = np.unique(size, return_inverse=True)
    p = count / length
    # The sum over an odd number of t is exact but for sets of k +- points, +- 2 points .. positions.
    points = 2 * math.ceil(5 * math.sqrt(count * (1 - p)) + 30) + 1
    missing, drawn = np.zeros(length - 1), 0.0
    for t in range(points // 2 + 1):
        angle = 2 * math.pi * t / points
        turn = complex(2 * math.sin(angle / 2) ** 2, -math.sin(angle))  # 1 - exp(it)
        chains, longer_chains = (_log_chains(p, turn, q) for q in (sizes, sizes + 1))
        phi = np.exp((distance - longer) * chains[which] + longer * longer_chains[which])
        back = np.exp(-1j * count * angle) * (2 if t else 1)  # t and -t together
        missing += (phi * back).real
        drawn += float((np.exp(length * _log1p(np.array(-p * turn))) * back).real)
        if np.abs(phi).max() < 1e-17:
            break
    return np.clip(1.0 - missing / drawn, 0.0, 1.0)


def _log_chains(p: float, turn: complex, sizes: NDArray[np.int64]) -> NDArray[np.complex128]:
    """Logarithm of J_q for every q of ``sizes``; ``turn`` is 1 - exp(it).

    ``J_q = a J_(q-1) + a b J_(q-2)`` (the last position is not drawn, or it is and the one before is not),
    with a = 1 - p, b = p exp(it), J_0 = 1, J_1 = a + b; solved by the roots x of ``x^2 = a x + a b``. All is
    written as a difference from 1, or the powers of n would lose half of the digits.
    """
    rest = p * (turn + p * (1 - turn))
    root = np.sqrt((1 + p) ** 2 - 4 * rest)
    less = -2 * rest / (1 + p + root)  # the large root is 1 + less, the small one -p - less
    share = -(p * turn + less) / root
    powers = ((-p - less) / (1 + less)) ** sizes
    return sizes * _log1p(np.array(less)) + _log1p(share * (1 - powers))


def _log1p(x: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """``log(1 + x)`` that keeps the digits of a small x, which numpy's does not for complex numbers."""
    return np.asarray(np.log1p(2 * x.real + x.real**2 + x.imag**2) / 2 + 1j * np.arctan2(x.imag, 1 + x.real))


def _mixture(sampler: Mixture, draws: int, seed: int) -> Coverage:
    """The weighted sum of the parts; errors add up, the parts being drawn with one seed."""
    total = Coverage(*np.zeros((2, sampler.target_length - 1)))
    for weight, part in zip(sampler.weights, sampler.samplers, strict=True):
        found = coverage(part, draws=draws, seed=seed)
        total.probability[: part.target_length - 1] += weight * found.probability
        total.error[: part.target_length - 1] += weight * found.error
    return Coverage(np.minimum(total.probability, 1.0), total.error)


def _monte_carlo(sampler: Sampler, draws: int, rng: np.random.Generator) -> Coverage:
    edges = np.zeros(sampler.target_length + 1, dtype=np.int64)
    for done in range(0, draws, 1_000):
        _, low, high = draw_intervals(sampler, min(1_000, draws - done), rng)
        np.add.at(edges, low, 1)
        np.add.at(edges, high + 1, -1)
    covered = np.cumsum(edges)[1 : sampler.target_length]
    share = (covered + 1) / (draws + 2)
    return Coverage(covered / draws, np.sqrt(share * (1 - share) / draws))
