"""What a run is told: one validated, immutable recipe. Lengths are in tokens unless a field says so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from skipwise.errors import InputError
from skipwise.files import write_text

SamplerName = Literal["pose", "randpos", "contiguous", "full-length", "cream", "balanced"]
Interpolation = Literal[
    "linear", "ntk", "abf", "yarn", "ntk-by-parts", "pose-yarn", "llama3", "longrope", "none"
]
Content = Literal["uniform", "contiguous", "aligned"]


def parse_length(value: object) -> object:
    """Read a number of tokens: ``4096``, ``"4096"``, ``"128k"`` (x 1,024) or ``"1M"`` (x 1,048,576).

    Anything else is returned as it came, for the caller's own check to reject.
    """
    match = re.fullmatch(r"(\d+)([kKmM]?)", value.strip()) if isinstance(value, str) else None
    if match is None:
        return value
    return int(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2].lower()]


def format_length(tokens: int) -> str:
    """The inverse of `parse_length`, for people: ``131072`` -> ``"128k"``, ``300`` -> ``"300"``."""
    for size, unit in ((1024**2, "M"), (1024, "k")):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)


def _name_or_mixture(value: str) -> str:
    """Accept a sampler's name, or names with weights (`skipwise.data.mixture` says which weights)."""
    value, names = value.replace(" ", ""), get_args(SamplerName)
    part = rf"({'|'.join(names)}):\d*\.?\d+"
    if value not in names and not re.fullmatch(f"{part}(,{part})*", value, re.ASCII):
        raise ValueError(f"must be one of {', '.join(names)}, or a mixture such as pose:0.8,contiguous:0.2")
    return value


Tokens = Annotated[int, BeforeValidator(parse_length), Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DataRecipe(_Section):
    """Where the text comes from."""

    files: tuple[str, ...] = Field((), description="Files, folders, globs or Hugging Face dataset names.")
    text_column: str = Field("text", description="Column that holds the text, where a format has columns.")
    evaluation_files: tuple[str, ...] = Field(
        (), description="Documents to judge on; empty: some long ones are set aside from `files`."
    )


class SamplerRecipe(_Section):
    """How a passage becomes a row (`skipwise.data.samplers`)."""

    name: Annotated[str, AfterValidator(_name_or_mixture)] = Field(
        "pose", description="A sampler, or a mixture with its weights: pose:0.8,contiguous:0.2."
    )
    chunks: int = Field(2, ge=1, description="N, the chunks of a row (pose, balanced).")
    content: Content = Field("uniform", description="Where the chunks' text comes from (pose, balanced).")
    headroom: int = Field(
        0,
        ge=0,
        description="Positions beyond the target that rows may reach (pose only). Without any, distances "
        "near the target are seen rarely; a train length of headroom shows them as often as others.",
    )


class TrainingRecipe(_Section):
    """One training of `skipwise.train`."""

    steps: int = Field(200, ge=1, description="Optimizer steps.")
    rows_per_step: int = Field(16, ge=1, description="Rows in one optimizer step, over all devices.")
    micro_batch: int = Field(1, ge=1, description="Rows in one forward pass of one device.")
    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate of AdamW.")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "cosine"
    warmup_steps: int = Field(10, ge=0, description="Optimizer steps to reach the peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of the matrix products; weights stay float32. auto: bfloat16 on a GPU."
    )
    gradient_checkpointing: bool = Field(False, description="Trade time for activation memory.")
    save_every: int = Field(100, ge=1, description="Optimizer steps between checkpoints to resume from.")
    workers: int = Field(0, ge=0, description="Processes that prepare rows; 0: the main one.")


class EvaluationRecipe(_Section):
    """What is measured before and after."""

    lengths: tuple[Tokens, ...] = Field((), description="Empty: doublings from the window to the target.")
    documents: int = Field(8, ge=1, description="Documents for perplexity, at most.")
    trials: int = Field(20, ge=1, description="Retrieval prompts at each length.")


class Recipe(_Section):
    """One run of `skipwise extend`, complete: the same recipe and data give the same checkpoint."""

    model: str = Field(description="Checkpoint folder, .gguf file or Hugging Face hub name.")
    target_length: Tokens = Field(description="The window wanted.")
    train_length: Tokens | None = Field(None, description="Tokens in a row; empty: the model's own window.")
    allow_longer_rows: bool = Field(False, description="Let train_length exceed the model's window.")
    interpolation: Interpolation = Field("yarn", description="How positions fit the pretrained range.")
    interpolation_options: dict[str, float | list[float]] = Field(
        {},
        description="Further keys of the method, as `skipwise.rope.scaling.OPTIONS` lists them "
        "(yarn: beta_fast; abf: rope_theta; longrope: long_factor, a list).",
    )
    data: DataRecipe = Field(default_factory=lambda: DataRecipe())
    sampler: SamplerRecipe = Field(default_factory=lambda: SamplerRecipe())
    training: TrainingRecipe = Field(default_factory=lambda: TrainingRecipe())
    evaluation: EvaluationRecipe = Field(default_factory=lambda: EvaluationRecipe())
    control: bool = Field(False, description="Also train contiguous rows at the same budget, to compare.")
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    seed: int = Field(0, ge=0, lt=2**32, description="Of every random choice in the run.")

    @model_validator(mode="after")
    def _batch_divides(self) -> Recipe:
        training = self.training
        if training.rows_per_step % training.micro_batch:
            raise ValueError(
                f"training.rows_per_step = {training.rows_per_step}: must be a multiple of "
                f"training.micro_batch = {training.micro_batch}"
            )
        return self


def make_recipe(values: dict[str, Any]) -> Recipe:
    """Validate ``values``; every mistake is reported in one `InputError`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        mistakes = "; ".join(_mistake(detail) for detail in error.errors())
        raise InputError(f"the recipe does not hold: {mistakes}") from None


def _mistake(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    what = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "missing":  # the input is then the whole section
        return f"{where}: {what}"
    return f"{where} = {detail['input']!r}: {what}" if where else what


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write ``recipe`` as YAML, every default spelled out."""
    write_text(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
