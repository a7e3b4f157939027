"""RULER asked of planted models: one that knows every answer, and one that knows those of one task."""

import pytest
from planted import PlantedReader
from transformers import AutoTokenizer

from skipwise.errors import InputError
from skipwise.evals.ruler import Ruler
from skipwise.evals.ruler.generator import Generator
from skipwise.evals.run import evaluate

TEXT = [
    "The river ran past the old mill and the children counted its wheels. Nobody knew who built it. " * 40
]
TASKS = ("niah_single_1", "vt", "fwe")


@pytest.fixture(scope="module")
def tokenizer(demo_base):
    return AutoTokenizer.from_pretrained(demo_base)


def knowing(tokenizer, task, names):
    """A reader that answers the samples of ``names`` rightly, and nothing else."""
    generator = Generator(tokenizer, TEXT)
    answers = {}
    for name in names:
        for length in task.lengths:
            for index in range(task.samples):
                sample = generator.sample(name, length, task.seed, index)
                answers[tuple(sample.token_ids)] = " and ".join(sample.answers)
    return PlantedReader(tokenizer, say=lambda prompt: answers.get(tuple(prompt), ""))


def test_right_answers_count_and_the_mean_is_over_tasks(tokenizer):
    task = Ruler(lengths=[1024, 2048], texts=TEXT, tasks=TASKS, samples=3)
    everything = evaluate(task, knowing(tokenizer, task, TASKS))
    assert {score.value for score in everything} == {1.0}
    one = evaluate(task, knowing(tokenizer, task, ["vt"]))
    assert {(score.subtask, score.value) for score in one if score.subtask} == {
        ("niah_single_1", 0.0),
        ("vt", 1.0),
        ("fwe", 0.0),
    }
    means = [score for score in one if not score.subtask]
    assert [(score.length, score.n) for score in means] == [(1024, 3), (2048, 3)]
    assert [score.value for score in means] == pytest.approx([1 / 3, 1 / 3])
    assert means[0].samples == pytest.approx((1 / 3,) * 3)


def test_tasks_without_their_files_are_left_out_and_named(tokenizer, tmp_path):
    task = Ruler(lengths=[4096], texts=TEXT, samples=1)
    assert len(task.names) == 11
    assert task.notes[0].startswith("qa_1, qa_2 were left out")
    with pytest.raises(InputError, match=r"qa_1 is made of a file that has to be downloaded: --squad PATH"):
        evaluate(Ruler(lengths=[4096], texts=TEXT, tasks=("qa_1",)), PlantedReader(tokenizer))
    with pytest.raises(InputError, match="no ruler task is called 'niah': choose from niah_single_1"):
        evaluate(Ruler(lengths=[4096], texts=TEXT, tasks=("niah",)), PlantedReader(tokenizer))


def test_a_length_without_room_is_refused_before_anything_is_asked(tokenizer):
    reader = PlantedReader(tokenizer)
    with pytest.raises(InputError, match="ruler's niah_single_1 needs"):
        evaluate(Ruler(lengths=[128, 4096], texts=TEXT, tasks=TASKS), reader)
    assert reader.asked == []


def test_what_decides_the_prompts_is_in_the_settings():
    settings = [
        Ruler(lengths=[1024], texts=texts, tasks=tasks, samples=samples, seed=seed).settings
        for texts, tasks, samples, seed in (
            (TEXT, TASKS, 3, 0),
            (["other"], TASKS, 3, 0),
            (TEXT, TASKS[:1], 3, 0),
            (TEXT, TASKS, 4, 0),
            (TEXT, TASKS, 3, 1),
        )
    ]
    assert all(settings[0] != other for other in settings[1:])
