"""What the JSON files of `run.py` hold: every good result under a name of its own, every failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Found = dict[str, dict[str, Any]]


def read(files: list[Path]) -> tuple[Found, list[dict[str, Any]], set[str]]:
    """Every good result, every failure, the GPUs; ``file`` says where each is from.

    The first good result of a case has its name for a key, each further one ``name, file``.
    """
    cases: Found = {}
    failures, gpus = [], set()
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        gpus.add(content["gpu"])
        for each in content["cases"]:
            each["file"] = file.stem
            name = str(each["name"])
            if good(each):
                cases[f"{name}, {file.stem}" if name in cases else name] = each
            else:
                failures.append(each)
    return cases, failures, gpus


def good(case: dict[str, Any]) -> bool:
    """Whether it measured what it was to measure."""
    return any(key in case for key in ("step_seconds", "points", "ceilings")) and "error" not in case


def nearest(cases: Found, name: str, case: dict[str, Any]) -> dict[str, Any]:
    """The result ``name`` of the same file as ``case``, else the first one, else nothing."""
    same = [each for each in cases.values() if (each["name"], each["file"]) == (name, case["file"])]
    return same[0] if same else cases.get(name, {})
