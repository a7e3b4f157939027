"""Every causal-LM family of the installed `transformers`, tried from its config to the exported checkpoint.

One family is one call of `outcome`, which never raises: a tiny stock checkpoint with random weights is
extended, loaded, probed, trained two steps on rows with skipped positions, with and without gradient
checkpointing, exported, and read by stock `transformers`. What decides is the oracle: the trained model's
logits of a row must be those that the stock model computes from the exported checkpoint for a long row in
which every token at a skipped position is masked out. A window cut by index, a rounded angle, a mask lost in
checkpointing and a scaling that is not in the exported config all show there.

Every interpolation that the config can say is loaded too, and its angles compared with the formulas'.

Verdicts: ``works`` (the stock class under the extended config gives the same logits), ``repaired`` (it does
not: the reason says what was done), ``limited`` (either of them, but refused unless ``accept_limits`` says
yes), ``refused`` (the package says why, before anything is trained), ``not tried`` (stock `transformers` does
not build the model), ``fails`` (anything else, which must not be). In a hybrid, layers that are no attention
see the filler of the long row: there the exported model must give the logits of the row itself.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tiny_configs import VOCABULARY, tiny_config
from tokenizers import Tokenizer, models
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from skipwise.data.collate import SkipCollator
from skipwise.data.skips import PoSE
from skipwise.errors import InputError, RunError
from skipwise.export.checkpoint import export_checkpoint
from skipwise.models.angles import angle_error, layer_types_of
from skipwise.models.load import find_checkpoint, load_model
from skipwise.models.probes import ProbeReport, check
from skipwise.models.repairs import repair, rotary_modules
from skipwise.rope import extend_rope, frequencies, text_config
from skipwise.rope.reading import groups_of

TARGET, ROW, STEPS = 256, 48, 2
METHODS = ("yarn", "ntk", "linear")
"""Interpolations to try: not every family can express each. The first that it can is trained with."""
ATTENTION = ("sdpa", "eager")
_NO_SDPA = "stock transformers has no sdpa for it"
BOUND = 1e-3
"""Largest difference of logits, in their standard deviations, that may be rounding in float32."""


class FailedError(Exception):
    """Something that must not be, in one line."""


class NotTriedError(Exception):
    """Stock `transformers` does not build the model here: the reason, in one line."""


class RefusedError(Exception):
    """The package says, in one line, why it does not take a family."""


def outcome(family: str) -> dict[str, str]:
    """``verdict`` and ``reason`` of one family (or of its form with windows), whatever happens."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    with warnings.catch_warnings(), TemporaryDirectory() as folder, torch.random.fork_rng([]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            verdict, reason = _try(family, Path(folder))
        except RefusedError as error:
            verdict, reason = "refused", str(error)
        except NotTriedError as error:
            verdict, reason = "not tried", str(error)
        except Exception as error:  # noqa: BLE001 - whatever a family does becomes its line in the table
            verdict, reason = "fails", _line(error)
        finally:
            logging.set_verbosity(verbosity)
            logging.enable_progress_bar()
    reason = re.sub(r" \((a row is )?off by [^)]*\)", "", reason)  # its digits are those of one machine
    return {"verdict": verdict, "reason": reason.replace(f"{folder}/", "")}


def _try(family: str, folder: Path) -> tuple[str, str]:
    notes: list[str] = []
    with _stage("the tiny config"):
        config = tiny_config(family)
    extended = _extend(config, notes)
    config = next(iter(extended.values()))
    _save_stock(tiny_config(family), folder / family)
    plain, attention, report = _load_and_probe(folder / family, config, notes)
    for method, each in extended.items():
        with _stage(f"the angles with {method}"):
            _check_angles(_load(folder / family, each, attention))
    with _stage("the repairs"):
        repairs = _what_was_done(folder / family, plain, config, attention)
    with _stage("training"):
        losses = _train(plain)
    trained = plain
    try:
        trained = _load(folder / family, config, attention, gradient_checkpointing=True)
    except RefusedError as error:
        notes.append(str(error))
    else:
        with _stage("training with gradient checkpointing"):
            losses_again = _train(trained)
        if not np.allclose(losses, losses_again, rtol=1e-4):
            raise FailedError(f"gradient checkpointing changes the losses {losses} to {losses_again}")
    with _stage("the export"):
        export_checkpoint(trained, _tokenizer(), folder / "exported")
    with _stage("the oracle"):
        _compare_with_export(trained, folder / "exported", attention, hybrid=bool(report.token_by_token))
    verdict = "limited" if report.limits() else "repaired" if repairs else "works"
    return verdict, "; ".join([*repairs, *notes, *report.limits()])


def _extend(config: PretrainedConfig, notes: list[str]) -> dict[str, PretrainedConfig]:
    """The extended config by interpolation; if it can say none of them, the one with the longer window."""
    extended, reasons = {}, {}
    for method in (*METHODS, "none"):
        if method == "none" and extended:
            break
        try:
            with _stage("the extended config", may_refuse=True):
                extended[method] = extend_rope(config, TARGET, method)
        except RefusedError as error:
            reasons[method] = str(error)
    if not extended:
        raise RefusedError(reasons[METHODS[0]])
    if "none" in extended:
        notes.append(f"with no interpolation: {reasons[METHODS[0]]}")
    else:
        notes += [f"not with {method}: {reason}" for method, reason in reasons.items()]
    return extended


def _check_angles(model: PreTrainedModel) -> None:
    """The rotary modules turn at the frequencies that the formulas give for the config, and exactly."""
    for rotary in rotary_modules(model):
        error, bound = angle_error([rotary], TARGET)
        if not error <= bound:
            raise FailedError(f"cos and sin are off by {error:.2g}")
        kinds = set(layer_types_of(rotary)) & set(groups_of(text_config(model.config)))
        for kind in kinds:
            wanted, _ = frequencies(model.config, kind)
            found = getattr(rotary, f"{kind}_inv_freq" if kind else "inv_freq")
            if not np.allclose(found.tolist(), wanted, rtol=1e-5):
                raise FailedError(f"the frequencies are not those of {model.config.model_type}'s config")
        if not kinds:
            raise FailedError("none of its frequencies was found in the config")


def _save_stock(config: PretrainedConfig, folder: Path) -> None:
    """A checkpoint as users have it: of the whole model, where the family reads its text part only."""
    whole = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    try:
        model = (AutoModelForImageTextToText if whole else AutoModelForCausalLM).from_config(config)
    except Exception as error:
        raise NotTriedError(f"transformers does not build it: {_line(error).partition('. ')[0]}") from error
    try:
        model(**dict.fromkeys(model.dummy_inputs, torch.zeros(1, 4, dtype=torch.int64)))
    except ValueError as error:  # it says what it wants besides tokens
        raise NotTriedError(f"it does not run on tokens alone: {_line(error)}") from error
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.any():  # a bias or a temperature: at zero it could not show a mistake
                weight.normal_(std=0.1)
            elif weight.ndim >= 2 and "embed" not in name and "A_log" not in name:
                weight.mul_(8)  # attention that matters: the default initialisation is nearly uniform
    model.save_pretrained(folder)


def _load_and_probe(
    folder: Path, config: PretrainedConfig, notes: list[str]
) -> tuple[PreTrainedModel, str, ProbeReport]:
    """The model under the first attention that passes the probes, that attention, and what was found."""
    reasons = []
    for attention in ATTENTION:
        try:
            model = _load(folder, config, attention)
            with _stage("the probes", may_refuse=True):
                report = check(model, TARGET, accept_limits=True)
        except RefusedError as error:
            reasons.append(_NO_SDPA if "has no sdpa attention" in str(error) else str(error))
            continue
        notes += [f"with {attention} attention only: {each}" for each in reasons]
        return model, attention, report
    raise RefusedError(reasons[-1] if _NO_SDPA in reasons[0] else reasons[0])


def _load(folder: Path, config: PretrainedConfig | None, attention: str, **options: bool) -> PreTrainedModel:
    with _stage("loading", may_refuse=True):
        return load_model(find_checkpoint(str(folder)), config, attention=attention, **options)


def _what_was_done(
    folder: Path, model: PreTrainedModel, config: PretrainedConfig, attention: str
) -> list[str]:
    """The repairs, if the stock class under the extended config gives other logits; nothing if the same."""
    batch = _batch()
    try:
        stock = _stock(folder, attention, config=config)
        found = _row_logits(stock.train(), batch)
    except Exception as error:  # noqa: BLE001
        done = [f"stock transformers raises {type(error).__name__}"]
    else:
        if _off(found, _row_logits(model.train(), batch)) <= BOUND:
            return []
        done = [] if type(stock) is type(model) else [f"becomes a {type(model).__name__}"]
    return [*done, *repair(model)] or ["stock transformers gives other logits for a row"]


def _stock(folder: Path, attention: str, **options: Any) -> PreTrainedModel:
    if attention != ATTENTION[0]:  # else what it takes by itself, if it has that
        options["attn_implementation"] = attention
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def _train(model: PreTrainedModel) -> list[float]:
    """The losses of a few steps; FailedError when one is not a number or no weight moves."""
    model.train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3)
    before = [each.detach().clone() for each in model.parameters()]
    losses = []
    for step in range(STEPS):
        loss = model(**_batch(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    moved = [bool((old != new).any()) for old, new in zip(before, model.parameters(), strict=True)]
    if not np.isfinite(losses).all() or not any(moved):
        raise FailedError(f"losses are {losses}, {sum(moved)} weights moved")
    return losses


def _compare_with_export(model: PreTrainedModel, exported: Path, attention: str, *, hybrid: bool) -> None:
    """The oracle, in training mode (and with gradient checkpointing, if that is on) and in evaluation."""
    stock = (_load(exported, None, attention) if hybrid else _stock(exported, attention)).eval()
    for batch in (_batch(7, chunks=3), _batch(8, chunks=1)):
        with torch.no_grad():
            wanted = (_row_logits if hybrid else _long_row_logits)(stock, batch)
        for mode in (True, False):
            off = _off(_row_logits(model.train(mode), batch), wanted)
            if not off <= BOUND:
                what = "that of the export" if hybrid else "the long row with the skipped tokens masked"
                raise FailedError(f"a row is not {what} (off by {off:.2g})")


def _batch(seed: int = 5, chunks: int = 2) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    sampler = PoSE(ROW, TARGET, chunks)
    passages = [rng.integers(3, VOCABULARY, sampler.passage_length[1]) for _ in range(2)]
    return SkipCollator()([sampler.sample(passage, rng) for passage in passages])


def _row_logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask")}
    return model(**inputs, use_cache=False).logits.detach()


def _long_row_logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits at the row's places of the real rows, whose tokens at skipped positions are masked out."""
    places, shape = batch["position_ids"], (len(batch["input_ids"]), TARGET)
    filler = torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(9))
    long = {
        "input_ids": filler.scatter(1, places, batch["input_ids"]),
        "attention_mask": torch.zeros(shape, dtype=torch.int64).scatter(1, places, 1),
        "position_ids": torch.arange(TARGET).expand(shape),
    }
    logits = _row_logits(model, long)
    return logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))


def _off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.std())


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {f"t{i}": i for i in range(VOCABULARY)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "t0")))


@contextmanager
def _stage(name: str, may_refuse: bool = False) -> Iterator[None]:
    """Words for whatever is raised inside: a refusal where the package may refuse, a failure elsewhere."""
    try:
        yield
    except (InputError, RunError) as error:
        raise (
            RefusedError(_line(error)) if may_refuse else FailedError(f"{name}: {_line(error)}")
        ) from error
    except FailedError as error:
        raise FailedError(f"{name}: {error}") from error
    except Exception as error:
        raise FailedError(f"{name}: {type(error).__name__}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
