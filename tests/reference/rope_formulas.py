"""RoPE and its interpolations in float64, written from the papers and from nothing of the package.

Frequencies have shape ``(d / 2,)``, in radians a position; ``d`` is the rotary size, ``base`` RoPE's theta,
``alpha`` the factor from the pretrained ``window`` to the target.
"""

import math

import numpy as np


def plain(d, base):
    """Su et al. 2021, equation 15: theta_j = base^(-2j/d)."""
    return float(base) ** (-2.0 * np.arange(d // 2) / d)


def linear(d, base, alpha):
    """Chen et al. 2023, equation 4: f(x, m) becomes f(x, m / alpha)."""
    return plain(d, base) / alpha


def ntk(d, base, alpha):
    """Peng et al. 2023, definition 1 (NTK-aware): b' = b alpha^(d / (d - 2)).

    Written out per frequency: theta_j alpha^(-2j / (d - 2)), from 1 (kept) to 1 / alpha (interpolated).
    """
    return plain(d, base) * float(alpha) ** (-2.0 * np.arange(d // 2) / (d - 2))


def kept_share(d, base, window, fast=32.0, slow=1.0):
    """Peng et al. 2023, section 3.2 (NTK-by-parts), with the ramp of its code and of `transformers`: g_j.

    A frequency that turns more than ``fast`` times in the window is kept (1), one that turns fewer than
    ``slow`` times is interpolated (0). The code's ramp is linear in the index of the frequency (the paper's
    in its number of turns), between the indices that turn ``fast`` and ``slow`` times, rounded outwards.
    """

    def index_with(turns):  # window * theta_j / (2 pi) = turns, solved for j
        return d * math.log(window / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(index_with(fast)), 0)
    high = min(math.ceil(index_with(slow)), d - 1)
    share = np.array([(j - low) / (high - low) if high > low else float(j > low) for j in range(d // 2)])
    return 1.0 - np.clip(share, 0.0, 1.0)


def yarn(d, base, alpha, window, **ramp):
    """Peng et al. 2023, equation 19 with the ramp above: theta_j ((1 - g_j) / alpha + g_j)."""
    g = kept_share(d, base, window, **ramp)
    return plain(d, base) * ((1 - g) / alpha + g)


def pose_yarn(d, base, alpha, window, **ramp):
    """Zhu et al. 2023, the revised YaRN of its checkpoints: theta_j / ((1 - g_j) alpha + g_j)."""
    g = kept_share(d, base, window, **ramp)
    return plain(d, base) / ((1 - g) * alpha + g)


def yarn_attention(alpha):
    """Peng et al. 2023, equation 22: cos and sin are scaled by 0.1 ln(alpha) + 1."""
    return 0.1 * math.log(alpha) + 1.0


def llama3(d, base, factor, window, low=1.0, high=4.0):
    """Llama 3.1: waves shorter than window / high kept, longer than window / low divided, blended between."""
    found = []
    for frequency in plain(d, base):
        turns = window * frequency / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append((1 - kept) * frequency / factor + kept * frequency)
    return np.array(found)


def longrope(d, base, factors):
    """Ding et al. 2024, equation 2: theta_j / lambda_j."""
    return plain(d, base) / np.asarray(factors)


def longrope_attention(alpha, window):
    """Ding et al. 2024, section 3: sqrt(1 + ln(alpha) / ln(window))."""
    return math.sqrt(1 + math.log(alpha) / math.log(window))
