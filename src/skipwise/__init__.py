"""Longer context windows for RoPE language models, trained only at their short length (PoSE)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipwise.config import Recipe, make_recipe
    from skipwise.data.collate import SkipCollator
    from skipwise.data.coverage import coverage
    from skipwise.data.skips import Contiguous, FullLength, PoSE, RandPos, Row, example_rng
    from skipwise.errors import InputError, RunError, SkipwiseError
    from skipwise.pipeline import extend
    from skipwise.rope import extend_rope

_HOME = {
    "Contiguous": "skipwise.data.skips",
    "FullLength": "skipwise.data.skips",
    "InputError": "skipwise.errors",
    "PoSE": "skipwise.data.skips",
    "RandPos": "skipwise.data.skips",
    "Recipe": "skipwise.config",
    "Row": "skipwise.data.skips",
    "RunError": "skipwise.errors",
    "SkipCollator": "skipwise.data.collate",
    "SkipwiseError": "skipwise.errors",
    "coverage": "skipwise.data.coverage",
    "example_rng": "skipwise.data.skips",
    "extend": "skipwise.pipeline",
    "extend_rope": "skipwise.rope",
    "make_recipe": "skipwise.config",
}

__all__ = [
    "Contiguous",
    "FullLength",
    "InputError",
    "PoSE",
    "RandPos",
    "Recipe",
    "Row",
    "RunError",
    "SkipCollator",
    "SkipwiseError",
    "coverage",
    "example_rng",
    "extend",
    "extend_rope",
    "make_recipe",
]


def __getattr__(name: str) -> Any:
    # Looked up when first used: the samplers must not cost an import of torch, nor `--help` any import.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'skipwise' has no attribute {name!r}")
