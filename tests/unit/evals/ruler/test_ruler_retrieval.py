"""Needles against the rules of the official niah.py, prompt by prompt."""

import re
from collections import Counter

import numpy as np
import pytest

from skipwise.evals.ruler.essay import LONGEST, Essay
from skipwise.evals.ruler.generator import Generator
from skipwise.evals.ruler.retrieval import DEPTHS
from skipwise.evals.ruler.tasks import TASKS
from skipwise.evals.ruler.words import Words

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = re.compile(r"One of the special magic (\S+) for (\S+) is: (\S+)\.")
FORMS = {
    "words": r"[a-z]{4,12}-[a-z]{4,12}",
    "numbers": r"[1-9]\d{6}",
    "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}
RULES = {  # scripts/synthetic.yaml: haystack, type of keys, type of values, needles, of them asked for
    "niah_single_1": ("noise", "words", "numbers", 1, 1),
    "niah_single_2": ("essay", "words", "numbers", 1, 1),
    "niah_single_3": ("essay", "words", "uuids", 1, 1),
    "niah_multikey_1": ("essay", "words", "numbers", 4, 1),
    "niah_multikey_2": ("needle", "words", "numbers", 1, 1),
    "niah_multikey_3": ("needle", "uuids", "uuids", 1, 1),
    "niah_multivalue": ("essay", "words", "numbers", 4, 4),
    "niah_multiquery": ("essay", "words", "numbers", 4, 4),
}


def context_of(sample):
    head, _, rest = sample.prompt.partition("afterwards.\n")
    context, _, question = rest.rpartition("\nWhat ")
    return head, context, question


@pytest.mark.parametrize("task", RULES)
@pytest.mark.parametrize("index", range(4))
def test_the_needles_are_those_of_the_task(generator, task, index):
    haystack, key_kind, value_kind, hidden, asked = RULES[task]
    sample = generator.sample(task, 4096, 1, index)
    head, context, question = context_of(sample)
    found = NEEDLE.findall(context)
    keys = [key for _, key, _ in found]
    values = [value for *_, value in found]
    assert all(kind == value_kind for kind, *_ in found)
    assert all(re.fullmatch(FORMS[key_kind], key) for key in keys)
    assert all(re.fullmatch(FORMS[value_kind], value) for value in values)
    assert len(set(values)) == len(values)
    assert len(set(keys)) == (1 if task == "niah_multivalue" else len(keys))
    assert len(found) == hidden if haystack != "needle" else len(found) > 20
    # the question, in the singular where one value is asked for
    named = re.findall(r"for (.*?) mentioned in the provided text", question)
    assert len(named) == 2
    assert named[0] == named[1]
    asked_keys = re.split(r", and |, ", named[0])
    assert len(asked_keys) == (4 if task == "niah_multiquery" else 1)
    assert len(sample.answers) == asked
    assert set(sample.answers) == {value for _, key, value in found if key in asked_keys}
    assert all(sample.prompt.count(answer) == 1 for answer in sample.answers)
    one = value_kind.removesuffix("s")
    if asked == 1:
        assert head.startswith(f"A special magic {one} is hidden within the following text. Make")
        assert (
            sample.answer_prefix
            == f" The special magic {one} for {named[0]} mentioned in the provided text is"
        )
        assert question.startswith(f"is the special magic {one} for")
    else:
        assert head.startswith(
            f"Some special magic {value_kind} are hidden within the following text. Make sure"
        )
        assert sample.answer_prefix.endswith("mentioned in the provided text are")
        assert question.startswith(f"are all the special magic {value_kind} for")


def test_the_queries_have_commas_and_an_and_and_come_in_any_order(generator):
    orders = set()
    for index in range(12):
        sample = generator.sample("niah_multiquery", 2000, 0, index)
        _, context, question = context_of(sample)
        first, second, third, fourth = re.search(
            r"for (\S+), (\S+), (\S+), and (\S+) mentioned", question
        ).groups()
        found = {key: value for _, key, value in NEEDLE.findall(context)}
        assert tuple(found[key] for key in (first, second, third, fourth)) == sample.answers
        orders.add(tuple(list(found).index(key) for key in (first, second, third, fourth)))
    assert len(orders) > 6


def test_noise_is_one_line_over_and_over_with_the_needle_anywhere(generator):
    places = []
    for index in range(60):
        lines = context_of(generator.sample("niah_single_1", 2000, 0, index))[1].split("\n")
        [place] = [number for number, line in enumerate(lines) if line != NOISE]
        assert NEEDLE.fullmatch(lines[place])
        places.append(place / (len(lines) - 1))  # never after the last line of noise
    assert max(places) < 1
    assert min(places) < 0.1
    assert max(places) > 0.9
    assert abs(np.mean(places) - 0.5) < 4 * np.sqrt(1 / 12 / 60)


@pytest.mark.parametrize("task", ["niah_multikey_2", "niah_multikey_3"])
def test_needles_among_needles_are_lines_of_their_own_anywhere(generator, task):
    places = []
    for index in range(40):
        sample = generator.sample(task, 3000, 0, index)
        lines = context_of(sample)[1].split("\n")
        assert all(NEEDLE.fullmatch(line) for line in lines)
        [place] = [number for number, line in enumerate(lines) if sample.answers[0] in line]
        places.append(place / (len(lines) - 1))
    assert abs(np.mean(places) - 0.5) < 4 * np.sqrt(1 / 12 / 40)


@pytest.mark.parametrize("task", ["niah_single_2", "niah_multivalue"])
def test_text_is_the_documents_from_the_start_with_needles_at_official_depths(generator, text, task):
    essay = Essay(" ".join(text))
    seen = Counter()
    for index in range(60):
        context = context_of(generator.sample(task, 3000, 0, index))[1]
        parts = NEEDLE.split(context)[::4]
        words = [part.split() for part in parts]
        size = sum(map(len, words))
        assert [word for part in words for word in part] == essay.words[:size]
        assert "  " not in context
        starts = essay.sentences(size).tolist()
        allowed = {starts[int((len(starts) - 1) * depth / 100)]: depth for depth in DEPTHS.tolist()}
        places = np.cumsum([len(part) for part in words[:-1]]).tolist()
        assert set(places) <= set(allowed)
        seen.update(allowed[place] for place in places)
    assert (min(seen), max(seen)) == (0, 100) if task == "niah_multivalue" else len(seen) > 20


def test_the_depths_are_forty_whole_percents():
    assert len(DEPTHS) == 40
    assert DEPTHS[[0, 1, 2, 20, -1]].tolist() == [0, 3, 5, 51, 100]


def test_text_repeats_when_it_ends_and_its_sentences_with_it():
    essay = Essay('One two three. Four five six." Seven? eight e.g. this 9 ten')
    assert essay.part(0, 11) == 'One two three. Four five six." Seven? eight e.g. this 9'
    assert essay.sentences(11).tolist() == [0, 3, 6, 11]
    assert essay.part(9, 15) == "this 9 ten One two three."
    assert essay.part(11, 12) == "ten"
    assert essay.sentences(27).tolist() == [0, 3, 6, 12, 15, 18, 24, 27]
    assert essay.sentences(2).tolist() == [0, 2]
    assert essay.cost(24) > essay.cost(12) > essay.cost(11) > 0
    assert essay.cost(24) == 2 * essay.cost(12) == 2 * essay.cost(5) + 2 * (essay.cost(12) - essay.cost(5))


def test_text_without_full_stops_has_sentences_too():
    assert Essay("word " * 120).sentences(120).tolist() == [0, LONGEST, 2 * LONGEST, 120]


def test_no_value_stands_in_the_text_or_is_drawn_twice():
    words = Words("")
    drawn = [words.draw("numbers", np.random.default_rng(seed)) for seed in range(2)]
    rng = np.random.default_rng(0)
    assert words.draw_new("numbers", rng, set(), "a text") == drawn[0]
    rng = np.random.default_rng(0)
    assert words.draw_new("numbers", rng, {drawn[1]}, f"a text with {drawn[0]} in it") not in drawn
    rng = np.random.default_rng(1)
    assert words.draw_new("numbers", rng, {drawn[1]}) not in drawn


def test_no_key_and_no_value_is_hidden_twice_even_when_few_can_be_drawn(tokenizer, monkeypatch):
    few = {"words": ("key-{}", 300), "numbers": ("1234{:03}", 300)}
    monkeypatch.setattr(
        Words, "draw", lambda self, kind, rng: few[kind][0].format(int(rng.integers(few[kind][1])))
    )
    found = NEEDLE.findall(Generator(tokenizer, "text").sample("niah_multikey_2", 8192, 0, 0).prompt)
    assert len(found) > 150
    assert len({key for _, key, _ in found}) == len({value for *_, value in found}) == len(found)


def test_retrieval_tasks_are_those_with_needles():
    assert {name for name, task in TASKS.items() if task.needles} == set(RULES)
