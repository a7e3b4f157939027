"""Word lists against the rules of the official common_words_extraction.py and freq_words_extraction.py."""

import re
from collections import Counter

import numpy as np
import pytest
from scipy.special import zeta

from skipwise.evals.ruler.aggregation import coded_words_recipe, common_words_recipe
from skipwise.evals.ruler.generator import Generator
from skipwise.evals.ruler.words import Words, invented

LIST = "Below is a numbered list of words."


@pytest.mark.parametrize(
    ("length", "common", "others", "example_words", "example_common", "example_others"),
    [(2000, 6, 1, 20, 3, 1), (4095, 6, 1, 20, 3, 1), (8192, 30, 3, 40, 10, 3), (16_385, 30, 3, 40, 10, 3)],
)
def test_ten_words_are_common(
    generator, length, common, others, example_words, example_common, example_others
):
    sample = generator.sample("cwe", length, 4, 0)
    _, example, question = sample.prompt.split(LIST)
    forms = [(example, example_common, example_others), (question, common, others)]
    for part, often, rarely in forms:
        context = part.split("\n")[1]
        entries = re.findall(r"(\d+)\. (\S+)", context)
        assert " ".join(f"{number}. {word}" for number, word in entries) == context
        assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
        counts = Counter(word for _, word in entries)
        frequent = {word for word, count in counts.items() if count == often}
        assert len(frequent) == 10
        assert set(counts.values()) == {often, rarely}
        assert entries[: often * 10] != sorted(entries[: often * 10], key=lambda entry: entry[1])
        if part is example:
            assert len(counts) == example_words
            answer = part.split("appear most often in the list are: ")[1]
            assert re.fullmatch(r"(\d+\. [a-z]+ ){9}10\. [a-z]+\n", answer)
            assert {word for _, word in re.findall(r"(\d+)\. (\S+)", answer)} == frequent
        else:
            assert set(sample.answers) == frequent
            assert len(sample.answers) == 10
    assert question.endswith(
        "\nQuestion: What are the 10 most common words in the above list? "
        "Answer: The top 10 words that appear most often in the list are:"
    )


@pytest.mark.parametrize(("length", "common"), [(4095, 6), (4096, 30)])
def test_the_long_list_begins_at_4096_tokens(length, common):
    recipe = common_words_recipe(length, np.random.default_rng(0), Words(""), lambda text: len(text.split()))
    draft = recipe.build(50)
    counts = Counter(re.findall(r"\d+\. (\S+)", draft.body.split(LIST)[2]))
    assert [counts[word] for word in draft.answers] == [common] * 10
    assert len(counts) == 50


@pytest.mark.parametrize("length", [3000, 40_000])
def test_there_are_more_words_than_fit(length):
    def count(text):
        return len(text.split())

    recipe = common_words_recipe(length, np.random.default_rng(0), Words(""), count)
    assert length < count(recipe.build(recipe.largest).body) < 2 * length


def test_a_tokenizer_that_leaves_no_room_for_the_long_list_gets_the_short_one(tokenizer):
    samples = [Generator(tokenizer, "漢字").sample("cwe", 4096, 0, index) for index in range(3)]
    for sample in samples:
        counts = Counter(re.findall(r"\d+\. (\S+)", sample.prompt.split(LIST)[2]))
        assert sorted(counts.values(), reverse=True)[:11] == [6] * 10 + [1]
        assert len(counts) > 60


def test_common_words_are_invented_as_often_as_others(tokenizer):
    """Else a model could tell the answer by the kind of words."""
    words = "".join(chr(97 + place // 26) + chr(97 + place % 26) + "xx " for place in range(150))
    generator = Generator(tokenizer, words)
    common, others = [], []
    for index in range(20):
        sample = generator.sample("cwe", 9000, 0, index)
        listed = set(re.findall(r"\d+\. (\S+)", sample.prompt.split(LIST)[2]))
        common += [word.endswith("xx") for word in sample.answers]
        others += [word.endswith("xx") for word in listed - set(sample.answers)]
    assert 0.1 < np.mean(others) < 0.9
    assert abs(np.mean(common) - np.mean(others)) < 4 * np.sqrt(0.25 / 200)


@pytest.mark.parametrize("length", [700, 4096, 20_001])
def test_coded_words_follow_a_zeta_distribution(generator, length):
    sample = generator.sample("fwe", length, 4, 0)
    head = "track the frequency of each coded word. Find the three most frequently appeared coded words. "
    context = sample.prompt.split(head)[1].split("\nQuestion: Do not provide any explanation.")[0]
    words = context.split(" ")
    counts = Counter(words)
    (dots, most), *ranked = counts.most_common()
    assert dots == "..."
    assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked)
    assert {word for word, _ in ranked[:3]} == set(sample.answers)
    assert [counts[word] for word in sample.answers] == [count for _, count in ranked[:3]]
    assert ranked[2][1] > ranked[3][1]
    vocabulary = max(length // 50, 5)
    assert len(counts) <= vocabulary
    ranks = np.arange(1, vocabulary + 1)
    fitting = [
        size
        for size in range(most, 3 * most)
        if (size * ranks**-2.0 / zeta(2.0)).astype(int)[: len(counts)].tolist()
        == [most, *(count for _, count in ranked)]
    ]
    assert fitting
    assert words != sorted(words)


def test_the_third_coded_word_is_never_as_frequent_as_the_fourth():
    recipe = coded_words_recipe(2000, np.random.default_rng(0))
    for size in range(recipe.smallest, 200):
        draft = recipe.build(size)
        counts = Counter(draft.body.split("coded words. ")[1].split("\nQuestion")[0].split(" "))
        rest = [count for word, count in counts.items() if word not in ("...", *draft.answers)]
        assert min(counts[word] for word in draft.answers) > max(rest, default=0)
    assert recipe.smallest < 80


def test_invented_words_are_all_different():
    words = {invented(number) for number in range(343_000)}
    assert len(words) == 343_000
    assert all(re.fullmatch("([bdfgklmnprstvz][aeiou]){3}", word) for word in words)


def test_words_of_a_text_are_whole_small_latin_ones():
    text = "Alpha beta, gamma-delta epsilon's zeta_eta (theta) iota7 don’t café kappa.Lambda omicrons abc"
    assert Words(text).known == ["beta", "kappa", "omicrons", "theta"]
    more = Words(text).at_least(50)
    assert len(set(more)) == 50
    assert more[:4] == Words(text).known == Words(text).at_least(2)
    assert sorted(Words(invented(0)).at_least(3)) == sorted(invented(number) for number in range(3))
