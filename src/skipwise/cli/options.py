"""Options that more than one command has, made into values."""

from __future__ import annotations

import math

from skipwise.errors import InputError


def interpolation_options(given: list[str]) -> dict[str, float | list[float]]:
    """``["beta_fast=16", "long_factor=1,1.5"]`` by name, as numbers; with a comma, as a list of them.

    Raises InputError for what is not ``KEY=NUMBER``.
    """
    found: dict[str, float | list[float]] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise InputError(f"--interpolation-option {each}: say KEY=VALUE, such as beta_fast=16")
        try:
            numbers = [float(number) for number in value.split(",")]
        except ValueError:
            numbers = [math.nan]
        if not all(map(math.isfinite, numbers)):
            raise InputError(f"--interpolation-option {each}: {value!r} is not a number")
        found[name] = numbers if "," in value else numbers[0]
    return found


def tokens(option: str, value: str) -> int:
    """A number of tokens as people write it (32768, 32k, 1M). Raises InputError, naming ``option``."""
    from skipwise.config import parse_length

    found = parse_length(value)
    if not isinstance(found, int) or found < 1:
        raise InputError(f"{option} {value!r}: must be a number of tokens such as 32768, 32k or 1M")
    return found


def lengths_of(value: str | None, window: int) -> list[int]:
    """``"2k,8k"`` as numbers; None: doublings from 2,048 (or the window, if shorter) up to the window.

    Raises InputError, naming the option, and for a model that does not say its window.
    """
    if value is not None:
        return sorted({tokens("--lengths", each) for each in value.split(",")})
    if not window:
        raise InputError("the model does not say its window: name --lengths")
    found, length = [], min(2_048, window)
    while length < window:
        found.append(length)
        length *= 2
    return [*found, window]
