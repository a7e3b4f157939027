"""An evaluation that is stopped anywhere and started again gives the same and measures nothing twice."""

import json

import pytest
from planted import PlantedReader

from skipwise.errors import InputError
from skipwise.evals.run import Item, evaluate
from skipwise.evals.shares import share_score
from skipwise.scores import Subject


class Sums:
    """A task whose items are numbers, in three lengths."""

    name = "sums"

    def __init__(self, count=11, *, stop=None, **settings):
        self.count, self.stop = count, stop
        self.settings = settings or {"seed": 0}
        self.batches = []

    def items(self, reader):
        return [
            Item(str(number), 10 + number % 3) for number in sorted(range(self.count), key=lambda n: n % 3)
        ]

    def measure(self, reader, items):
        if self.stop is not None and len(self.batches) == self.stop:
            raise KeyboardInterrupt
        self.batches.append([each.key for each in items])
        return [{"value": int(each.key) / 10} for each in items]

    def scores(self, model, results):
        return [
            share_score([each["value"] for each in results.values()], model=model, task=self.name, length=1)
        ]


def reader(**changes):
    found = PlantedReader(None, rows=2)
    found.subject = Subject(name="m", path="m", revision="1", **changes)
    return found


def test_neighbours_of_one_length_go_together():
    task = Sums()
    evaluate(task, reader())
    assert task.batches == [["0", "3"], ["6", "9"], ["1", "4"], ["7", "10"], ["2", "5"], ["8"]]


@pytest.mark.parametrize("stop", range(6))
def test_an_interrupted_run_goes_on(tmp_path, stop):
    whole = evaluate(Sums(), reader())
    journal = tmp_path / "measured" / "sums.jsonl"
    first, second = Sums(stop=stop), Sums()
    with pytest.raises(KeyboardInterrupt):
        evaluate(first, reader(), journal=journal)
    assert evaluate(second, reader(), journal=journal) == whole
    measured = [key for batch in first.batches + second.batches for key in batch]
    assert sorted(measured, key=int) == [str(number) for number in range(11)]
    third = Sums()
    assert evaluate(third, reader(), journal=journal) == whole
    assert third.batches == []


def test_a_line_that_was_cut_off_is_measured_again(tmp_path):
    journal = tmp_path / "measured" / "sums.jsonl"
    whole = evaluate(Sums(), reader(), journal=journal)
    text = journal.read_bytes()
    for end in (len(text) - 1, len(text) - 9, len(text) - 60, 10):
        journal.write_bytes(text[:end])
        task = Sums()
        assert evaluate(task, reader(), journal=journal) == whole
        assert task.batches
        assert len(journal.read_text().splitlines()) == 12
        assert [json.loads(line) for line in journal.read_text().splitlines()]


@pytest.mark.parametrize(
    ("task", "subject", "words"),
    [
        (Sums(seed=1), {}, r"another setting \(seed was 0, is 1\)"),
        (Sums(), {"dtype": "bfloat16"}, r'another model \(dtype was "", is "bfloat16"\)'),
        (Sums(), {"rope_parameters": {"factor": 2.0}}, r"another model \(rope_parameters was \{\}"),
    ],
)
def test_results_of_something_else_are_never_taken(tmp_path, task, subject, words):
    journal = tmp_path / "run" / "measured" / "sums.jsonl"
    evaluate(Sums(), reader(), journal=journal)
    with pytest.raises(
        InputError, match=rf"^{tmp_path}/run holds results of {words}.*--fresh to delete them$"
    ):
        evaluate(task, reader(**subject), journal=journal)


def test_progress_counts_tokens_and_starts_from_what_is_there(tmp_path):
    journal = tmp_path / "measured" / "sums.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Sums(stop=2), reader(), journal=journal)
    seen = []
    evaluate(Sums(), reader(), journal=journal, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(40, 120), (62, 120), (84, 120), (108, 120), (120, 120)]


@pytest.mark.parametrize("line", [b"garbage", b"", b"[1, 2]", b"\xff\xfe", b"\x00" * 20, b'{"item": "3"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    journal = tmp_path / "measured" / "sums.jsonl"
    evaluate(Sums(), reader(), journal=journal)
    lines = journal.read_bytes().split(b"\n")
    lines[4] = line
    journal.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match=r"sums.jsonl: line 5 is damaged: --fresh measures all again"):
        evaluate(Sums(), reader(), journal=journal)


@pytest.mark.parametrize("first", [b"[]", b"{}", b"garbage"])
def test_a_file_of_another_kind_is_not_taken(tmp_path, first):
    journal = tmp_path / "measured" / "sums.jsonl"
    journal.parent.mkdir()
    journal.write_bytes(first + b"\n")
    with pytest.raises(InputError, match="holds results of something else: choose another --output"):
        evaluate(Sums(), reader(), journal=journal)
