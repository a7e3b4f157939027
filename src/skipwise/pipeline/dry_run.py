"""A recipe tried without its cost: the whole of `train`, on a tiny model of the same config, in seconds.

The model's config is read and extended as for the run, the lengths and the sampler are checked as they are.
Then a tiny model of that config (`skipwise.models.tiny`) goes through the real flow with the recipe's own
settings: probed at the real target, trained for two steps of few short rows, exported and read back. Its
vocabulary is bytes, so its rows are made of the recipe's own text. What this machine cannot try is replaced
by what it can, and named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from skipwise.config import Recipe, make_recipe
from skipwise.data import documents as reading
from skipwise.data.packing import end_of_text
from skipwise.data.samplers import title
from skipwise.errors import InputError
from skipwise.files import write_text
from skipwise.models.check import available_backends
from skipwise.models.hints import check_stock_config
from skipwise.models.load import Checkpoint, find_checkpoint, load_config, load_tokenizer
from skipwise.models.tiny import save_tiny
from skipwise.pipeline.base import Base, find_base
from skipwise.pipeline.parts import percent
from skipwise.pipeline.run import train
from skipwise.pipeline.variants import Variant, variants
from skipwise.rope import extend_rope, text_config

STEPS, ROWS = 2, 2
"""Optimizer steps, and rows in each."""
ROW_LENGTH = 128
"""Tokens in a row, at most; the smallest number that chunks of any usual number fit in."""
PROMPT_LENGTH = 1024
"""Tokens (bytes) in a retrieval prompt: its fixed lines need some 400."""
_READ_AT_MOST = 64 << 20
"""Bytes of a file that is still read to have some of the recipe's text."""
_END = "\u0100"
"""How byte-level tokenizers write the byte 0."""
_TEXT_LENGTH = 65_536
"""Characters taken of each source."""

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DryRun:
    """What was found: of the run as it would be, and of the tiny one.

    window, row_length: of the run, in tokens. tokens: of the whole run. sampler: its title. parts: of the
    text, a line each, if there are several. loss: at each of the tiny model's steps. not_tried: what the dry
    run says nothing about, each with the reason.
    """

    family: str
    window: int
    row_length: int
    tokens: int
    sampler: str
    parts: tuple[str, ...]
    loss: tuple[float, ...]
    not_tried: tuple[str, ...]


def dry_run(recipe: Recipe) -> DryRun:
    """Try ``recipe`` and return what was found.

    Raises InputError and RunError as `skipwise.pipeline.train` does.
    """
    checkpoint = find_checkpoint(recipe.model)
    check_stock_config(checkpoint)
    config = load_config(checkpoint)
    with TemporaryDirectory(prefix="skipwise-") as name:
        folder = Path(name)
        _save_tiny(config, folder / "tiny")
        base = find_base(recipe.model_copy(update={"model": str(folder / "tiny")}))
        extend_rope(config, recipe.target_length, recipe.interpolation, recipe.interpolation_options)
        wanted = variants(recipe, base, folder)[-1]
        sampler = wanted.sampler
        assert sampler is not None
        text, unread = _some_text(recipe, folder / "cache")
        values, not_here = _in_small(recipe, base)
        values |= {"model": str(folder / "tiny"), "data": _save(text, values, folder / "text.txt")}
        train(make_recipe(values), folder / "run", command="", say=lambda _: None)
        record = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
    (curve,) = record["training"].values()
    budget = recipe.training.steps * recipe.training.rows_per_step
    return DryRun(
        family=config.model_type,
        window=base.window,
        row_length=sampler.row_length,
        tokens=budget * sampler.row_length,
        sampler=title(sampler),
        parts=tuple(_parts(recipe, wanted)),
        loss=tuple(step["loss"] for step in curve),
        not_tried=(*_tokenizer(checkpoint, recipe), *unread, *not_here),
    )


def _save_tiny(config: PretrainedConfig, folder: Path) -> None:
    """The tiny checkpoint, with a tokenizer of bytes: every one of them is in its vocabulary."""
    try:
        small = save_tiny(text_config(config), folder)
    except InputError as error:
        raise InputError(str(error).replace("use --full", "a dry run is not possible")) from error
    small.save_pretrained(folder)  # beside the weights lies, for some families, one of another window
    byte_tokenizer().save_pretrained(folder)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, 256 of them; text ends with the byte 0, which no text holds."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END)


def _in_small(recipe: Recipe, base: Base) -> tuple[Values, list[str]]:
    """The recipe's values with a small budget, as far as this machine goes, and what was replaced."""
    values = recipe.model_dump()
    training = values["training"]
    rows_per_step = max(ROWS, 1 + len(recipe.data.beside))  # of every part of the text some
    row_length = min(base.train_length, max(ROW_LENGTH, recipe.sampler.chunks))
    values |= {"train_length": row_length, "allow_longer_rows": True, "control": False}
    training |= {"steps": STEPS, "rows_per_step": rows_per_step, "save_every": STEPS, "workers": 0}
    training |= {"warmup_steps": min(training["warmup_steps"], 1), "report_to": ()}
    training |= {} if training["micro_batch"] == "auto" else {"micro_batch": 1}
    if training["retrieval"]["every"]:
        training["retrieval"] |= {"every": STEPS, "trials": 1, "length": PROMPT_LENGTH}
    trackers = set(recipe.training.report_to) - {"all", "none"}
    not_tried = [f"{each} is not installed" for each in sorted(trackers) if find_spec(each) is None]
    if "full-length" in recipe.sampler.name:  # then the rows of every part are
        values["data"]["beside"] = [part | {"sampler": None} for part in values["data"]["beside"]]
    for section, changes, reason in _replaced(recipe):
        target = values
        for key in section.split(".") if section else ():
            target = target[key]
        target |= changes
        not_tried.append(reason)
    return values, not_tried


def _replaced(recipe: Recipe) -> Iterator[tuple[str, Values, str]]:
    """What cannot be tried here: section, the values to try instead, the reason."""
    training, adapter = recipe.training, recipe.training.adapter
    if "full-length" in recipe.sampler.name:
        yield "sampler", {"name": "contiguous"}, "full-length rows: short contiguous ones instead"
    if recipe.attention not in ("auto", *_attention_here()):
        yield "", {"attention": "auto"}, f"attention {recipe.attention}: not on this machine"
    if training.deepspeed:
        if not Path(training.deepspeed).is_file():
            raise InputError(f"training.deepspeed = {training.deepspeed}: no such file")
        yield "training", {"deepspeed": None}, "DeepSpeed: one process has nothing to divide"
    if training.sharding != "none":
        yield "training", {"sharding": "none"}, "sharding: one process has nothing to divide"
    if training.compile:
        yield "training", {"compile": False}, "torch.compile: takes longer than a dry run"
    if training.fp8:
        yield "training", {"fp8": False}, "fp8: the tiny model has not its sizes"
    if training.liger == "on" and (why := _missing("liger_kernel")):
        yield "training", {"liger": "off"}, f"Liger kernels: {why}"
    if training.optimizer == "adamw-8bit" and (why := _missing("torchao")):
        yield "training", {"optimizer": "adamw"}, f"8-bit AdamW: {why}"
    if adapter and (why := _missing("peft", needs_gpu=False)):
        yield "training", {"adapter": None}, f"adapters: {why}"
    elif adapter and adapter.quantize != "none" and (why := _missing("bitsandbytes")):
        yield "training.adapter", {"quantize": "none"}, f"weights in {adapter.quantize}: {why}"


def _missing(package: str, *, needs_gpu: bool = True) -> str:
    """Why what ``package`` does cannot be tried here; empty if it can."""
    if needs_gpu and not torch.cuda.is_available():
        return "no GPU here" if find_spec(package) else f"no GPU here, and {package} is not installed"
    return "" if find_spec(package) else f"{package} is not installed"


def _attention_here() -> tuple[str, ...]:
    """Back ends that can train here: on a CPU flex attention has no backward pass, xformers no kernels."""
    return available_backends() if torch.cuda.is_available() else ("sdpa", "eager")


def _tokenizer(checkpoint: Checkpoint, recipe: Recipe) -> list[str]:
    """The reason, if the model has no tokenizer that can be read; InputError for one that cannot pack."""
    try:
        tokenizer = load_tokenizer(checkpoint)
        found = tokenizer("text", add_special_tokens=False)["input_ids"]
    except InputError:
        found = []
    if not found:  # of a folder without one, transformers makes an empty one for some families
        return [f"the tokenizer: {checkpoint.path} has none that can be loaded"]
    if any(part.pack for part in recipe.data.beside):
        end_of_text(tokenizer)
    return []


def _parts(recipe: Recipe, wanted: Variant) -> Iterator[str]:
    """What each part of the text is, if there are several."""
    data, beside = recipe.data, recipe.data.beside
    files = [data.files, *(part.files for part in beside)]
    told = ["", *(", packed" * part.pack + ", taught" * part.taught for part in beside)]
    for each, how, share, sampler in zip(files, told, data.shares, wanted.samplers, strict=True):
        if beside:
            named = ", ".join(each) or "data.files names none"
            yield f"{percent(share)} {title(sampler)}{how}: {named}"


def _some_text(recipe: Recipe, cache: Path) -> tuple[str, list[str]]:
    """Text from every source that can be read in no time, and the reasons for the others."""
    data, found, unread = recipe.data, [], []
    columns = [(each, data.text_column) for each in (*data.files, *data.evaluation_files)]
    columns += [(each, part.text_column) for part in data.beside for each in part.files]
    for source, column in columns:
        try:
            file = _smallest_file(source)
            documents = reading.load_documents([file], text_column=column, cache_dir=cache)
            found.append(documents[0]["text"][:_TEXT_LENGTH])
        except InputError as error:
            unread.append(f"text: {error}")
    if not data.files:
        unread.append("text: data.files names none")
    return "\n".join(found) or " ".join(map(str, range(10_000))), unread


def _smallest_file(source: str) -> Path:
    if reading.hub_name(source):
        raise InputError(f"{source} is a dataset of the hub, which is not loaded")
    file = min(reading.readable_files(source), key=lambda each: each.stat().st_size)
    if (size := file.stat().st_size) > _READ_AT_MOST:
        raise InputError(f"{source}: the smallest file has {size >> 20} MB, which are not read")
    return file


def _save(text: str, values: Values, file: Path) -> Values:
    """Write ``text``, repeated until any sampler has enough; returns the ``data`` section that reads it."""
    beside = values["data"]["beside"]
    aligned = "aligned" in (values["sampler"]["content"], *(part["content"] for part in beside))
    enough = (values["target_length"] + values["sampler"]["headroom"] if aligned else 0) + 4 * ROW_LENGTH
    write_text(file, text * (enough // len(text) + 1))
    shown = {"files": [str(file)], "share": 1 / (1 + len(beside))}  # one row of each part in every step
    parts = [part | shown | {"text_column": "text"} for part in beside]
    return {"files": [str(file)], "evaluation_files": [str(file)], "beside": parts}
