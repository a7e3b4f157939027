"""Scores -> the one or two sentences a reader should leave with. Contract: all computed.

A model's *window* is the largest length at which it finds at least 90 % of the keys, and at every shorter
length that was measured as well: one lucky length far out does not count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from skipwise.report.grids import benchmark_scores
from skipwise.report.inputs import Model, Run
from skipwise.report.measures import MEASURES, effective_length, no_shares, over_lengths, reach
from skipwise.report.words import benchmark_title, length_label, perplexity_text, points_text
from skipwise.scores import Score

THRESHOLD = 0.9  # share of keys found


@dataclass(frozen=True, kw_only=True)
class Window:
    """How far one model retrieves."""

    model: Model
    length: int  # tokens; 0: at no length that was measured
    longest: bool  # the longest length of this model that was measured: the true window may be larger

    @property
    def label(self) -> str:
        """`16k`, or a dash for none."""
        return length_label(self.length) if self.length else "none"

    @property
    def words(self) -> str:
        """`up to 16k tokens (the longest length tested)`, `at no length tested`."""
        if not self.length:
            return "at no length tested"
        return f"up to {self.label} tokens" + (" (the longest length tested)" if self.longest else "")


def windows(scores: Sequence[Score], models: Sequence[Model]) -> list[Window]:
    """The window of every model whose passkey retrieval was measured, in display order."""
    found = over_lengths(scores, "passkey")
    return [_window(model, list(found[model.name].values())) for model in models if model.name in found]


def summary(run: Run, scores: Sequence[Score], models: Sequence[Model]) -> list[str]:
    """Sentences with the headline numbers: windows before and after, RULER, perplexity, benchmarks."""
    sentences = [*_window_sentences(windows(scores, models)), *_ruler_sentence(scores, models)]
    found = over_lengths(scores, "perplexity")
    if found:
        sentences.append(_perplexity_sentence(found, models, run.target_length))
    sentences += _benchmark_sentence(scores, models)
    return sentences or _what_there_is(scores)


def before_and_after(models: Sequence[Model]) -> tuple[Model, Model]:
    """The model the run began with and the one it is about, by their usual names, else first and last."""
    by_name = {model.name: model for model in models}
    return by_name.get("untouched", models[0]), by_name.get("pose", models[-1])


def _window(model: Model, rows: Sequence[Score]) -> Window:
    length, longest = reach(rows, THRESHOLD)
    return Window(model=model, length=length, longest=longest)


def _window_sentences(found: list[Window]) -> list[str]:
    if not found:
        return []
    by_model = {window.model: window for window in found}
    before, after = (by_model[model] for model in before_and_after(list(by_model)))
    sentence = f"{after.model.title} finds at least {100 * THRESHOLD:.0f} % of hidden keys {after.words}"
    if before is after:
        return [sentence + "."]
    if before.length and after.length > before.length:
        times = after.length / before.length
        sentence += f", {times:.3g} times as far as {before.model.title} ({before.label})"
    else:
        sentence += f", {before.model.title} {before.words}"
    others = [window for window in found if window not in (before, after)]
    if others:
        sentence += "; " + ", ".join(f"{window.model.title} {window.words}" for window in others)
    return [sentence + "."]


def _ruler_sentence(scores: Sequence[Score], models: Sequence[Model]) -> list[str]:
    found = over_lengths(scores, "ruler")
    parts = []
    for model in models:
        rows = list(found.get(model.name, {}).values())
        if rows:
            length, longest = effective_length(rows)
            words = length_label(length) if length else f"under {length_label(rows[0].length)}"
            parts.append(f"{words}{' or more' if longest else ''} ({model.title})")
    return [f"Effective length by RULER: {', '.join(parts)}."] if parts else []


def _perplexity_sentence(found: dict[str, dict[int, Score]], models: Sequence[Model], target: int) -> str:
    """Perplexity at the target length if it was measured, else at the longest length that was."""
    lengths = {length for rows in found.values() for length in rows}
    length = target if target in lengths else max(lengths)
    scored = [(model, found[model.name][length]) for model in models if length in found.get(model.name, {})]
    parts = [f"{perplexity_text(score.value)} ({model.title})" for model, score in sorted(scored, key=_rank)]
    return f"Perplexity over {length_label(length)} tokens: {', '.join(parts)}."


def _rank(scored: tuple[Model, Score]) -> float:
    return math.inf if math.isnan(scored[1].value) else scored[1].value


def _benchmark_sentence(scores: Sequence[Score], models: Sequence[Model]) -> list[str]:
    """How far the last model is from the first one, on average and at most."""
    found = benchmark_scores(scores, models)
    measured = [model for model in models if any(name == model.name for name, _ in found)]
    if len(measured) < 2:
        return []
    before, after = before_and_after(measured)
    odd = no_shares(scores)
    changes = {
        name: score.value - found[before.name, name].value
        for (model, name), score in found.items()
        if model == after.name and (before.name, name) in found and name and name not in odd
    }
    if not changes:
        return []
    mean = sum(changes.values()) / len(changes)
    worst = min(changes, key=changes.__getitem__)
    extra = f", at worst {points_text(changes[worst])} ({benchmark_title(worst)})" if len(changes) > 1 else ""
    names = f"{len(changes)} benchmarks" if len(changes) > 1 else benchmark_title(worst)
    return [
        f"On {names} {after.title} changes by {points_text(mean)} percentage points against "
        f"{before.title}{' on average' if len(changes) > 1 else ''}{extra}."
    ]


def _what_there_is(scores: Sequence[Score]) -> list[str]:
    tasks = {MEASURES[score.task].section for score in scores if score.task in MEASURES}
    return ["The tables below hold the scores."] if tasks else ["There are no scores."]
