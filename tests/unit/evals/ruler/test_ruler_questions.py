"""Question answering against the rules of the official qa.py."""

import json
import re

import numpy as np
import pytest

from skipwise.errors import InputError
from skipwise.evals.ruler.questions import question_recipe, read_hotpotqa, read_squad


def documents_of(sample):
    body = sample.prompt.split("The following are given documents.\n\n")[1]
    context, _, question = body.rpartition("\n\nAnswer the question based on the given documents.")
    parts = re.split(r"(?:^|\n\n)Document (\d+):\n", context)
    assert parts[0] == ""
    assert [int(number) for number in parts[1::2]] == list(range(1, len(parts) // 2 + 1))
    return parts[2::2], question


def test_squad_has_its_answerable_questions_in_order(squad):
    questions = read_squad(squad)
    assert len(questions.documents) == 20
    assert [each.text for each in questions.questions][:5] == [
        f"What is the river of town {town}?" for town in ("0-0", "0-1", "0-2", "0-3", "1-0")
    ]
    assert questions.questions[5].answers == ("Ober11", "the Ober11")
    assert [len(each.near) for each in questions.questions] == [3] * 20
    for each in questions.questions:
        assert each.answers[0] in questions.documents[each.own[0]]
        assert not set(each.own) & set(each.near)


def test_squad_shows_the_article_before_others(generator):
    for length, least, most in [(260, 1, 4), (1500, 5, 19)]:
        for index in range(6):
            sample = generator.sample("qa_1", length, 0, index)
            documents, question = documents_of(sample)
            town = f"{index // 4}-{index % 4}"
            assert question.endswith(f"\n\nQuestion: What is the river of town {town}? Answer:")
            assert sample.answers[0] == f"Ober{index // 4}{index % 4}"
            assert least <= len(documents) <= most
            assert len(set(documents)) == len(documents)
            same = [each for each in documents if f"of town {index // 4}-" in each]
            assert len(same) == min(4, len(documents))
            assert sum(f"of town {town} is" in each for each in documents) == 1


def test_documents_come_in_any_order_and_again_when_there_are_no_more(generator):
    places = set()
    for seed in range(12):
        documents, _ = documents_of(generator.sample("qa_1", 1500, seed, 3))
        places.add(next(number for number, each in enumerate(documents) if "town 0-3" in each))
    assert len(places) > 4
    documents, _ = documents_of(generator.sample("qa_1", 4096, 0, 0))
    assert len(set(documents)) == 20 < len(documents)


def test_hotpotqa_always_shows_its_own_documents(hotpotqa, generator):
    questions = read_hotpotqa(hotpotqa)
    assert len(questions.documents) == 40
    for index in (0, 1, 39):
        sample = generator.sample("qa_2", 700, 0, index)
        documents, question = documents_of(sample)
        assert f"Town {index}\nThe river of town {index} is called Unter{index}. It is wet." in " ".join(
            documents
        )
        assert any(each.startswith(f"Town {(index - 1) % 40}\n") for each in documents)
        assert f"Question: What is the river of town {index}?" in question
        assert sample.answers == (f"Unter{index}",)
        assert sample.answer_prefix == " Answer:"


def test_the_least_prompt_has_all_documents_that_are_needed(squad, hotpotqa):
    rng = np.random.default_rng(0)
    assert question_recipe(read_squad(squad), 0, rng).smallest == 1
    recipe = question_recipe(read_hotpotqa(hotpotqa), 7, rng)
    assert recipe.smallest == 2
    least = recipe.build(2).body
    assert least.count("Town 7\n") == least.count("Town 6\n") == 1
    assert "Document 3" not in least


def test_there_are_as_many_samples_as_questions(generator, hotpotqa):
    with pytest.raises(InputError, match="has 40 questions with an answer: ask for fewer samples"):
        generator.sample("qa_2", 700, 0, 40)


@pytest.mark.parametrize("read", [read_squad, read_hotpotqa])
@pytest.mark.parametrize("content", ["{", "[]x", '{"version": 2}', '[{"question": 1}]', "7", '{"data": [3]}'])
def test_other_files_are_errors_that_name_the_expected_one(tmp_path, read, content):
    path = tmp_path / "questions.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"questions\.json is not (SQuAD|HotpotQA)'s ") as info:
        read(path)
    assert "\n" not in str(info.value)
    with pytest.raises(InputError, match=r"nothing\.json cannot be read \(No such file .*\): give "):
        read(tmp_path / "nothing.json")


def test_the_other_data_set_is_an_error(squad, hotpotqa):
    with pytest.raises(InputError, match="is not HotpotQA's"):
        read_hotpotqa(squad)
    with pytest.raises(InputError, match="is not SQuAD's"):
        read_squad(hotpotqa)
    assert json.loads(squad.read_text())["data"]
