"""What each task of `scores.json` measures: its words, its unit, and which way is better."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from skipwise.report.words import perplexity_text, share_text
from skipwise.scores import Score, Scores

EFFECTIVE = 0.856
"""RULER's threshold: Llama-2-7B-chat at 4k, 13 tasks (Hsieh et al. 2024, arXiv 2404.06654, section 4)."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One task. A perplexity is better when lower; all else is a share of 0 .. 1, better when higher."""

    section: str
    """Id of its section of the page."""
    title: str
    """Of its table, with the unit."""
    evaluation: str
    """`Evaluation.task` of the command that measures it."""
    perplexity: bool = False
    average: bool = False
    """Of many questions: 66.0, where a few trials say 66. A benchmark may also be no share at all."""

    def text(self, value: float) -> str:
        """A value as it is printed, without its unit."""
        if self.perplexity:
            return perplexity_text(value)
        if not 0 <= value <= 1:  # a benchmark of another kind
            return f"{value:.4g}"
        return f"{100 * value:.1f}" if self.average else share_text(value)

    def best(self, values: Iterable[float]) -> float:
        """The best of the values; nan if none is finite."""
        finite = [value for value in values if math.isfinite(value)]
        return (min if self.perplexity else max)(finite, default=math.nan)


def _perplexity(title: str, section: str = "perplexity", evaluation: str = "perplexity") -> Measure:
    return Measure(section=section, title=title, evaluation=evaluation, perplexity=True)


MEASURES = {
    "passkey": Measure(section="passkey", title="Passkey retrieval (% of keys found)", evaluation="passkey"),
    "needle": Measure(section="needle", title="Needle in a haystack (% found)", evaluation="needle"),
    "ruler": Measure(section="ruler", title="RULER (%)", evaluation="ruler", average=True),
    "perplexity": _perplexity("Perplexity, whole window"),
    "perplexity_last_quarter": _perplexity("Perplexity, last quarter of the window"),
    "perplexity_bucket": _perplexity("Perplexity by position"),
    "sliding_perplexity": _perplexity("Perplexity, sliding window", evaluation="sliding_perplexity"),
    "longppl": _perplexity("LongPPL (perplexity of key tokens)", "longppl", "longppl"),
    "benchmark": Measure(section="benchmarks", title="Benchmarks (%)", evaluation="benchmark", average=True),
}
"""By `Score.task`, in the order in which they are shown."""

NEEDLES = {"number": "a number", "sentence": "a sentence", "several": "several numbers"}
"""What is hidden, by subtask."""


def title_of(scores: Scores, task: str, subtask: str = "") -> str:
    """The title of a table, with what the settings add to it."""
    title = MEASURES[task].title
    if task == "needle" and subtask:
        return f"Needle in a haystack, {NEEDLES.get(subtask, subtask)} (% found)"
    if task == "sliding_perplexity":
        steps = {each.settings.get("stride") for each in scores.evaluations if each.task == task}
        stride = next(iter(steps)) if len(steps) == 1 else None
        return f"{title}, stride {stride:,}" if isinstance(stride, int) else title
    if task == "ruler" and not subtask:
        counts = {len(names) for names in ruler_tasks(scores.scores).values()} - {0}
        return f"RULER, average of {counts.pop()} tasks (%)" if len(counts) == 1 else "RULER, average (%)"
    return title


def no_shares(scores: Iterable[Score]) -> set[str]:
    """Benchmarks that do not measure a share, such as a perplexity."""
    return {row.subtask for row in scores if row.task == "benchmark" and not 0 <= row.value <= 1}


def subtasks(scores: Iterable[Score], task: str) -> list[str]:
    """Those of a task that were measured, in their order."""
    return list(dict.fromkeys(score.subtask for score in scores if score.task == task))


def ruler_tasks(scores: Iterable[Score]) -> dict[str, set[str]]:
    """The tasks of RULER that each model was asked."""
    found: dict[str, set[str]] = {}
    for score in scores:
        if score.task == "ruler":
            found.setdefault(score.model, set()).update({score.subtask} - {""})
    return found


def over_lengths(scores: Iterable[Score], task: str, subtask: str = "") -> dict[str, dict[int, Score]]:
    """Model -> length -> the score over all depths, by ascending length. The later of two rows wins."""
    found: dict[str, dict[int, Score]] = {}
    for score in scores:
        if (score.task, score.subtask, score.depth) == (task, subtask, None):
            found.setdefault(score.model, {})[score.length] = score
    return {model: dict(sorted(rows.items())) for model, rows in found.items()}


def reach(rows: Sequence[Score], threshold: float) -> tuple[int, bool]:
    """(largest length up to which every score, by ascending length, reaches the threshold; is it the last?).

    One lucky length far out does not count. 0: not even the shortest.
    """
    reached = 0
    for score in rows:
        if not score.value >= threshold:
            break
        reached = score.length
    return reached, bool(rows) and reached == rows[-1].length


def effective_length(rows: Sequence[Score]) -> tuple[int, bool]:
    """(RULER's effective length: the largest whose average is at least 85.6 %; is it the longest tested?)."""
    reached = max((score.length for score in rows if score.value >= EFFECTIVE - 1e-9), default=0)
    return reached, bool(rows) and reached == rows[-1].length
