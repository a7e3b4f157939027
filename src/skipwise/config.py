"""What a run is told: one validated, immutable recipe. Lengths are in tokens unless a field says so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fractions import Fraction
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
Attention = Literal[
    "auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention", "xformers"
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


def _rows_or_auto(value: object) -> object:
    """One clear message where a union of types would give one for each."""
    if value == "auto" or (str(value).isascii() and str(value).isdecimal() and int(str(value)) >= 1):
        return value
    raise ValueError("must be a number of rows, at least 1, or auto")


_AsLength = BeforeValidator(
    parse_length, json_schema_input_type=int | Annotated[str, Field(pattern=r"^\s*\d+[kKmM]?\s*$")]
)
Tokens = Annotated[int, Field(ge=1), _AsLength]


def _yes_no_or_auto(value: object) -> object:
    if isinstance(value, bool) or value == "auto":
        return value
    raise ValueError("must be true, false or auto")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class BesideRecipe(_Section):
    """Further text beside `data.files`, a list: each entry has a fixed share of the rows of every step."""

    files: tuple[str, ...] = Field(
        min_length=1, description="Files, folders, globs or Hugging Face dataset names."
    )
    share: float = Field(gt=0, lt=1, description="Of the rows; `data.files` gets what the entries leave.")
    sampler: Annotated[str, AfterValidator(_name_or_mixture)] | None = Field(
        None, description="As `sampler.name`, which is the default; with full-length rows all are."
    )
    content: Content | None = Field(None, description="As `sampler.content`, which is the default.")
    pack: bool = Field(
        False,
        description="Join documents by the tokenizer's end-of-text token and cut rows from that: none is "
        "dropped for being short. Otherwise a row is of one document.",
    )
    taught: bool = Field(
        False,
        description="Learn the untouched model's whole predictions on these rows, not their text: what it "
        "could do in its own window, it keeps. For contiguous rows; its weights take memory, in bfloat16.",
    )
    text_column: str = Field("text", description="Column that holds the text, where a format has columns.")


class DataRecipe(_Section):
    """Where the text comes from."""

    files: tuple[str, ...] = Field((), description="Files, folders, globs or Hugging Face dataset names.")
    text_column: str = Field("text", description="Column that holds the text, where a format has columns.")
    evaluation_files: tuple[str, ...] = Field(
        (), description="Documents to judge on; empty: some long ones are set aside from `files`."
    )
    beside: tuple[BesideRecipe, ...] = Field((), description="Further text, each with its share of the rows.")

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """Of the rows, exactly as the recipe writes them: that of `files` first, then of each `beside`."""
        others = [Fraction(str(each.share)) for each in self.beside]
        return (1 - sum(others, Fraction()), *others)


class SamplerRecipe(_Section):
    """How a passage becomes a row (`skipwise.data.samplers`)."""

    name: Annotated[str, AfterValidator(_name_or_mixture)] = Field(
        "pose", description="A sampler, or a mixture with its weights: pose:0.8,contiguous:0.2."
    )
    chunks: int = Field(2, ge=1, description="N, the chunks of a row (pose, balanced).")
    content: Content = Field("uniform", description="Where the chunks' text comes from (pose, balanced).")
    headroom: Annotated[int, _AsLength] = Field(
        0,
        ge=0,
        description="Positions beyond the target that rows may reach (pose only). Without any, distances "
        "near the target are seen rarely; a train length of headroom shows them as often as others.",
    )


class AdapterRecipe(_Section):
    """Low-rank adapters (LoRA, Hu et al. 2021) instead of training every weight; PEFT makes them."""

    rank: int = Field(16, ge=1, description="Rank r of the two factors.")
    alpha: float = Field(32.0, gt=0, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability, on the adapter's input.")
    targets: tuple[str, ...] = Field(
        (), description="Names of the linear layers that get one; empty: all but the output layer."
    )
    embeddings: bool = Field(
        False, description="Also train the token embeddings (LongLoRA: the short window's are not enough)."
    )
    norms: bool = Field(False, description="Also train the normalisation layers (LongLoRA).")
    quantize: Literal["none", "4bit", "8bit"] = Field(
        "none", description="Hold the frozen weights in 4 bits (QLoRA: nf4) or 8, through bitsandbytes."
    )


class RetrievalRecipe(_Section):
    """Passkey prompts at the target length while training goes on, to see and keep the best checkpoint."""

    every: int = Field(0, ge=0, description="Optimizer steps between two looks; 0: never.")
    trials: int = Field(8, ge=1, description="Prompts in one look.")
    length: Tokens | None = Field(None, description="Tokens in a prompt; empty: the target length.")
    keep_best: bool = Field(
        True, description="Export the checkpoint that found most keys (the later of equals), not the last."
    )


class TrainingRecipe(_Section):
    """One training of `skipwise.train`."""

    steps: int = Field(200, ge=1, description="Optimizer steps.")
    rows_per_step: int = Field(16, ge=1, description="Rows in one optimizer step, over all devices.")
    micro_batch: Annotated[int | Literal["auto"], BeforeValidator(_rows_or_auto)] = Field(
        1, description="Rows in one forward pass of one device; auto: the most that fit in its memory."
    )
    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate of AdamW.")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = Field(
        "cosine", description="Of the learning rate after the warm-up, over all steps."
    )
    warmup_steps: int = Field(10, ge=0, description="Optimizer steps to reach the peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of the matrix products. auto: bfloat16 on a GPU."
    )
    weights: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of the trained weights in memory. bfloat16 needs half the memory; the optimizer then "
        "rounds stochastically, so that small updates are not lost.",
    )
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        "adamw", description="adamw-8bit (torchao) holds its two moments in 8 bits each."
    )
    only: tuple[str, ...] = Field(
        (), description="Parts whose weights are trained, such as self_attn; empty: all. The rest stays."
    )
    adapter: AdapterRecipe | None = Field(None, description="Train low-rank adapters; empty: every weight.")
    gradient_checkpointing: Annotated[bool | Literal["auto"], BeforeValidator(_yes_no_or_auto)] = Field(
        "auto",
        description="Trade time for activation memory. auto: where a step would not fit on the GPU without, "
        "by skipwise plan; never on a CPU.",
    )
    liger: Literal["auto", "on", "off"] = Field(
        "auto", description="Liger kernels. auto: on a GPU, where installed and made for the family."
    )
    logits_chunk: Annotated[int, _AsLength] = Field(
        1024,
        ge=0,
        description="Tokens whose logits are in memory at once, where Liger's loss is not used; 0: all.",
    )
    compile: bool = Field(False, description="torch.compile, one decoder layer at a time.")
    fp8: bool = Field(
        False,
        description="Matrix products of the decoder's linear layers in float8 (torchao, a scale a row) while "
        "training; the rest and the export are as without. Faster with compile, on GPUs of compute "
        "capability 8.9 or more.",
    )
    sharding: Literal["none", "fsdp2"] = Field(
        "none", description="fsdp2: weights, gradients and optimizer divided over the devices."
    )
    deepspeed: str | None = Field(None, description="A DeepSpeed config file (ZeRO), instead of sharding.")
    retrieval: RetrievalRecipe = Field(default_factory=lambda: RetrievalRecipe())
    report_to: tuple[str, ...] = Field(
        ("tensorboard",), description="Trackers of transformers: tensorboard, wandb, trackio, mlflow ..."
    )
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
    attention: Attention = Field(
        "auto", description="Attention back end. auto: sdpa, or eager for a family that has no sdpa."
    )
    accept_limits: bool = Field(
        False,
        description="Go on with a model that can use skipped positions in part only: hybrids with layers "
        "that are no attention, families whose layers with full attention have no positions.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Of every random choice in the run.")

    @model_validator(mode="after")
    def _holds_together(self) -> Recipe:
        training, wrong = self.training, []
        if self.data.shares[0] <= 0:
            wrong.append(
                f"data.beside: the shares sum to {float(1 - self.data.shares[0]):g}, which leaves no rows to "
                "data.files: lower one"
            )
        if training.micro_batch != "auto" and training.rows_per_step % training.micro_batch:
            wrong.append(
                f"training.rows_per_step = {training.rows_per_step}: must be a multiple of "
                f"training.micro_batch = {training.micro_batch}"
            )
        if training.deepspeed and training.sharding != "none":
            wrong.append("training.deepspeed and training.sharding: choose one")
        if training.micro_batch == "auto" and (training.deepspeed or training.sharding != "none"):
            wrong.append("training.micro_batch = auto tries whole models: with shards say a number")
        if training.fp8 and training.precision == "float32":
            wrong.append("training.fp8 and training.precision = float32: choose one")
        if training.fp8 and training.adapter:
            wrong.append("training.fp8 is for training every weight: leave it out, or training.adapter")
        if training.fp8 and (training.deepspeed or training.sharding != "none"):
            wrong.append("training.fp8 multiplies with whole weights: leave it out with shards")
        if training.only and training.adapter:
            wrong.append("training.only and training.adapter: choose one (adapter.targets names layers)")
        wrong += self._wrong_with_taught()
        if training.retrieval.every and training.retrieval.keep_best:
            every, save = training.retrieval.every, training.save_every
            if every % save:
                wrong.append(
                    f"training.retrieval.every = {every}: must be a multiple of training.save_every = "
                    f"{save}, so that the best is a checkpoint"
                )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _wrong_with_taught(self) -> Iterator[str]:
        taught = {number: each for number, each in enumerate(self.data.beside) if each.taught}
        if taught and (self.training.deepspeed or self.training.sharding != "none"):
            yield "data.beside: taught needs the untouched model whole: leave it out with shards"
        if taught and "full-length" in self.sampler.name:
            yield "data.beside: taught rows are short ones, and beside full-length rows all are: leave it out"
            return
        for number, each in taught.items():
            if (each.sampler or self.sampler.name) != "contiguous":
                yield f"data.beside.{number}: taught rows are short ones: set its sampler to contiguous"


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe in YAML and set ``overrides`` on top: ``training.steps=100``, values in YAML too.

    Raises InputError for a file that is no recipe, and for every mistake in it at once.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is no YAML file: {reason}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is no recipe: it holds {type(values).__name__}, not keys with values")
    for each in overrides:
        _set(values, each)
    return make_recipe(values)


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"{override!r}: say key=value, such as training.steps=100")
    *sections, name = key.split(".")
    for section in sections:
        inner = values.get(section) or {}
        if not isinstance(inner, dict):
            raise InputError(f"{override!r}: {section} is no section of the recipe")
        values[section] = values = dict(inner)
    try:
        values[name] = yaml.safe_load(text)
    except yaml.YAMLError:
        values[name] = text


def make_recipe(values: dict[str, Any]) -> Recipe:
    """Validate ``values``; every mistake is reported in one `InputError`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        mistakes = "; ".join(_mistake(detail) for detail in error.errors())
        raise InputError(f"the recipe does not hold: {mistakes}") from None


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def _mistake(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    what = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "missing":  # the input is then the whole section
        return f"{where}: {what}"
    if detail["type"] == "extra_forbidden":
        what = f"no such key{_nearest(detail['loc'])}"
    return f"{where} = {detail['input']!r}: {what}" if where else what


def _nearest(loc: tuple[str | int, ...]) -> str:
    """The key that was probably meant, from all sections: it may be in the wrong one."""
    paths = sorted(recipe_keys(), key=lambda path: -path.count("."))  # of equal names the outermost
    known = {path.rpartition(".")[2]: path for path in paths}
    meant = known.get(str(loc[-1])) or next(
        (known[name] for name in get_close_matches(str(loc[-1]), known, n=1)), None
    )
    return f", did you mean {meant}?" if meant else ""


def recipe_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every key of a recipe with its sections, such as ``training.retrieval.every``; sections too."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from recipe_keys(inner, f"{prefix}{name}.")


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write ``recipe`` as YAML, every default spelled out."""
    write_text(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
