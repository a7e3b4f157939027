"""Passages and a sampler become a sequence of rows, one for every index of the whole run.

Row ``i`` is a pure function of (seed, i): a trainer may read rows in any order, from any number of workers
and processes, and from the middle after a resume, and meets the same rows.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from skipwise.data.skips import Row, Sampler, example_rng


class PassageSource(Protocol):
    """What `Rows` needs of `skipwise.data.passages.Passages`."""

    def __len__(self) -> int:
        """Passages in one epoch."""

    def draw(self, epoch: int, example: int, rng: np.random.Generator) -> NDArray[np.integer]:
        """The tokens of one passage."""


class TrainingRows(Protocol):
    """What a training needs of `Rows`, and of `skipwise.data.blend.Blend`: every row of the run, in order."""

    seed: int

    @property
    def sampler(self) -> Sampler:
        """What makes the rows; of several, one that stands for all."""

    def __len__(self) -> int:
        """Rows of the whole run."""

    def __getitem__(self, index: int) -> Row:
        """One row; IndexError outside of the run."""


class Rows:
    """``count`` training rows (a map-style dataset), epoch after epoch without a seam.

    Read them in order: the passages of an epoch are shuffled already.
    """

    def __init__(self, passages: PassageSource, sampler: Sampler, *, count: int, seed: int) -> None:
        self.passages = passages
        self.sampler = sampler
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self.count:
            raise IndexError(f"row {index} of {self.count}")
        epoch, example = divmod(index, len(self.passages))
        rng = example_rng(self.seed, epoch, example)
        return self.sampler.sample(self.passages.draw(epoch, example, rng), rng)
