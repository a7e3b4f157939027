"""Scores -> the one or two sentences a reader should leave with. Contract: all computed.

A model's *window* is the largest length at which it finds at least 90 % of the keys, and at every shorter
length that was measured as well: one lucky length far out does not count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from skipwise.report.inputs import Model, Run, Score
from skipwise.report.tables import Grid, grid, length_label, value_text

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
    """The window of every model whose retrieval was measured, in display order."""
    table = grid(scores, "retrieval", models)
    rows = [] if table is None else zip(table.models, table.cells, strict=True)
    return [_window(model, row) for model, row in rows]


def summary(run: Run, scores: Sequence[Score], models: Sequence[Model]) -> list[str]:
    """Sentences with the headline numbers: windows before and after, then perplexity at the target length."""
    sentences = [*_window_sentences(windows(scores, models))]
    table = grid(scores, "perplexity", models)
    if table is not None:
        sentences.append(_perplexity_sentence(table, run.target_length))
    return sentences or ["This run holds no retrieval or perplexity scores by length."]


def before_and_after(models: Sequence[Model]) -> tuple[Model, Model]:
    """The model the run began with and the one it is about, by their usual names, else first and last."""
    by_name = {model.name: model for model in models}
    return by_name.get("untouched", models[0]), by_name.get("pose", models[-1])


def _window(model: Model, row: Sequence[Score | None]) -> Window:
    measured = [score for score in row if score is not None]
    reached = 0
    for score in measured:
        if not score.value >= THRESHOLD:
            break
        reached = score.length
    return Window(model=model, length=reached, longest=reached == measured[-1].length)


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


def _perplexity_sentence(table: Grid, target: int) -> str:
    """Perplexity at the target length if it was measured, else at the longest length that was."""
    length = target if target in table.lengths else table.lengths[-1]
    column = table.lengths.index(length)
    scored = [(model, row[column]) for model, row in zip(table.models, table.cells, strict=True)]
    parts = [
        f"{value_text(table.task, score.value)} ({model.title})"
        for model, score in sorted(scored, key=_rank)
        if score is not None
    ]
    return f"Perplexity over {length_label(length)} tokens: {', '.join(parts)}."


def _rank(scored: tuple[Model, Score | None]) -> float:
    score = scored[1]
    return math.inf if score is None or math.isnan(score.value) else score.value
