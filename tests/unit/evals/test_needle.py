"""The needle test on readers that find everything, nothing, or just what they should."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from planted import PlantedReader
from transformers import AutoTokenizer

import skipwise
from skipwise.errors import InputError
from skipwise.evals.local import LocalReader
from skipwise.evals.needle import FAR, KINDS, SEVERAL, SLACK, TASK, Haystack, Hidden, Needle
from skipwise.evals.reader import common_prefix
from skipwise.evals.run import evaluate
from skipwise.scores import Subject

SENTENCE = "The old man walked to the sea, number {}, and looked. Was it far? It was not! "
STORY = "".join(SENTENCE.format(number) for number in range(200))
NEEDLE = re.compile(r"\n(The magic number|The best thing to do in|One of the magic)[^\n]*\.\n")


@pytest.fixture(scope="module")
def tokenizer(demo_base):
    return AutoTokenizer.from_pretrained(demo_base)


def task(lengths=(400, 777), **changes):
    options = {"depths": 5, "kinds": list(KINDS), "trials": 2, "seed": 0, "texts": [STORY]} | changes
    return Needle(lengths=list(lengths), **options)


def prompts(work, tokenizer):
    items = work.items(PlantedReader(tokenizer))
    return [(each, each.what.prompt(tokenizer, each.length)) for each in items]


def split(tokenizer, prompt):
    """The haystack's text before, between and after the needles, the needles, and the question."""
    text = tokenizer.decode(prompt)
    assert text.startswith(TASK)
    body, question = text.removeprefix(TASK).rsplit("\n\n", 1)
    needles = [match.group().strip() for match in NEEDLE.finditer(body)]
    return re.split(NEEDLE.pattern.replace("(", "(?:"), body), needles, question


def find(tokenizer, before=10**9, known=SEVERAL):
    """Answers from the first ``known`` needles among the first ``before`` tokens of the prompt."""

    def say(prompt):
        _, _, question = split(tokenizer, prompt)
        _, needles, _ = split(tokenizer, prompt[:before] + tokenizer("\n\n?")["input_ids"])
        lead = question.split("? ")[1]
        if lead.endswith("are"):
            return " and ".join(needle.split()[-1] for needle in needles[:known])
        return next((needle.removeprefix(lead) for needle in needles), " no idea")

    return say


def test_prompts_have_the_exact_length_with_their_answer(tokenizer):
    for item, prompt in prompts(task((300, 411, 1_502)), tokenizer):
        assert len(prompt) + item.what.room == item.length
        answer = tokenizer(" " + item.what.hidden.answer)["input_ids"]
        assert len(answer) + SLACK <= item.what.room < 80


def test_needles_stand_between_sentences_at_their_depth_and_nothing_else_is_changed(tokenizer):
    for item, prompt in prompts(task((400, 1_502)), tokenizer):
        parts, needles, question = split(tokenizer, prompt)
        hidden = item.what.hidden
        assert needles == list(hidden.sentences)
        assert question == hidden.question
        assert len(needles) == (SEVERAL if "/several/" in item.key else 1)
        assert (STORY + "\n\n").startswith("".join(parts))
        for part in parts[:-1]:
            assert part == "" or part[-1] in ".?!"
        sizes = np.cumsum([len(tokenizer(part)["input_ids"]) for part in parts])
        longest = max(
            len(tokenizer(each)["input_ids"]) for each in re.findall(r"[^.?!]+.", parts[-1] + STORY)
        )
        step = (1 - item.what.depth) / len(needles)
        for number, size in enumerate(sizes[:-1]):
            depth = item.what.depth + number * step
            assert size == pytest.approx(depth * sizes[-1], abs=longest / 2 + 1)


def test_the_same_seed_hides_the_same(tokenizer):
    def all_of(**changes):
        return [prompt for _, prompt in prompts(task(**changes), tokenizer)]

    assert all_of(seed=3) == all_of(seed=3)
    assert all_of(seed=3) != all_of(seed=4)
    drawn = [item.what.hidden for item, _ in prompts(task(trials=3, kinds=["number", "several"]), tokenizer)]
    assert len({each.answer for each in drawn}) == len(drawn) == 2 * 5 * 3 * 2
    alone = {item.key: prompt for item, prompt in prompts(task([777], kinds=["several"]), tokenizer)}
    assert alone.items() <= {item.key: prompt for item, prompt in prompts(task(), tokenizer)}.items()


def test_prompts_come_in_an_order_that_shares_what_was_read(tokenizer):
    found = [prompt for _, prompt in prompts(task([1_502], trials=4), tokenizer)]

    def read(rows):
        return sum(len(row) - common_prefix([before, row]) for before, row in itertools.pairwise([[], *rows]))

    # half the haystack stands behind a needle on average, and the question
    assert read(found) < 0.56 * sum(map(len, found))


def test_a_model_that_copies_finds_everything(tokenizer):
    scores = evaluate(task(), PlantedReader(tokenizer, say=find(tokenizer)))
    assert {score.value for score in scores} == {1.0}
    assert len(scores) == 3 * 2 * (1 + 5)


def test_a_model_that_guesses_finds_nothing(tokenizer, make_model):
    model = make_model(vocab_size=2048, max_position_embeddings=512)
    reader = LocalReader(model, tokenizer, Subject(name="random"))
    scores = evaluate(task([400], depths=2, trials=1), reader)
    assert {score.value for score in scores} == {0.0}


def test_a_model_that_forgets_the_end_finds_the_upper_half_of_the_map(tokenizer):
    reader = PlantedReader(tokenizer, say=find(tokenizer, before=840))
    scores = evaluate(task([1_502]), reader)
    for kind, rows in itertools.groupby(scores, key=lambda score: score.subtask):
        whole, *by_depth = rows
        assert whole.depth is None
        assert [score.depth for score in by_depth] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert [score.n for score in (whole, *by_depth)] == [10, 2, 2, 2, 2, 2]
        assert {(score.task, score.length, score.model) for score in by_depth} == {
            ("needle", 1_502, "planted")
        }
        values = [score.value for score in by_depth]
        assert values == ([0.75, 0.5, 0.25, 0.0, 0.0] if kind == "several" else [1.0, 1.0, 1.0, 0.0, 0.0])
        assert whole.value == pytest.approx(np.mean(values))
        assert whole.samples == pytest.approx([value for value in values for _ in range(2)])


def test_some_of_several(tokenizer):
    scores = evaluate(task([400], kinds=["several"]), PlantedReader(tokenizer, say=find(tokenizer, known=3)))
    assert {score.value for score in scores} == {0.75}
    assert {score.subtask for score in scores} == {"several"}


@pytest.mark.parametrize(
    ("answer", "said", "share"),
    [
        ("1234567", " 1234567. The next day", 1),
        ("1234567", "**1234567**", 1),
        ("1234567", "1234567The", 1),
        ("1234567", " 12345678", 0),
        ("1234567", " 123456", 0),
        ("1234567", "", 0),
        ("1111111, 2222222, 3333333, 4444444", "4444444 and 2222222, 2222222, 9", 0.5),
        ("eat a pear near the chapel on a foggy Thursday", " EAT, a PEAR; chapel. Foggy thursday", 1),
        ("eat a pear near the chapel on a foggy Thursday", " a day on the sea, near a pear", 0.2),
        ("eat a pear near the chapel on a foggy Thursday", " eaten pears", 0),
    ],
)
def test_an_answer_is_searched_for_whole_words(answer, said, share):
    assert Hidden(("",), "", answer).share(said) == share


@pytest.mark.parametrize("kind", KINDS)
def test_needles_are_many(kind):
    drawn = [Hidden.draw(kind, np.random.default_rng(seed)) for seed in range(50)]
    assert len({each.answer for each in drawn}) > 40
    for each in drawn:
        assert each.share(" ".join(each.sentences)) == 1
        assert each.share(each.question) == 0


def test_a_long_haystack_is_made_of_all_texts_and_then_of_all_again(tokenizer):
    texts = ["One. Two.", "  \n", "Three? Four"]
    round_ = "One. Two.\n\n\n\nThree? Four\n\n"
    size = sum(len(tokenizer(text.strip() + "\n\n")["input_ids"]) for text in texts)
    once = Haystack.build(texts, tokenizer, size)
    assert once.rounds == 1
    assert tokenizer.decode(once.token_ids) == round_
    more = Haystack.build(texts, tokenizer, 2 * size + 1)
    assert more.rounds == 3
    assert tokenizer.decode(more.token_ids).startswith(2 * round_ + "One.")
    ends = [tokenizer.decode(more.token_ids[:end]) for end in more.ends]
    assert ends[:3] == ["", "One.", "One. Two."]
    assert round_.removesuffix(" Four\n\n") in ends
    assert round_ + "One." in ends
    assert len(set(ends)) == len(ends)

    enough, short = task([300]), task([300], texts=["A short story. It ends."])
    reader = PlantedReader(tokenizer)
    assert enough.items(reader)
    assert short.items(reader)
    assert enough.notes == []
    assert re.fullmatch(r"the haystack has its texts \d\d times over: they are too short", *short.notes)


def test_a_text_without_sentences_is_cut_where_the_needle_belongs(tokenizer):
    stack = Haystack.build(["word " * 2_000], tokenizer, 1_000)
    assert stack.place(0.5, 1_000) == 500
    assert stack.place(0.0, 1_000) == 0
    assert stack.place(0.1, 1_000) == 0  # FAR is farther than that
    assert FAR > 100


def test_real_source_code_has_places_enough(tokenizer):
    text = (Path(skipwise.__file__).parent / "scores.py").read_text()
    stack = Haystack.build([text], tokenizer, 1_500)
    assert max(np.diff(stack.ends[stack.ends < 1_500])) < 150


def test_what_cannot_be_asked_is_refused(tokenizer):
    reader = PlantedReader(tokenizer)
    with pytest.raises(InputError, match=r"--kinds 'number,word': must be of number, sentence, several"):
        task(kinds=["number", "word"]).items(reader)
    with pytest.raises(InputError, match=r"--kinds ''"):
        task(kinds=[]).items(reader)
    with pytest.raises(InputError, match="no text for a haystack: name some with --data"):
        task(texts=["", " \n"]).items(reader)
    with pytest.raises(InputError, match=r"needs (\d+) tokens .* length 100: evaluate longer") as error:
        task([100]).items(reader)
    needed = int(str(error.value).split("needs ")[1].split()[0])
    assert needed > 100
    slow = PlantedReader(type("Slow", (), {"is_fast": False})())
    with pytest.raises(InputError, match="Slow does not say where sentences end"):
        task().items(slow)


def test_what_decides_is_on_record(tokenizer):
    one = task([500, 300], source={"files": ["a.txt"]}).settings
    assert one["lengths"] == [300, 500]
    assert one["kinds"] == list(KINDS)
    assert one["files"] == ["a.txt"]
    assert one["texts"] != task([300, 500], texts=[STORY, "x"]).settings["texts"]
    assert one["texts"]["hash"] != task([300, 500], texts=[STORY + "x"]).settings["texts"]["hash"]
