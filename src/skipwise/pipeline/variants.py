"""The models of a comparison: untouched, interpolated, the control, and the one that is wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from skipwise.config import Interpolation, Recipe, format_length
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
    """One model of the comparison: its config (None: as published), and how it is trained (None: not)."""

    name: str
    title: str
    description: str
    config: PretrainedConfig | None
    sampler: Sampler | None
    folder: Path | None


def variants(recipe: Recipe, base: Base, output: Path) -> list[Variant]:
    """The models to compare, the wanted one last."""
    target = format_length(recipe.target_length)
    config = base.extended_config
    sampler = _sampler(recipe, base)
    method = METHODS[recipe.interpolation]
    found = [
        Variant("untouched", "Untouched", "the checkpoint as it was given", None, None, None),
        Variant(
            "interpolated",
            "Interpolated",
            f"{method} interpolation to {target}, not trained",
            config,
            None,
            None,
        ),
    ]
    budget = f"{recipe.training.steps} steps of {recipe.training.rows_per_step} rows"
    if recipe.control and recipe.sampler.name != "contiguous":
        control = Contiguous(base.train_length, recipe.target_length)
        words = f"the same interpolation, {budget} of {format_length(base.train_length)} tokens, no skips"
        folder = output / "controls" / "contiguous"
        found.append(Variant("contiguous", "Contiguous control", words, config, control, folder))
    cut = f" in {recipe.sampler.chunks} chunks" if recipe.sampler.name in ("pose", "balanced") else ""
    words = f"the same interpolation, {budget} of {format_length(sampler.row_length)} tokens{cut}"
    name = re.sub("[:,]", "-", recipe.sampler.name)  # of files too: pose-0.8-contiguous-0.2
    found.append(Variant(name, title(sampler), words, config, sampler, output / "checkpoint"))
    return found


def _sampler(recipe: Recipe, base: Base) -> Sampler:
    asked = recipe.sampler.model_dump()
    try:
        return make_sampler(asked.pop("name"), base.train_length, recipe.target_length, **asked)
    except ValueError as error:
        raise InputError(str(error)) from None
