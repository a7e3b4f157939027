"""The methods: one group of layers, the scaling it has and the one wanted, become new RoPE parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from skipwise.config import Interpolation
from skipwise.errors import InputError
from skipwise.rope.reading import Parameters, frequencies_under, model_window

Options = Mapping[str, float | Sequence[float]]

_RAMP = {"beta_fast", "beta_slow"}
OPTIONS: dict[str, set[str]] = {
    "ntk": {"factor", "attention_factor"},
    "abf": {"rope_theta", "attention_factor"},
    "yarn": {*_RAMP, "attention_factor", "mscale", "mscale_all_dim"},
    "ntk-by-parts": _RAMP,
    "pose-yarn": {*_RAMP, "attention_factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "longrope": {"long_factor", "short_factor", "attention_factor"},
}
"""What each method can be told besides the target, under the names `transformers` uses.

A config with a plain base has no place for an attention factor: `skipwise.models.sharpen` puts it in weights.
"""

_LISTS = {"long_factor", "short_factor"}
_SHAPES = ("a number", "a list of numbers")
_SCALING = {
    *_RAMP,
    *_LISTS,
    *("type", "factor", "original_max_position_embeddings", "attention_factor", "truncate"),
    *("low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim", "short_mscale", "long_mscale"),
}
"""Keys that belong to a scaling; all others (base, rotary share, a family's own) stay whatever happens."""


@dataclass(frozen=True, slots=True)
class Step:
    """The extension of one group of layers: those that share their RoPE parameters ``own``."""

    config: PretrainedConfig
    layer_type: str | None
    own: Parameters
    target: int
    method: Interpolation
    options: Parameters

    @property
    def _alpha(self) -> float:
        return self.target / model_window(self.config)

    @property
    def _original(self) -> int:
        """The window before any scaling, in tokens."""
        window, kind = model_window(self.config), self.own["rope_type"]
        nested_by_us = kind == "longrope" and self.layer_type is not None and "factor" in self.own
        if kind == "linear" or nested_by_us:  # `per_dimension` writes another number there
            return int(window / self.own["factor"] + 0.5)
        if kind in ("yarn", "llama3", "longrope"):
            return int(self.own["original_max_position_embeddings"])
        return window

    @property
    def _factor(self) -> float:
        """That of the scaling the model has."""
        return float(self.own.get("factor") or model_window(self.config) / self._original)

    def _frequencies(self, parameters: Parameters) -> tuple[list[float], float]:
        return frequencies_under(self.config, self.layer_type, parameters)

    def native(self) -> Parameters | None:
        """The parameters in the words of the type that is there or wanted; None where there are none."""
        own, kind = self.own, self.own["rope_type"]
        if self.method in ("none", "ntk", "abf"):
            pinned = {"factor": self._factor} if kind in ("yarn", "longrope") else {}
            return own | pinned | self._new_base()
        if self.method in ("pose-yarn", "longrope"):
            return None
        wanted = self._scheme()
        if kind == "default":
            return own | wanted
        if kind != wanted["rope_type"] and (kind, self.method) != ("proportional", "linear"):
            return None
        together = own | self.options | {"factor": self._factor * wanted["factor"]}
        return together | self._attention(together) if kind == "yarn" else together

    def _new_base(self) -> Parameters:
        if self.method == "abf":
            return {"rope_theta": self.options["rope_theta"]}
        if self.method == "none":
            return {}
        every, _ = self._frequencies(self.own)
        last = sum(each > 0 for each in every) - 1  # Gemma 4's slowest dimensions do not turn at all
        stretch = self.options.get("factor", self._alpha)
        return {"rope_theta": self.own["rope_theta"] * stretch ** (len(every) / last)}

    def _scheme(self) -> Parameters:
        """The method's keys for a model that is not scaled yet."""
        if self.method == "linear":
            return {"rope_type": "linear", "factor": self._alpha}
        common = {"factor": self._alpha, "original_max_position_embeddings": self._original}
        if self.method == "llama3":
            blend = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
            return {"rope_type": "llama3", **common, **blend, **self.options}
        unscaled = {"attention_factor": 1.0} if self.method == "ntk-by-parts" else {}
        return {"rope_type": "yarn", **common, **unscaled, **self.options}

    def _attention(self, together: Parameters) -> Parameters:
        """YaRN over YaRN: what to write so that cos and sin are scaled by both."""
        if "attention_factor" in self.options:
            return {}
        if self.method == "ntk-by-parts":
            self._refuse_mscale()
            return {"attention_factor": self._frequencies(self.own)[1]}
        if self.own.get("attention_factor") is None:
            return {}
        usual = [self._frequencies(each | {"attention_factor": None})[1] for each in (self.own, together)]
        return {"attention_factor": self.own["attention_factor"] * usual[1] / usual[0]}

    def per_dimension(self) -> Parameters | None:
        """The parameters as ``longrope``: by what each frequency is divided. It can say any slowing."""
        if self.method in ("none", "ntk", "abf") or self.own["rope_type"] == "proportional":
            return None
        self._refuse_mscale()
        plain = {key: value for key, value in self.own.items() if key not in _SCALING}
        plain["rope_type"] = "default"
        window = {"factor": self.target / self._original, "original_max_position_embeddings": self._original}
        if self.method == "longrope":
            lists = {"short_factor": self.options["long_factor"]} | self.options
            self._check_lists()
        else:
            lists = self._divisors(plain)
        scaled = plain | window | lists | {"rope_type": "longrope"}
        scaled["attention_factor"] = self._frequencies(scaled)[1]
        if self.layer_type is not None:
            # transformers 5.17 fails where it changes from one list to the other in a layer type: never do
            scaled |= {"original_max_position_embeddings": self.target, "short_factor": scaled["long_factor"]}
        return scaled

    def per_dimension_with_mscale(self) -> Parameters | None:
        """The same for Phi-3.5-MoE, which reads the factor on cos and sin under names of its own."""
        scaled = self.per_dimension()
        if scaled is None:
            return None
        return scaled | dict.fromkeys(("short_mscale", "long_mscale"), scaled["attention_factor"])

    def _divisors(self, plain: Parameters) -> Parameters:
        """Of the scaling that is there times the one wanted; the latter read off at the unscaled model."""
        scheme = plain | self._scheme()
        start, _ = self._frequencies(plain)
        now, attention = self._frequencies(self.own)
        end, further = self._frequencies(scheme)
        slower = [a / b for a, b in zip(start, end, strict=True)]
        if self.method == "pose-yarn":
            kept, _ = self._frequencies(scheme | {"factor": 1e20})  # all that the ramp divides is gone
            shares = [a / b for a, b in zip(kept, start, strict=True)]
            slower = [(1 - share) * self._alpha + share for share in shares]
        both = [a / b * more for a, b, more in zip(start, now, slower, strict=True)]
        return {"short_factor": both, "long_factor": both, "attention_factor": attention * further}

    def _check_lists(self) -> None:
        pairs = len(self._frequencies(self.own)[0])
        for name in sorted(_LISTS & set(self.options)):
            if len(self.options[name]) != pairs:
                raise InputError(
                    f"interpolation option {name} has {len(self.options[name])} numbers: {pairs} are needed, "
                    "one for each pair of dimensions that rotate"
                )

    def _refuse_mscale(self) -> None:
        if self.own.get("mscale_all_dim") or self.options.get("mscale_all_dim"):
            raise InputError(
                f"{self.config.model_type} ties the scale of its attention to YaRN's factor "
                f"(mscale_all_dim), which {self.method!r} would change: choose yarn"
            )


def check_options(method: str, options: Options) -> None:
    """InputError for an option that the method does not have, needs, or cannot use."""
    for name, value in options.items():
        if name not in OPTIONS.get(method, set()):
            raise InputError(f"interpolation {method!r} has no option {name!r}")
        if isinstance(value, int | float) == (name in _LISTS):
            raise InputError(f"interpolation option {name} = {value!r}: must be {_SHAPES[name in _LISTS]}")
    needed = {"abf": "rope_theta", "longrope": "long_factor"}.get(method)
    if needed and needed not in options:
        raise InputError(f"interpolation {method!r} needs the option {needed!r}")
