"""One number that an evaluation found, in the form `scores.json` holds it."""

from __future__ import annotations

from typing import TypedDict

SCHEMA = 1
"""Raised when a reader of `scores.json` written before could be misled."""


class _Required(TypedDict):
    model: str
    task: str
    length: int
    value: float
    n: int
    stderr: float


class Score(_Required, total=False):
    """``length`` in tokens; ``n`` trials or documents; ``stderr`` the standard error of ``value``.

    ``depth`` (retrieval_at_depth) is the key's place as a fraction of the haystack; ``start`` and ``end``
    (perplexity_bucket) bound the scored positions, end excluded.
    """

    depth: float
    start: int
    end: int
