"""The parts of the training text: what each is, the rows it gives, and what the run says of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from skipwise.config import Recipe
from skipwise.data.blend import Blend, part_seed
from skipwise.data.packing import Packed
from skipwise.data.passages import Passages, TokenizedDocuments
from skipwise.data.rows import Rows
from skipwise.data.samplers import title
from skipwise.data.skips import Sampler
from skipwise.errors import InputError


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of text, with its key in the recipe and its share of the rows.

    ``end``: the token after every document where documents are packed; None where a passage is of one.
    ``taught``: its rows are learned from the untouched model.
    """

    key: str
    share: Fraction
    documents: TokenizedDocuments
    end: int | None = None
    taught: bool = False

    def passages(self, sampler: Sampler, seed: int) -> Passages | Packed:
        """Passages for ``sampler``; InputError, naming the part, if no document is long enough."""
        shortest, longest = sampler.passage_length
        if self.end is not None:  # the shortest: no text lies between two passages, nor is passed over in one
            return Packed(self.documents, length=shortest, end=self.end, seed=seed)
        if not self.kept(sampler):
            way_out = "add longer ones" + ("" if self.key == "data.files" else ", or set pack: true")
            raise InputError(
                f"{self.key}: a row needs {shortest} tokens of one document, and the longest of "
                f"{len(self.documents)} has {self.documents.lengths.max(initial=0)}: {way_out}"
            )
        return Passages(self.documents, min_length=shortest, max_length=longest, seed=seed)

    def kept(self, sampler: Sampler) -> int:
        """Documents that rows are made from."""
        if self.end is not None:
            return len(self.documents)
        return int((self.documents.lengths >= sampler.passage_length[0]).sum())

    def passes(self, rows: Rows) -> float:
        """How often ``rows`` go through the text."""
        if isinstance(rows.passages, Packed):  # the last passage of its epoch belongs to the next as well
            return len(rows) * rows.passages.length / rows.passages.tokens
        return len(rows) / len(rows.passages)


def blend(recipe: Recipe, parts: Sequence[Part], samplers: Sequence[Sampler]) -> Blend:
    """The rows of a whole training; ``samplers`` has one for each part."""
    return Blend(
        [
            part.passages(sampler, part_seed(recipe.seed, number))
            for number, (part, sampler) in enumerate(zip(parts, samplers, strict=True))
        ],
        samplers,
        [part.share for part in parts],
        steps=recipe.training.steps,
        rows_per_step=recipe.training.rows_per_step,
        seed=recipe.seed,
        taught=[number for number, part in enumerate(parts) if part.taught],
    )


def described(parts: Sequence[Part], rows: Blend) -> Iterator[str]:
    """A line for each part."""
    for part, own in zip(parts, rows.parts, strict=True):
        kept = part.kept(own.sampler)
        dropped, shortest = len(part.documents) - kept, own.sampler.passage_length[0]
        which = f" ({part.key}, {percent(part.share)} of the rows, {title(own.sampler)})"
        yield (
            f"training text{which if len(parts) > 1 else ''}: {kept} documents"
            + (", packed" if part.end is not None else "")
            + (", taught by the untouched model" if part.taught else "")
            + (f"; {dropped} shorter than {shortest} tokens are left out" if dropped else "")
        )


def facts(parts: Sequence[Part], rows: Blend, name: str) -> dict[str, Any]:
    """The same for the record, with what a training called ``name`` saw of each part."""
    found: dict[str, Any] = {}
    for part, own in zip(parts, rows.parts, strict=True):
        kept, (shortest, _) = part.kept(own.sampler), own.sampler.passage_length
        about = {
            "documents in training": kept,
            f"documents shorter than {shortest} tokens, dropped": len(part.documents) - kept,
            "tokens in the training documents": part.documents.total_tokens,
            f"tokens seen in training ({name})": len(own) * own.sampler.row_length,
            f"passes over the text ({name})": round(part.passes(own), 2),
        }
        if len(parts) > 1:
            about = {"share of the rows": float(part.share)} | about
            about = {f"{part.key}: {what}": value for what, value in about.items()}
        found |= about
    return found


def percent(share: Fraction) -> str:
    """``20 %``."""
    return f"{float(100 * share):g} %"
