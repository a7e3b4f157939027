"""Longer context windows for RoPE language models, trained only at their short length (PoSE)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipwise.config import Recipe, make_recipe
    from skipwise.data.balanced import Balanced
    from skipwise.data.chat import Answers, Turns
    from skipwise.data.collate import SkipCollator
    from skipwise.data.coverage import coverage
    from skipwise.data.cream import Cream
    from skipwise.data.documents import load_documents
    from skipwise.data.mixture import Mixture
    from skipwise.data.passages import Passages, TokenizedDocuments, tokenize_documents
    from skipwise.data.rows import Rows
    from skipwise.data.samplers import make_sampler
    from skipwise.data.skips import Contiguous, FullLength, PoSE, RandPos, Row, example_rng
    from skipwise.data.stream import RowStream
    from skipwise.data.until_seen import examples_until_seen
    from skipwise.errors import InputError, RunError, SkipwiseError
    from skipwise.export.checkpoint import export_checkpoint
    from skipwise.models.probes import check
    from skipwise.pipeline import extend
    from skipwise.rope import extend_rope

_HOME = {
    "Answers": "skipwise.data.chat",
    "Balanced": "skipwise.data.balanced",
    "Contiguous": "skipwise.data.skips",
    "Cream": "skipwise.data.cream",
    "FullLength": "skipwise.data.skips",
    "InputError": "skipwise.errors",
    "Mixture": "skipwise.data.mixture",
    "Passages": "skipwise.data.passages",
    "PoSE": "skipwise.data.skips",
    "RandPos": "skipwise.data.skips",
    "Recipe": "skipwise.config",
    "Row": "skipwise.data.skips",
    "RowStream": "skipwise.data.stream",
    "Rows": "skipwise.data.rows",
    "RunError": "skipwise.errors",
    "SkipCollator": "skipwise.data.collate",
    "SkipwiseError": "skipwise.errors",
    "TokenizedDocuments": "skipwise.data.passages",
    "Turns": "skipwise.data.chat",
    "check": "skipwise.models.probes",
    "coverage": "skipwise.data.coverage",
    "example_rng": "skipwise.data.skips",
    "examples_until_seen": "skipwise.data.until_seen",
    "export_checkpoint": "skipwise.export.checkpoint",
    "extend": "skipwise.pipeline",
    "extend_rope": "skipwise.rope",
    "load_documents": "skipwise.data.documents",
    "make_recipe": "skipwise.config",
    "make_sampler": "skipwise.data.samplers",
    "tokenize_documents": "skipwise.data.passages",
}

__all__ = [
    "Answers",
    "Balanced",
    "Contiguous",
    "Cream",
    "FullLength",
    "InputError",
    "Mixture",
    "Passages",
    "PoSE",
    "RandPos",
    "Recipe",
    "Row",
    "RowStream",
    "Rows",
    "RunError",
    "SkipCollator",
    "SkipwiseError",
    "TokenizedDocuments",
    "Turns",
    "check",
    "coverage",
    "example_rng",
    "examples_until_seen",
    "export_checkpoint",
    "extend",
    "extend_rope",
    "load_documents",
    "make_recipe",
    "make_sampler",
    "tokenize_documents",
]


def __getattr__(name: str) -> Any:
    # Looked up when first used: the samplers must not cost an import of torch, nor `--help` any import.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'skipwise' has no attribute {name!r}")
