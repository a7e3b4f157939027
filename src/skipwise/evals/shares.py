"""Scores that are a mean over trials or questions of a share between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from skipwise.scores import Score


def share_score(samples: Sequence[float], **of: Any) -> Score:
    """The mean of ``samples`` and its standard error, s / sqrt(n), with s the sample's own spread.

    ``of``: the other fields of the `Score`.
    """
    values = np.array(samples, dtype=np.float64)
    return Score(
        value=float(values.mean()),
        n=len(values),
        stderr=float(values.std() / np.sqrt(len(values))),
        samples=tuple(float(each) for each in values),
        **of,
    )
