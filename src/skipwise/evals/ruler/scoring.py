"""How RULER judges an answer, and the effective length.

Rules of NVIDIA/RULER, `scripts/eval/evaluate.py` and `scripts/eval/synthetic/constants.py`: an answer counts
as given when it occurs anywhere in what the model wrote, whatever the case of its letters and whatever else
is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from skipwise.evals.ruler.tasks import TASKS

EFFECTIVE = 0.856
"""The paper's threshold: the mean over the 13 tasks that Llama-2-7B-chat has at 4096 tokens."""

EFFECTIVE_BASE = 0.794
"""The same of Llama-2-7B, for base models (the paper's appendix A and table 12)."""

_CONTROL = re.compile(r"[\x00-\x1f]")


def score(task: str, prediction: str, answers: Sequence[str]) -> float:
    """0 .. 1: the share of ``answers`` in the ``prediction``; of the qa tasks, whether there is one.

    The benchmark gives the mean over samples as a percentage rounded to two places.
    """
    text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    found = [answer.lower() in text for answer in answers]
    return float(any(found)) if TASKS[task].metric == "part" else sum(found) / len(found)


def effective_length(scores: Mapping[int, float], threshold: float = EFFECTIVE) -> int | None:
    """The largest length (tokens) whose mean score over the tasks reaches ``threshold``; None: no one does.

    As the paper defines it (table 3): a shorter length below the threshold does not matter when a longer one
    reaches it. The paper tries 4096 tokens and doubles, up to the length that a model claims, at most 131072.
    When the result is the largest length tried, the true one may be larger (the table has ">128K" then); None
    stands for its "<4K". A mean over fewer than the 13 tasks does not compare with the threshold.
    """
    reached = [length for length, value in scores.items() if value >= threshold - 1e-9]
    return max(reached, default=None)
