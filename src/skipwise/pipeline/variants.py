"""The models of a comparison: untouched, interpolated, the control, and the one that is wanted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from skipwise.config import Interpolation, Recipe, SamplerRecipe, format_length
from skipwise.data.blend import together
from skipwise.data.samplers import make_sampler, title
from skipwise.data.skips import Contiguous, Sampler
from skipwise.errors import InputError
from skipwise.pipeline.base import Base

METHODS: dict[Interpolation, str] = {
    "linear": "linear",
    "ntk": "NTK",
    "abf": "new-base",
    "yarn": "YaRN",
    "ntk-by-parts": "NTK-by-parts",
    "pose-yarn": "PoSE's YaRN",
    "llama3": "Llama 3",
    "longrope": "LongRoPE",
    "none": "no",
}
"""The interpolations in the words of the report."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One model of the comparison: its config (None: as published), and how it is trained (None: not).

    ``samplers``: one for each part of the text, the main one first. ``sampler``: what all rows together come
    from.
    """

    name: str
    title: str
    description: str
    config: PretrainedConfig | None
    sampler: Sampler | None = None
    samplers: tuple[Sampler, ...] = ()
    folder: Path | None = None


def variants(recipe: Recipe, base: Base, output: Path) -> list[Variant]:
    """The models to compare, the wanted one last."""
    target = format_length(recipe.target_length)
    config = base.extended_config
    sections = _sections(recipe)
    samplers, sampler = _samplers(sections, recipe, base)
    control = Contiguous(base.train_length, recipe.target_length)
    method = METHODS[recipe.interpolation]
    found = [
        Variant("untouched", "Untouched", "the checkpoint as it was given", None),
        Variant("interpolated", "Interpolated", f"{method} interpolation to {target}, not trained", config),
    ]
    budget = f"{recipe.training.steps} steps of {recipe.training.rows_per_step} rows"
    if recipe.control and set(samplers) != {control}:
        words = f"the same interpolation, {budget} of {format_length(base.train_length)} tokens, no skips"
        folder = output / "controls" / "contiguous"
        alike = (control,) * len(samplers)
        found.append(Variant("contiguous", "Contiguous control", words, config, control, alike, folder))
    names = dict.fromkeys(each.name for each in sections)
    name = re.sub("[:,]", "-", ",".join(names))  # of files too: pose-0.8-contiguous-0.2
    cut = f" in {recipe.sampler.chunks} chunks" if name in ("pose", "balanced") else ""
    words = f"the same interpolation, {budget} of {format_length(sampler.row_length)} tokens{cut}"
    found.append(Variant(name, title(sampler), words, config, sampler, samplers, output / "checkpoint"))
    return found


def _sections(recipe: Recipe) -> list[SamplerRecipe]:
    """How the rows of each part are made; beside full-length rows all are, since a step has one length."""
    main, found = recipe.sampler, [recipe.sampler]
    for part in recipe.data.beside:
        asked = {"name": part.sampler or main.name, "content": part.content or main.content}
        found.append(main if "full-length" in main.name else main.model_copy(update=asked))
    return found


def _samplers(
    sections: Sequence[SamplerRecipe], recipe: Recipe, base: Base
) -> tuple[tuple[Sampler, ...], Sampler]:
    """One for each of ``sections``, and what stands for all of them."""
    asked = [section.model_dump() for section in sections]
    try:
        samplers = tuple(
            make_sampler(each.pop("name"), base.train_length, recipe.target_length, **each) for each in asked
        )
        return samplers, together(samplers, recipe.data.shares)
    except ValueError as error:
        raise InputError(str(error)) from None
