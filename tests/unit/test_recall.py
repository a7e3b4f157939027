"""benchmarks/smollm2/recall.py: what is asked stands before it, and no wording of a known test."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "smollm2"))
import recall
import recall_facts
import recall_words as words

STORY = (
    "He looked at the harbour, and the captain said nothing for a while. Mr. Brown walked along the river!\n"
    '"Where is the ferry?" asked the miller. Nobody knew; it had\nleft at seven, in fog and rain.\n\n'
)
WORDS = [
    words.FIRST,
    words.LAST,
    words.NOUNS,
    words.ADJECTIVES,
    words.SYLLABLES,
]


@pytest.fixture(scope="module")
def tokenizer():
    model = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    model.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    model.decoder = decoders.ByteLevel()
    special = [AddedToken(f"<|im_{each}|>", special=True) for each in ("start", "end")]
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    model.train_from_iterator(
        [STORY, *words.STATEMENTS, *words.PLAIN_SENTENCES, *map(" ".join, WORDS)], trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=model, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def novels(tokenizer):
    """Sentences in random order with numbered words, so that passages differ; some hold a needle."""
    rng = np.random.default_rng(0)
    lines = [line for line in STORY.splitlines() if line]
    texts = []
    for count in (900, 40):
        drawn = rng.integers([len(lines), len(words.FIRST), len(words.LAST)], size=(count, 3))
        some = [f"{words.FIRST[j]} {n} {words.LAST[k]}: {lines[i]}" for n, (i, j, k) in enumerate(drawn)]
        some[100::100] = [f"{each} She lost her needle." for each in some[100::100]]
        texts.append("\n".join(some))
    return [np.array(tokenizer(text)["input_ids"], dtype=np.uint16) for text in texts]


def documents(tokenizer, novels, lengths=(512, 513, 1001, 2047), count=40):
    for length in lengths:
        for seed in range(count):
            yield (
                length,
                recall.make_document(np.random.default_rng([length, seed]), tokenizer, length, novels),
            )


def test_every_answer_stands_in_the_text_before_the_questions(tokenizer, novels):
    asked = 0
    for length, document in documents(tokenizer, novels):
        assert document.ids.shape == (length,)
        before = tokenizer.decode(document.ids[: document.questions_at])
        after = tokenizer.decode(document.ids[document.questions_at :])
        asked += len(document.answers)
        assert document.answers
        for answer in document.answers:
            assert answer in after
            assert answer.lower() in before.lower()  # one wording states the entity in capitals
    assert asked > 200


def test_facts_stand_whole_and_in_order_before_the_questions(tokenizer, novels):
    quotes = 0
    for _, document in documents(tokenizer, novels):
        ends = [0, *(end for _, end in document.facts)]
        assert all(start >= end for (start, _), end in zip(document.facts, ends, strict=False))
        assert ends[-1] <= document.questions_at
        quotes += not document.facts
        texts = [tokenizer.decode(document.ids[start:end]) for start, end in document.facts]
        text = "".join(texts)
        assert all(answer.lower() in text.lower() for answer in document.answers) or not document.facts
    assert 10 < quotes < 60  # a fifth of 160


def test_a_seed_determines_the_document(tokenizer, novels):
    def made(seed):
        return recall.recall_document(np.random.default_rng(seed), tokenizer, 1001, novels).tolist()

    assert all(made(seed) == made(seed) for seed in range(20))
    assert len({tuple(made(seed)) for seed in range(20)}) == 20


def test_no_wording_of_a_known_test_occurs(tokenizer, novels):
    known = (
        "pass key|passkey|pass-key|magic number|special magic|grass is green|needle|san francisco|coded text"
    )
    for _, document in documents(tokenizer, novels, lengths=(700, 1300), count=100):
        text = " ".join(tokenizer.decode(document.ids).split())
        assert "VAR " not in text
        assert not any(each in text.lower() for each in [*known.split("|"), "one of the special"])


def test_text_that_holds_such_wording_is_found():
    assert all(recall.forbidden(f"It is the San\nFrancisco {each}.") for each in recall.FORBIDDEN_PARTS)
    assert all(recall.forbidden(f"a {each.upper()} b") for each in recall.FORBIDDEN_PARTS)
    assert recall.forbidden("San\nFrancisco")
    assert recall.forbidden("VAR X = 3")
    assert not recall.forbidden("The locker number of Mara Voss is 4821; the samovar is hot.")


def test_there_is_enough_variety():
    assert len(set(words.STATEMENTS + words.LINES)) >= 30
    assert len({name for kinds in words.KINDS.values() for _, names in kinds for name in names}) >= 40
    assert len(words.FORMS) >= 12
    assert len(words.PLAIN_SENTENCES) >= 60
    kinds = recall_facts.Draw(np.random.default_rng(0), ["lantern"])
    assert {len(kinds.value("number")) for _ in range(400)} == set(range(1, 10))
    assert not any(
        recall.forbidden(text) for text in [*words.STATEMENTS, *words.LINES, *words.PLAIN_SENTENCES]
    )
