import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from skipwise.errors import InputError
from skipwise.evals.passkey import FILLER, KEY_LINE, QUESTION, TASK, PromptBuilder, _found, passkey_scores


@pytest.fixture(scope="module")
def tokenizer(demo_base):
    return AutoTokenizer.from_pretrained(demo_base)


@pytest.fixture(scope="module")
def builder(tokenizer):
    return PromptBuilder(tokenizer)


class Reader:
    """Stands for a model: says at every place the token that ``say(token_ids, place)`` names."""

    device = torch.device("cpu")

    def __init__(self, say):
        self.say = say
        self.seen = []

    def __call__(self, *, input_ids, attention_mask, logits_to_keep, use_cache):
        assert attention_mask.shape == input_ids.shape
        assert attention_mask.all()
        tokens = input_ids[0].tolist()
        self.seen.append(tokens)
        places = range(len(tokens) - logits_to_keep, len(tokens))
        said = torch.tensor([self.say(tokens, place) for place in places])
        return SimpleNamespace(logits=torch.nn.functional.one_hot(said, 2048)[None].float())


def copy_key(tokenizer):
    """Say what followed these words where they stood first, as an induction head would."""
    lead = tokenizer(KEY_LINE.split("{")[0], add_special_tokens=False)["input_ids"][-3:]

    def say(tokens, place):
        start = max(i for i in range(place - 2) if tokens[i : i + 3] == lead) + 3  # after the question's "is"
        first = next(i for i in range(len(tokens)) if tokens[i : i + 3] == lead) + 3
        return tokens[first + place - start + 1] if place >= start else tokens[first]

    return say


@pytest.mark.parametrize("length", [131, 256, 777])
@pytest.mark.parametrize("depth", [0.0, 0.31, 1.0])
def test_prompts_have_the_exact_length_and_end_with_the_answer(tokenizer, builder, length, depth):
    prompt = builder.build(length, depth, 60417)
    assert len(prompt.token_ids) == length
    text = tokenizer.decode(prompt.token_ids)
    assert text.startswith(TASK)
    assert text.endswith(f"\n{QUESTION} 60417")
    assert tokenizer.decode(prompt.token_ids[-prompt.answer_length :]) == " 60417"
    assert text.count(KEY_LINE.format(key=60417)) == 1
    assert text.count("60417") == 3


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_the_key_stands_at_the_depth_asked_for(tokenizer, builder, depth):
    prompt = builder.build(900, depth, 12345)
    text = tokenizer.decode(prompt.token_ids)
    before, after = text.removeprefix(TASK).split(KEY_LINE.format(key=12345))
    after = after.removesuffix(f"{QUESTION} 12345")
    first, second = (
        len(tokenizer(each.strip("\n"), add_special_tokens=False)["input_ids"]) for each in (before, after)
    )
    assert first / (first + second) == pytest.approx(depth, abs=0.01)


def test_the_filler_is_the_papers_over_and_over(tokenizer, builder):
    text = tokenizer.decode(builder.build(700, 1.0, 12345).token_ids)
    haystack = text[len(TASK) + 1 : text.index("\n" + KEY_LINE.format(key=12345))]
    assert (FILLER + " ") * (len(haystack) // len(FILLER) + 1) != haystack
    assert ((FILLER + " ") * 99).startswith(haystack)


def test_the_shortest_length_works_and_one_token_less_is_refused(tokenizer, builder):
    with pytest.raises(InputError, match=r"needs (\d+) tokens .* length 30: evaluate longer") as error:
        builder.build(30, 0.5, 12345)
    needed = int(str(error.value).split("needs ")[1].split()[0])
    assert tokenizer.decode(builder.build(needed, 0.5, 12345).token_ids).endswith("is 12345")
    with pytest.raises(InputError, match=f"needs {needed} tokens"):
        builder.build(needed - 1, 0.5, 12345)


def test_a_bos_token_comes_first_and_counts(tokenizer):
    class WithStart:
        def __call__(self, text, add_special_tokens=True):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [7, 7, *ids, 9] if add_special_tokens else ids}

    token_ids = PromptBuilder(WithStart()).build(256, 0.5, 12345).token_ids
    assert token_ids[:2] == [7, 7]
    assert 9 not in token_ids[-1:]
    assert len(token_ids) == 256


def test_every_model_gets_the_same_prompts(tokenizer):
    def prompts(seed):
        reader = Reader(lambda tokens, place: 0)
        passkey_scores(reader, tokenizer, [256, 300], name="m", trials=7, seed=seed)
        return reader.seen

    assert prompts(3) == prompts(3)
    assert prompts(3) != prompts(4)
    assert len({tuple(tokens) for tokens in prompts(3)}) == 14


def test_a_reader_of_the_key_scores_one(tokenizer):
    scores = passkey_scores(Reader(copy_key(tokenizer)), tokenizer, [200], name="m", trials=11, seed=0)
    assert {score["value"] for score in scores} == {1.0}


@pytest.mark.parametrize("digit", [0, -1])
def test_one_wrong_token_fails_the_trial(tokenizer, builder, digit):
    right = copy_key(tokenizer)
    answer = range(builder.build(256, 0.5, 12345).answer_length)
    assert len(answer) > 1

    def say(tokens, place):
        wrong = place == len(tokens) - len(answer) + answer[digit]
        return (right(tokens, place) + wrong) % 2048

    assert _found(Reader(right), builder.build(256, 0.5, 12345))
    assert not _found(Reader(say), builder.build(256, 0.5, 12345))


def test_a_model_that_guesses_scores_nothing(tokenizer, make_model):
    model = make_model(vocab_size=2048)
    scores = passkey_scores(model, tokenizer, [200], name="m", trials=5, seed=0)
    assert {score["value"] for score in scores} == {0.0}


def test_scores_by_depth_add_up_to_the_score(tokenizer):
    right = copy_key(tokenizer)
    failing = iter([True, False, False] * 10 + [False] * 16)

    class Sometimes(Reader):
        def __call__(self, **arguments):
            self.wrong = next(failing)
            return super().__call__(**arguments)

    model = Sometimes(lambda tokens, place: 0 if model.wrong else right(tokens, place))
    scores = passkey_scores(model, tokenizer, [150, 200], name="m", trials=23, seed=0)
    for length, expected in ((150, 15 / 23), (200, 21 / 23)):
        whole, *parts = [score for score in scores if score["length"] == length]
        assert whole["task"] == "retrieval"
        assert whole["value"] == pytest.approx(expected)
        assert whole["stderr"] == pytest.approx(math.sqrt(expected * (1 - expected) / 23))
        assert {part["task"] for part in parts} == {"retrieval_at_depth"}
        assert [part["depth"] for part in parts] == pytest.approx(np.linspace(0, 1, 10))
        assert [part["n"] for part in parts] == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
        assert sum(part["value"] * part["n"] for part in parts) / 23 == pytest.approx(expected)


def test_few_trials_still_span_the_depths(tokenizer):
    scores = passkey_scores(Reader(lambda *_: 0), tokenizer, [150], name="m", trials=3, seed=0)
    assert [score["depth"] for score in scores[1:]] == [0.0, 0.5, 1.0]


def test_the_verdict_is_that_of_greedy_decoding(tokenizer, builder, demo_base):
    """The trained model that comes with the package finds some keys and misses others."""
    model = AutoModelForCausalLM.from_pretrained(demo_base).eval()
    verdicts = []
    for trial, length in enumerate([240, 256, 260, 270, 280, 290, 300, 320, 400, 512]):
        prompt = builder.build(length, trial / 9, 10_000 + 8_642 * trial)
        question = torch.tensor([prompt.token_ids[: -prompt.answer_length]])
        written = model.generate(
            question,
            attention_mask=torch.ones_like(question),
            max_new_tokens=prompt.answer_length,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        found = written[0, question.shape[1] :].tolist() == prompt.token_ids[-prompt.answer_length :]
        assert _found(model, prompt) == found
        verdicts.append(found)
    assert 2 <= sum(verdicts) <= 8
