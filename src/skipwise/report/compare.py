"""Every model of some scores against one of them, the baseline. Contract: what was not asked alike says so.

Shares differ by percentage points, perplexities by their ratio: exp of the difference of the mean losses. A
difference comes with a 95 % interval over the units behind it (`bootstrap.py`), paired where both models
were asked the same: equal settings, and as many units. Perplexities under different tokenizers are not
compared, as they are means over different tokens; nor are averages over different tasks of RULER.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipwise.errors import InputError
from skipwise.report.asked import difference_of_settings
from skipwise.report.bootstrap import CONFIDENCE, FEWEST, RESAMPLES, Interval, Parts, Units, interval
from skipwise.report.inputs import Model, models_of
from skipwise.report.measures import MEASURES, no_shares, ruler_tasks, title_of
from skipwise.report.words import benchmark_title, length_label
from skipwise.scores import Evaluation, Score, Scores

METHOD = (
    f"95 % intervals: paired bootstrap over documents, trials or questions ({RESAMPLES:,} draws, expanded "
    "percentiles, Hesterberg 2015); for shares where under ten of them differ from most, Newcombe's interval "
    "(1998), marked °."
)

Key = tuple[str, str, int, float | None, int | None]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One score of one model against the baseline's."""

    model: str
    task: str
    subtask: str
    length: int
    start: int | None
    value: float
    baseline: float
    units: int
    """Of the model; 0: not recorded."""
    paired: bool
    interval: Interval | None
    """Of the shares' difference, or of the mean losses'."""

    @property
    def ratio(self) -> bool:
        """Whether it is a ratio of perplexities; otherwise a difference of shares."""
        return MEASURES[self.task].perplexity

    @property
    def estimate(self) -> float:
        """Value less baseline's, or over it."""
        if not self.ratio:
            return self.value - self.baseline
        return self.value / self.baseline if self.baseline and math.isfinite(self.baseline) else math.nan

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval of the estimate."""
        if self.interval is None:
            return None
        low, high = self.interval.low, self.interval.high
        return (_exp(low), _exp(high)) if self.ratio else (low, high)

    def json(self) -> dict[str, Any]:
        """Plain values; None for what is not known or not finite."""
        low, high = self.bounds or (None, None)
        found = {
            **{name: getattr(self, name) for name in ("model", "task", "subtask", "length", "start")},
            "kind": "ratio" if self.ratio else "difference",
            **{"value": self.value, "baseline": self.baseline, "estimate": self.estimate},
            **{"low": low, "high": high},
            "differs": None if self.interval is None else self.interval.excludes_zero,
            "method": None if self.interval is None else self.interval.method,
            **{"paired": self.paired, "units": self.units},
        }
        lost = [key for key, value in found.items() if isinstance(value, float) and not math.isfinite(value)]
        return found | dict.fromkeys(lost)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All differences from one model, and what a reader must know of them."""

    scores: Scores
    """The baseline's subject first."""
    models: tuple[Model, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    seed: int

    def json(self) -> dict[str, Any]:
        """What `comparison.json` holds."""
        return {
            "schema": 1,
            "baseline": self.models[0].name,
            **{"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": self.seed, "method": METHOD},
            "differences": [each.json() for each in self.differences],
            "notes": list(self.notes),
        }


def compare(scores: Scores, baseline: str | None = None, *, seed: int = 0) -> Comparison:
    """Every other model against ``baseline`` (a name or title; None: the first).

    Raises InputError for a baseline that is not there.
    """
    models = models_of(scores)
    first = _named(models, baseline) if baseline else models[0]
    models = [first, *(model for model in models if model != first)]
    order = {model.name: number for number, model in enumerate(models)}
    ordered = scores.model_copy(
        update={"subjects": tuple(sorted(scores.subjects, key=lambda each: order[each.name]))}
    )
    pairs = [_Pair(ordered, first, other, seed) for other in models[1:]]
    found = tuple(each for pair in pairs for each in pair.differences())
    notes = [METHOD, _by_chance(found)] if found else []
    notes += dict.fromkeys(note for pair in pairs for note in pair.notes)
    return Comparison(
        scores=ordered, models=tuple(models), differences=found, notes=tuple(filter(None, notes)), seed=seed
    )


def _named(models: Sequence[Model], name: str) -> Model:
    found = [model for model in models if name in (model.name, model.title)]
    if not found:
        raise InputError(f"--baseline {name}: not among {', '.join(model.name for model in models)}")
    return found[0]


def _by_chance(found: Sequence[Difference]) -> str:
    known = [each.interval for each in found if each.interval is not None]
    apart = sum(each.excludes_zero for each in known)
    if len(known) < 2:
        return ""
    return (
        f"In {apart} of {len(known)} cases the interval rules out that the models are equal (*). If all were "
        "equal, about one in twenty would by chance: intervals are not adjusted for their number, so one * "
        "among many is weak evidence."
    )


class _Pair:
    """The baseline and one other model."""

    def __init__(self, scores: Scores, first: Model, other: Model, seed: int) -> None:
        self.scores, self.first, self.other, self.seed = scores, first, other, seed
        self.notes: dict[str, None] = {}
        self.tables = [
            {score.key: score for score in scores.scores if score.model == model.name}
            for model in (first, other)
        ]
        self.tokenizers = [
            next((each.tokenizer for each in scores.subjects if each.name == model.name), "")
            for model in (first, other)
        ]
        self.tasks = [ruler_tasks(scores.scores).get(model.name, set()) for model in (first, other)]

    def differences(self) -> Iterator[Difference]:
        """One for each score over all depths that both have, then one for the average of the benchmarks."""
        keys = [key for key in self.tables[0] if key in self.tables[1] and key[3] is None]
        for task in MEASURES:
            asked = [key for key in keys if key[0] == task]
            if not asked or not self._comparable(task):
                continue
            odd = no_shares(score for table in self.tables for score in table.values())
            asked = [key for key in asked if task != "benchmark" or key[1] not in odd]
            for key in asked:
                if key[:2] != ("ruler", "") or self.tasks[0] == self.tasks[1]:
                    yield self._difference(key, self._parts_of(key))
            if task == "benchmark" and len(asked) > 1:
                yield self._difference((task, "", 0, None, None), asked)

    def _parts_of(self, key: Key) -> list[Key]:
        """The average of RULER is one over its tasks; all else has one part, itself."""
        if key[:2] != ("ruler", ""):
            return [key]
        parts = [other for other in self.tables[0] if other[0] == "ruler" and other[1] and other[2] == key[2]]
        return [other for other in parts if other in self.tables[1]] or [key]

    def _difference(self, key: Key, parts: Sequence[Key]) -> Difference:
        task, subtask, length, _, start = key
        paired = all(self._paired(task, part[1]) for part in parts)
        arms = [[table[part] for part in parts] for table in self.tables]
        samples = [_units(rows) for rows in arms]
        counts = [[len(part.values) for part in arm] for arm in samples]
        if paired and counts[0] != counts[1]:
            paired = False
            self._note(f"{title_of(self.scores, task)}: other numbers of units, so not paired (†).")
        known = all(count > 0 for arm in counts for count in arm)
        found = None
        if known:
            shares = not MEASURES[task].perplexity
            found = interval(*samples, paired=paired, shares=shares, seed=self.seed)
        if found is None:
            self._note_absent(key, known, counts)
        means = [
            table[key].value if key in table else math.fsum(row.value for row in rows) / len(rows)
            for table, rows in zip(self.tables, arms, strict=True)
        ]
        return Difference(
            model=self.other.name,
            task=task,
            subtask=subtask,
            length=length,
            start=start,
            value=means[1],
            baseline=means[0],
            units=sum(counts[1]),
            paired=paired,
            interval=found,
        )

    def _comparable(self, task: str) -> bool:
        names = f"{self.other.title} and {self.first.title}"
        if MEASURES[task].perplexity and all(self.tokenizers) and len(set(self.tokenizers)) > 1:
            self._note(f"{names} have different tokenizers: their perplexities are not compared.")
            return False
        if task == "longppl" and not self._same_evaluator():
            self._note(
                f"LongPPL of {names} is not compared: other evaluators choose other tokens, and so do models "
                "that are their own; judge both with one --evaluator."
            )
            return False
        if task == "ruler" and self.tasks[0] != self.tasks[1]:
            odd = sorted(self.tasks[0] ^ self.tasks[1])[0]
            self._note(f"{names} were asked different tasks of RULER ({odd}): averages are not compared.")
        return True

    def _same_evaluator(self) -> bool:
        used = [each.settings.get("evaluator") for each in self._evaluations("longppl") if each]
        return len(used) < 2 or (used[0] == used[1] != "self")

    def _paired(self, task: str, subtask: str) -> bool:
        first, other = self._evaluations(task)
        if first is None or other is None:
            reason = "how they were asked is not recorded"
        else:
            reason = difference_of_settings(first, other, subtask)
        if reason:
            self._note(
                f"{title_of(self.scores, task)}: {self.other.title} was not asked what {self.first.title} "
                f"was ({reason}), so these intervals (†) are not paired, and wider for it."
            )
        return not reason

    def _evaluations(self, task: str) -> list[Evaluation | None]:
        """How the two were asked, where it is recorded."""
        known = {(each.model, each.task): each for each in self.scores.evaluations}
        name = MEASURES[task].evaluation
        return [known.get((model.name, name)) for model in (self.first, self.other)]

    def _note_absent(self, key: Key, known: bool, counts: Sequence[Sequence[int]]) -> None:
        title = title_of(self.scores, key[0], key[1] if key[0] == "needle" else "")
        names = f"{title}, {self.other.title}"
        if not known:
            self._note(f"{names}: no interval, as the file does not hold what each unit contributed.")
        elif MEASURES[key[0]].perplexity and min(map(sum, counts)) < FEWEST:
            self._note(f"{names}: no interval for fewer than {FEWEST} documents.")
        else:
            self._note(f"{names}: no interval where a loss is not finite.")

    def _note(self, text: str) -> None:
        self.notes[text] = None


def _units(rows: Sequence[Score]) -> Parts:
    return [
        Units(np.array(row.samples), np.array(row.weights) if row.weights else np.ones(len(row.samples)))
        for row in rows
    ]


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def place(difference: Difference) -> str:
    """Where a difference was measured, in a word: ``16k``, ``BoolQ``, ``niah_single_1``."""
    if difference.task == "benchmark":
        return benchmark_title(difference.subtask) if difference.subtask else "average"
    parts = difference.task == "ruler" and difference.subtask
    return parts or length_label(difference.length)
