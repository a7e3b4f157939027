"""Two evaluations -> whether they asked two models the same, so that their units make pairs."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from skipwise.scores import Evaluation

_PARTS = {"lengths", "kinds", "tasks"}
"""Settings that list what was asked: each of it is asked alike whatever else is."""


def difference_of_settings(first: Evaluation, other: Evaluation, subtask: str = "") -> str:
    """The first setting that makes two evaluations ask different things, in words; empty: none does.

    Settings of another ``subtask`` do not count, nor do the names of the files where a hash says that the
    texts are the same.
    """
    one, two = (dict(_leaves(each.settings)) for each in (first, other))
    hashed = {"documents.hash", "texts.hash"} & one.keys() & two.keys()
    for key in {**one, **two}:
        parts = key.split(".")
        elsewhere = parts[0] == "tasks" and len(parts) > 1 and parts[1] != subtask
        skipped = key in _PARTS or elsewhere or (key == "files" and hashed)
        if not skipped and one.get(key) != two.get(key):
            return f"{key}: {_short(two.get(key))}, not {_short(one.get(key))}"
    return ""


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 30 else text[:29] + "…"
