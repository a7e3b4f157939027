import json
import math

import pytest

from skipwise.errors import InputError
from skipwise.scores import Evaluation, Score, Scores, Subject


def score(model="a", task="passkey", value=0.5, **more):
    return Score(model=model, task=task, length=more.pop("length", 256), value=value, **more)


def test_what_is_written_is_read(tmp_path):
    scores = Scores(
        subjects=(Subject(name="a", rope_parameters={"factor": 4.0}), Subject(name="b", window=7)),
        evaluations=(Evaluation(model="a", task="passkey", seed=3, settings={"trials": 2}),),
        scores=(
            score(value=math.inf, depth=0.25, samples=(1.0, 0.0), weights=(2.0, 3.0), start=0),
            score("b", "ruler", 0.1, subtask="vt", n=9, stderr=0.3),
        ),
    )
    scores.write(tmp_path / "scores.json")
    assert Scores.read(tmp_path) == Scores.read(tmp_path / "scores.json") == scores
    document = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert document["schema"] == 2
    assert len((tmp_path / "scores.json").read_text().splitlines()) < 40


def test_nan_is_kept(tmp_path):
    Scores(scores=(score(value=math.nan),)).write(tmp_path / "x.json")
    assert math.isnan(Scores.read(tmp_path / "x.json").scores[0].value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("{", "not valid JSON, line 1"),
        ("[]", "must hold one JSON object, not a list"),
        ('{"schema": 1, "scores": []}', "schema 1 is not 2: delete the file"),
        ('{"scores": []}', "schema None is not 2"),
        ('{"schema": 2, "scores": [{"model": "a"}]}', "scores.0.task: Field required"),
        (
            '{"schema": 2, "scores": [{"model": "a", "task": "t", "length": -1, "value": 1}]}',
            "scores.0.length",
        ),
        ('{"schema": 2, "colour": 1}', "colour: Extra inputs"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path, text, words):
    path = tmp_path / "scores.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=rf"^{path}: {words}"):
        Scores.read(path)


def test_new_results_replace_those_of_the_same_task_and_model():
    a, b = Subject(name="a"), Subject(name="b")
    evaluation = lambda model, task, seed: Evaluation(model=model, task=task, seed=seed)  # noqa: E731
    scores = Scores().with_results(a, evaluation("a", "passkey", 0), [score(value=0.1), score(length=512)])
    scores = scores.with_results(b, evaluation("b", "passkey", 0), [score("b", value=0.2)])
    scores = scores.with_results(a, evaluation("a", "perplexity", 0), [score(task="perplexity", value=7.0)])
    scores = scores.with_results(a, evaluation("a", "passkey", 1), [score(value=0.3)])
    assert scores.subjects == (a, b)
    assert {(each.model, each.task): each.value for each in scores.scores} == {
        ("b", "passkey"): 0.2,
        ("a", "perplexity"): 7.0,
        ("a", "passkey"): 0.3,
    }
    assert len(scores.scores) == 3
    assert [(each.model, each.task, each.seed) for each in scores.evaluations] == [
        ("b", "passkey", 0),
        ("a", "perplexity", 0),
        ("a", "passkey", 1),
    ]


def test_the_parts_of_a_run_are_joined_in_order():
    parts = [Scores(subjects=(Subject(name=name),), scores=(score(name),)) for name in "ab"]
    joined = Scores.joined(parts)
    assert [each.name for each in joined.subjects] == ["a", "b"]
    assert [each.model for each in joined.scores] == ["a", "b"]
