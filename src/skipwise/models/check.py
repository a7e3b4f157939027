"""Check a checkpoint before anything is trained: is it taken as it is, after repairs, or not at all, and why.

Its config is extended, the model built for every attention back end that is installed, repaired as for
training, and probed (`skipwise.models.probes`). By default a tiny model of the same config stands for it
(`skipwise.models.tiny`), in seconds and without its weights; ``full`` probes the real weights.

The verdict is that of ``sdpa``, the default of a run, or of ``eager`` where `transformers` has no sdpa for
the family. Another back end that fails is named with its reason and changes no verdict.

A model of which only a part can use skipped positions (`skipwise.models.probes`: its limits) is refused, with
the way out, unless ``accept_limits`` says yes; then the limit is named in the reason.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PretrainedConfig
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from skipwise.errors import InputError, SkipwiseError
from skipwise.models.load import Checkpoint, find_checkpoint, load_config, load_model
from skipwise.models.probes import ACCEPT, ProbeReport, probe
from skipwise.models.repairs import repair
from skipwise.models.tiny import save_tiny
from skipwise.rope import extend_rope, model_window
from skipwise.rope.reading import text_config
from skipwise.rope.scaling import check_options

if TYPE_CHECKING:
    from skipwise.config import Interpolation

Verdict = Literal["works", "repaired", "refused"]

FACTOR = 4
"""The target is so many times the model's window, unless one is given."""

_NO_SDPA = "has no sdpa attention"


@dataclass(frozen=True, slots=True)
class Probed:
    """One attention back end of one model: its probes, and the repairs made before."""

    report: ProbeReport
    repairs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Token 0 seen after the skip, no later token seen before it, and the error against the long row."""
        found = self.report
        return {
            "visible": found.reaches > 0.0,
            "causal": found.leaks <= found.noise,
            "oracle_error": _finite(found.oracle_error),
        }


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a user is told about a checkpoint.

    backends: the attention back ends that were probed. not_run: those that this family or this machine does
    not run, each with the reason. angle_error: largest error of cos and sin at the target, against float64,
    under the back end that decides; None if the model was refused before. rope: the parameters of the
    extended config, by layer type where they differ. target_length, window: tokens.
    """

    family: str
    verdict: Verdict
    reason: str
    rope: dict[str, Any]
    window: int | None = None
    target_length: int | None = None
    backends: Mapping[str, Probed] = field(default_factory=dict)
    not_run: Mapping[str, str] = field(default_factory=dict)
    angle_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The report in plain values; None stands for what is no number."""
        return {
            "family": self.family,
            "verdict": self.verdict,
            "reason": self.reason,
            "backends": {name: each.to_json() for name, each in self.backends.items()},
            "not_run": dict(self.not_run),
            "angle_error": _finite(self.angle_error),
            "window": self.window,
            "target_length": self.target_length,
            "rope": self.rope,
        }


def available_backends() -> tuple[str, ...]:
    """The attention implementations that are installed here, the default first."""
    optional = {
        "flash_attention_2": is_flash_attn_2_available(),
        "flash_attention_3": is_flash_attn_3_available(),
        "xformers": find_spec("xformers") is not None,
    }
    return ("sdpa", "eager", "flex_attention", *(name for name, here in optional.items() if here))


def check_checkpoint(
    name: str,
    target_length: int | None = None,
    *,
    interpolation: Interpolation = "yarn",
    interpolation_options: Mapping[str, Any] | None = None,
    accept_limits: bool = False,
    full: bool = False,
    device: str = "cpu",
) -> CheckReport:
    """Probe the checkpoint ``name`` (folder, ``.gguf`` file or hub name) for a window of ``target_length``.

    Raises InputError for what is no answer about the model: no such checkpoint, a target below its window, an
    interpolation that needs options, a family of which no tiny model can be made.
    """
    checkpoint = find_checkpoint(name)
    config = load_config(checkpoint)
    options = interpolation_options or {}
    check_options(interpolation, options)
    rope = getattr(text_config(config), "rope_parameters", None) or {}
    try:
        window = model_window(config)
        target = target_length or FACTOR * window
        extended = extend_rope(config, max(target, window), interpolation, options)
    except InputError as error:
        return CheckReport(config.model_type, "refused", str(error), rope)
    if target < window:
        raise InputError(f"--target-length {target} is below the model's window of {window} tokens")
    outcomes = _outcomes(checkpoint, extended, target, full, device)
    verdict, reason, decided_by = _verdict(outcomes, accept_limits)
    return CheckReport(
        family=config.model_type,
        verdict=verdict,
        reason=reason,
        rope=text_config(extended).rope_parameters,
        window=window,
        target_length=target,
        backends={key: each for key, each in outcomes.items() if isinstance(each, Probed)},
        not_run={key: each for key, each in outcomes.items() if isinstance(each, str)},
        angle_error=decided_by.report.angle_error if decided_by else None,
    )


def _outcomes(
    checkpoint: Checkpoint, config: PretrainedConfig, target: int, full: bool, device: str
) -> dict[str, Probed | str]:
    """For each back end what the probes found, or why there is nothing to find."""
    backends = available_backends()
    if full:
        return {each: _outcome(checkpoint, config, target, each, device) for each in backends}
    # Flex attention compiles for ten seconds, whatever the size of the model; its masks are the same without.
    with TemporaryDirectory() as folder, torch.compiler.set_stance("force_eager"):
        small = save_tiny(text_config(config), Path(folder))
        found = {each: _outcome(Checkpoint(folder), small, target, each, device) for each in backends}
    return {
        key: each.replace(folder, checkpoint.path) if isinstance(each, str) else each
        for key, each in found.items()
    }


def _outcome(
    checkpoint: Checkpoint, config: PretrainedConfig, target: int, attention: str, device: str
) -> Probed | str:
    """The model under this back end, probed as it would be trained; the reason, if it does not run."""
    dtype = torch.bfloat16 if _halves(config) or attention.startswith("flash") else torch.float32
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and transformers about each other, not about the model
            model = load_model(checkpoint, config, dtype=dtype, attention=attention, device=device)
            done = repair(model)  # again: says what there is to say
            report = probe(model, target)
    except SkipwiseError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - one of many model classes under one of many back ends
        reason = (str(error).splitlines() or [""])[0]
        return f"transformers fails under it, {type(error).__name__}: {reason}"
    if model.config.model_type != config.model_type:
        done = (f"becomes a {type(model).__name__}", *done)
    return Probed(report, done)


def _halves(config: PretrainedConfig) -> bool:
    """Whether the checkpoint is stored in two bytes a weight."""
    dtype = getattr(config, "dtype", None)
    return isinstance(dtype, torch.dtype) and dtype.itemsize == 2


def _verdict(outcomes: Mapping[str, Probed | str], accept_limits: bool) -> tuple[Verdict, str, Probed | None]:
    """Verdict and reason, and the outcome that they rest on."""
    found, note = outcomes["sdpa"], ""
    if isinstance(found, str) and _NO_SDPA in found:
        found, note = outcomes["eager"], "with eager attention only: transformers has no sdpa for it"
    if isinstance(found, str):
        return "refused", found, None
    failures, limits = found.report.failures(), found.report.limits()
    if failures:
        holding = [
            name for name, each in outcomes.items() if isinstance(each, Probed) and not each.report.failures()
        ]
        way_out = [f"{' and '.join(holding)} would do: choose with --attention"] if holding else []
        return "refused", "; ".join([*failures, *way_out]), found
    if limits and not accept_limits:
        return "refused", "; ".join([*limits, ACCEPT]), found
    said = [*found.repairs, *filter(None, [note]), *limits]
    if found.repairs:
        return "repaired", "; ".join(said), found
    return "works", "; ".join(said) or "every probe holds on the stock class as it is", found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
