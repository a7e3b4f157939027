"""The headline follows from the scores, and from nothing else."""

import pytest
from report_sample import scores

from skipwise.report.headline import summary, windows
from skipwise.report.inputs import Model, Run
from skipwise.scores import Score


def keys_found(model: str, **shares: float) -> list[Score]:
    return [
        Score(model=model, task="passkey", length=int(length[1:]), value=share)
        for length, share in shares.items()
    ]


def models(*names: str) -> list[Model]:
    return [Model(name=name, title=name) for name in names]


def test_windows_of_the_sample():
    found = windows(scores(), models("untouched", "interpolated", "contiguous", "pose"))
    assert [(window.model.name, window.length, window.longest) for window in found] == [
        ("untouched", 2048, False),
        ("interpolated", 512, False),
        ("contiguous", 2048, False),
        ("pose", 16384, True),
    ]


@pytest.mark.parametrize(
    ("shares", "length"),
    [
        ({"n256": 0.9, "n512": 0.899, "n1024": 1.0}, 256),  # a lucky length beyond a failure does not count
        ({"n256": 0.5, "n512": 1.0}, 0),
        ({"n512": 1.0, "n256": float("nan")}, 0),
        ({"n300": 0.95, "n700": 0.91}, 700),
    ],
)
def test_a_window_ends_at_the_first_failure(shares, length):
    assert windows(keys_found("a", **shares), models("a"))[0].length == length


def test_sentences_name_the_models_and_the_factor():
    rows = keys_found("untouched", n256=1.0, n512=0.0, n1024=0.0)
    rows += keys_found("contiguous", n256=0.2, n512=0.0, n1024=0.0)
    rows += keys_found("pose", n256=1.0, n512=1.0, n1024=0.92)
    rows += [
        Score(model="pose", task="perplexity", length=length, value=length / 100) for length in (256, 512)
    ]
    assert summary(Run(title="", target_length=256), rows, models("untouched", "contiguous", "pose")) == [
        "pose finds at least 90 % of hidden keys up to 1k tokens (the longest length tested), "
        "4 times as far as untouched (256); contiguous at no length tested.",
        "Perplexity over 256 tokens: 2.56 (pose).",
    ]


def test_no_gain_is_not_called_one():
    rows = [*keys_found("untouched", n256=1.0, n512=0.0), *keys_found("pose", n256=0.3, n512=0.0)]
    assert summary(Run(title=""), rows, models("untouched", "pose")) == [
        "pose finds at least 90 % of hidden keys at no length tested, untouched up to 256 tokens."
    ]


def test_other_names_and_a_single_model():
    (sentence,) = summary(Run(title=""), keys_found("mine", n256=1.0, n512=0.0), models("mine"))
    assert sentence == "mine finds at least 90 % of hidden keys up to 256 tokens."


def test_perplexity_at_the_longest_length_if_the_target_was_not_measured():
    rows = [Score(model="a", task="perplexity", length=length, value=7.0) for length in (256, 512)]
    rows += [Score(model="b", task="perplexity", length=512, value=6.5)]
    assert summary(Run(title="", target_length=4096), rows, models("a", "b")) == [
        "Perplexity over 512 tokens: 6.50 (b), 7.00 (a)."
    ]


def test_the_effective_length_of_ruler():
    rows = [
        Score(model=name, task="ruler", length=length, value=value)
        for name, values in {"a": (0.9, 0.86), "b": (0.9, 0.5), "c": (0.8, 0.5)}.items()
        for length, value in zip((4096, 8192), values, strict=True)
    ]
    assert summary(Run(title=""), rows, models("a", "b", "c")) == [
        "Effective length by RULER: 8k or more (a), 4k (b), under 4k (c)."
    ]


def test_what_the_training_cost_on_benchmarks():
    rows = [
        Score(model=name, task="benchmark", subtask=benchmark, length=0, value=value)
        for name, values in {"untouched": (0.5, 0.7), "x": (0.1, 0.1), "pose": (0.51, 0.66)}.items()
        for benchmark, value in zip(("boolq", "piqa"), values, strict=True)
    ]
    names = models("untouched", "x", "pose")
    assert summary(Run(title=""), rows, names) == [
        "On 2 benchmarks pose changes by −1.5 percentage points against untouched on average, at worst "
        "−4.0 (PIQA)."
    ]
    assert summary(Run(title=""), [row for row in rows if row.subtask == "boolq"], names) == [
        "On BoolQ pose changes by +1.0 percentage points against untouched."
    ]
    assert summary(Run(title=""), rows[:2], names[:1]) == ["The tables below hold the scores."]


def test_nothing_measured_is_said():
    assert summary(Run(title=""), [], []) == ["There are no scores."]
