"""Text of a run: what is trained on, and what is judged on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skipwise.config import Recipe
from skipwise.data.documents import load_documents
from skipwise.data.packing import end_of_text
from skipwise.data.passages import TokenizedDocuments, split_documents, tokenize_documents
from skipwise.errors import InputError
from skipwise.files import disk_errors
from skipwise.pipeline.base import Base
from skipwise.pipeline.parts import Part


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is trained on, the main text first, and what is judged on."""

    parts: tuple[Part, ...]
    held_out: TokenizedDocuments
    notes: tuple[str, ...]


def read_corpus(recipe: Recipe, base: Base, cache: Path, *, judged: bool = True) -> Corpus:
    """Tokenized text, cached in ``cache``; InputError for none, or for too little if it is to be ``judged``.

    The documents to judge on are of the main text, set aside the same way whether they are used now or by a
    later run.
    """
    data = recipe.data
    if not data.files:
        raise InputError("no training text: name some with --data")
    end = end_of_text(base.tokenizer) if any(each.pack for each in data.beside) else None

    def read(sources: tuple[str, ...], text_column: str = data.text_column) -> TokenizedDocuments:
        documents = load_documents(sources, text_column=text_column, cache_dir=cache)
        return tokenize_documents(documents, base.tokenizer, cache_dir=cache)

    with disk_errors(cache):
        documents = read(data.files)
        if data.evaluation_files:
            train_documents, held_out = documents, read(data.evaluation_files)
        else:
            train_documents, held_out = _set_aside(recipe, base, documents, judged)
        parts = [Part("data.files", data.shares[0], train_documents)]
        for number, (asked, share) in enumerate(zip(data.beside, data.shares[1:], strict=True)):
            documents = read(asked.files, asked.text_column)
            own_end = end if asked.pack else None
            parts.append(Part(f"data.beside.{number}", share, documents, own_end, asked.taught))
    longest = int(held_out.lengths.max(initial=0))
    notes = []
    if longest < max(base.lengths):
        notes.append(
            f"The longest document to judge on has {longest} tokens: perplexity is not measured beyond."
        )
    return Corpus(tuple(parts), held_out, tuple(notes))


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
