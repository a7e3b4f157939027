"""Text of a run: what is trained on, and what is judged on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skipwise.config import Recipe
from skipwise.data.documents import load_documents
from skipwise.data.passages import TokenizedDocuments, split_documents, tokenize_documents
from skipwise.errors import InputError
from skipwise.files import disk_errors
from skipwise.pipeline.base import Base


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is trained on and what is judged on."""

    train: TokenizedDocuments
    held_out: TokenizedDocuments
    notes: tuple[str, ...]


def read_corpus(recipe: Recipe, base: Base, cache: Path, *, judged: bool = True) -> Corpus:
    """Tokenized text, cached in ``cache``; InputError for none, or for too little if it is to be ``judged``.

    The documents to judge on are set aside the same way whether they are used now or by a later run.
    """
    if not recipe.data.files:
        raise InputError("no training text: name some with --data")

    def read(sources: tuple[str, ...]) -> TokenizedDocuments:
        documents = load_documents(sources, text_column=recipe.data.text_column, cache_dir=cache)
        return tokenize_documents(documents, base.tokenizer, cache_dir=cache)

    with disk_errors(cache):
        documents = read(recipe.data.files)
        if recipe.data.evaluation_files:
            train_documents, held_out = documents, read(recipe.data.evaluation_files)
        else:
            train_documents, held_out = _set_aside(recipe, base, documents, judged)
    longest = int(held_out.lengths.max(initial=0))
    notes = []
    if longest < max(base.lengths):
        notes.append(
            f"The longest document to judge on has {longest} tokens: perplexity is not measured beyond."
        )
    return Corpus(train_documents, held_out, tuple(notes))


def _set_aside(
    recipe: Recipe, base: Base, documents: TokenizedDocuments, judged: bool
) -> tuple[TokenizedDocuments, TokenizedDocuments]:
    """Hold out documents as long as the longest length for which there are at least four."""
    for length in sorted(base.lengths, reverse=True):
        if int((documents.lengths >= length).sum()) >= 4:
            held_out = recipe.evaluation.documents
            return split_documents(documents, held_out=held_out, min_length=length, seed=recipe.seed)
    if not judged:
        return documents, documents.select(np.array([], dtype=np.int64))
    raise InputError(
        f"too little text: fewer than 4 documents have the {min(base.lengths)} tokens of the shortest "
        "evaluation length; add documents, or name some to judge on with --eval-data"
    )
