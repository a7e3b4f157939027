"""LongPPL against its definition, token by token, and on readers whose key tokens are known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import PlantedReader
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import skipwise
from skipwise.errors import InputError, RunError
from skipwise.evals.local import LocalReader
from skipwise.evals.longppl import LongPPL, covered, spans_of
from skipwise.evals.run import evaluate
from skipwise.scores import Subject


@pytest.fixture(scope="module")
def tokenizer(demo_base):
    return AutoTokenizer.from_pretrained(demo_base)


def remembers(row):
    """0.1 nats for a token that stands before it in the row, 5 for a new one."""
    return [0.1 if token in row[:place] else 5.0 for place, token in enumerate(row)]


def task(*documents, lengths, short, **options):
    return LongPPL(
        documents=[np.array(each) for each in documents], lengths=lengths, short_length=short, **options
    )


def of(scores):
    return {score.length: score for score in scores}


def test_by_hand():
    """Short contexts of 4 tokens, moved by 1. Tokens 9 and 3 come again: 9 after 6 others, 3 after 2.

    Only the second 9 is a key token: its first one is out of reach of the short context. The second 3 is
    foretold from the short context as well, all others from neither.
    """
    document = [0, 9, 1, 2, 3, 4, 5, 3, 9, 6, 7]
    judged = PlantedReader(None, lose=lambda row: 0.25 * np.arange(len(row)))
    evaluator = PlantedReader(None, lose=remembers)
    (score,) = evaluate(task(document, lengths=[11], short=4, evaluator=evaluator), judged)
    assert score.task == "longppl"
    assert score.length == 11
    assert score.value == pytest.approx(math.exp(0.25 * 8))
    assert score.samples == pytest.approx([2.0])
    assert score.n == 1


def test_itself_as_evaluator():
    reader = PlantedReader(None, lose=remembers)
    document = [0, 9, 1, 2, 3, 4, 5, 3, 9, 6, 7]
    (score,) = evaluate(task(document, lengths=[11], short=4), reader)
    assert score.value == pytest.approx(math.exp(0.1))
    assert reader.asked[0] == document  # once, and then its windows
    assert len(reader.asked) == 1 + 6
    assert {len(row) for row in reader.asked[1:]} == {5}


@pytest.mark.parametrize(
    ("gain", "long", "key"),
    [(2.01, 1.99, True), (1.99, 1.99, False), (2.01, 2.01, False), (30.0, 0.0, True), (-30.0, 1.0, False)],
)
def test_both_thresholds(gain, long, key):
    """A token is key when the long context brings more than 2 nats and leaves less than 2."""
    evaluator = PlantedReader(
        None, lose=lambda row: np.full(len(row), long if len(row) == 9 else long + gain)
    )
    judged = PlantedReader(None, lose=lambda row: np.ones(len(row)))
    work = task(range(9), lengths=[9], short=4, evaluator=evaluator)
    if key:
        assert evaluate(work, judged)[0].value == pytest.approx(math.e)
    else:
        with pytest.raises(RunError, match="no key token in 1 documents: none needs more than 4 tokens"):
            evaluate(work, judged)


def token_losses(model, row):
    with torch.inference_mode():
        logits = model(torch.tensor(row)[None]).logits[0, :-1].double()
    return [math.nan, *(-logits.log_softmax(-1)[range(len(row) - 1), row[1:]]).tolist()]


def written_by(model, length, seed):
    """A row that the model itself may say: its tokens can be foretold from all that stands before them."""
    row, generator = [seed], torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        while len(row) < length:
            likely = model(torch.tensor(row)[None]).logits[0, -1].softmax(-1)
            row.append(int(torch.multinomial(likely, 1, generator=generator)))
    return row


def key_tokens(model, row, short):
    """The definition, one token at a time: each short context begins at a multiple of the stride."""
    stride, long, found = short // 4, token_losses(model, row), []
    for place in range(short, len(row)):
        start = (place - short) // stride * stride
        alone = token_losses(model, row[start : place + 1])[-1]
        if alone - long[place] > 2 and long[place] < 2:
            found.append(place)
    return found


@pytest.mark.parametrize("length", [53, 64])  # the last window is cut short, or whole
def test_the_definition_on_a_model_whole_and_at_every_length(make_model, length):
    model, other = make_model(seed=3), make_model(seed=4)
    torch.nn.init.normal_(other.lm_head.weight, std=0.7, generator=torch.Generator().manual_seed(0))
    reader = LocalReader(model, None, Subject(name="m"))
    evaluator = LocalReader(other, None, Subject(name="e"))
    documents = [written_by(other, size, seed) for seed, size in enumerate((length, length, 40))]
    found = of(evaluate(task(*documents, lengths=[16, 40, length], short=16, evaluator=evaluator), reader))
    assert sorted(found) == [40, length]  # none of the first 20 tokens can be one
    for size, score in found.items():
        losses, counts = [], []
        for document in documents:
            if len(document) >= size:
                keys = key_tokens(other, document[:size], 16)
                losses.append([token_losses(model, document[:size])[place] for place in keys])
                counts.append(len(keys))
        assert sum(counts) > 5
        assert len(set(counts)) > 1
        assert score.value == pytest.approx(math.exp(np.mean(sum(losses, []))), rel=1e-4)  # noqa: RUF017
        assert score.samples == pytest.approx([np.mean(each) if each else 0.0 for each in losses], rel=1e-4)
        assert score.weights == pytest.approx(counts)
        assert score.n == len(counts)


def test_a_document_without_key_tokens_keeps_its_place():
    """So that document i of one model is compared with document i of another."""
    evaluator = PlantedReader(None, lose=remembers)
    judged = PlantedReader(None, lose=lambda row: np.full(len(row), float(row[0])))
    with_two, without = [1, 9, 8, 2, 3, 4, 5, 6, 9, 8], range(10)
    (score,) = evaluate(task(without, with_two, lengths=[10], short=4, evaluator=evaluator), judged)
    assert score.weights == (0.0, 2.0)
    assert score.samples == (0.0, 1.0)
    assert score.value == pytest.approx(math.e)


def test_what_decides_is_on_record(tokenizer):
    evaluator = PlantedReader(tokenizer, lose=remembers)
    evaluator.subject = Subject(name="e", path="some/model", revision="abc", tokenizer="t", window=99)
    work = task(range(10), lengths=[20, 10], short=8, evaluator=evaluator, source={"files": ["a.txt"]})
    assert work.settings["evaluator"]["path"] == "some/model"
    assert work.settings["evaluator"]["revision"] == "abc"
    assert work.settings["lengths"] == [10, 20]
    assert work.settings["stride"] == 2
    assert work.settings["files"] == ["a.txt"]
    assert task(range(10), lengths=[20], short=8).settings["evaluator"] == "self"
    assert task(range(11), lengths=[20], short=8).settings["documents"] != work.settings["documents"]


def test_what_cannot_be_measured_is_refused():
    reader = PlantedReader(None, lose=remembers)
    with pytest.raises(InputError, match=r"of 8 tokens needs lengths of at least 11: evaluate longer"):
        task(range(50), lengths=[10], short=8).items(reader)
    assert task(range(50), lengths=[11], short=8).items(reader)
    with pytest.raises(InputError, match="no document has 60 tokens: evaluate shorter lengths"):
        task(range(50), lengths=[10, 60], short=8).items(reader)
    evaluator = PlantedReader(None, lose=remembers)
    evaluator.subject = Subject(name="small", window=40)
    with pytest.raises(InputError, match="the evaluator small reads 40 tokens, not 50"):
        evaluate(task(range(50), lengths=[50], short=8, evaluator=evaluator), reader)


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of single characters, with a ^ before every text."""
    characters = {chr(code): code for code in range(32, 127)} | {"\n": 10, "?": 63}
    plain = Tokenizer(models.WordLevel(characters, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.post_processor = processors.TemplateProcessing(single="^ $A", special_tokens=[("^", 94)])
    return PreTrainedTokenizerFast(tokenizer_object=plain, clean_up_tokenization_spaces=False)


def test_another_tokenizer_chooses_by_characters(tokenizer, letters):
    """The evaluator reads letters and knows an upper-case letter when it was there before, far away."""
    evaluator = PlantedReader(
        letters, lose=lambda row: [0.1 if chr(x) in "QZ" and x in row[:i] else 5.0 for i, x in enumerate(row)]
    )
    evaluator.subject = Subject(name="letters", tokenizer="letters")
    reader = PlantedReader(tokenizer, lose=lambda row: np.arange(len(row)) / 100)
    reader.subject = Subject(name="m", tokenizer="bpe")
    text = "Q is here, Z is there: nothing else but words in lower case follows. Is it Q or = Z ?"
    document = tokenizer(text)["input_ids"]
    spelt = [tokenizer.decode([token]) for token in document]
    keys = [place for place, token in enumerate(spelt) if token.strip() in ("Q", "Z")]
    assert len(keys) == 4
    (score,) = evaluate(task(document, lengths=[len(document)], short=8, evaluator=evaluator), reader)
    assert score.samples[0] == pytest.approx(np.mean(keys[2:]) / 100)
    assert evaluator.asked[0] == [ord(each) for each in "^" + text]


def test_spans_are_those_of_the_tokens_in_the_text(tokenizer):
    text = Path(skipwise.__file__).parent.joinpath("errors.py").read_text() + "naïve – 日本語"
    tokens = tokenizer(text)["input_ids"]
    found, spans = spans_of(tokenizer, tokens)
    assert found == text
    assert len(spans) == len(tokens)
    for token, (first, end) in list(zip(tokens, spans, strict=True))[:50]:
        assert tokenizer.decode([token]).strip() == text[first:end].strip()
    cut, spans = spans_of(tokenizer, tokens[:-1])  # in the middle of a character
    assert len(spans) == len(tokens) - 1
    assert text.startswith(cut.rstrip("�"))


def test_a_start_token_is_no_part_of_the_text(tokenizer):
    class WithStart:
        is_fast = True
        decode = tokenizer.decode

        def __call__(self, text, add_special_tokens=True, **options):
            read = tokenizer(text, add_special_tokens=False, **options)
            return dict(read) | ({"input_ids": [7, *read["input_ids"]]} if add_special_tokens else {})

    body = tokenizer("def main():")["input_ids"]
    text, spans = spans_of(WithStart(), [7, *body])
    assert text == "def main():"
    assert spans[0].tolist() == [0, 0]
    assert spans[-1].tolist()[1] == len(text)


def test_a_tokenizer_that_does_not_read_its_text_back_is_refused(tokenizer):
    tokens = tokenizer("d")["input_ids"] + tokenizer("ef")["input_ids"]
    with pytest.raises(InputError, match="cannot be found in the text again: name an --evaluator with its"):
        spans_of(tokenizer, tokens * 10)

    class Slow:
        is_fast = False
        decode = tokenizer.decode
        __call__ = tokenizer.__call__

    with pytest.raises(InputError, match="cannot be found in the text again"):
        spans_of(Slow(), tokens)


def test_a_token_of_blanks_is_never_chosen():
    spans = np.array([[0, 1], [1, 2], [0, 2], [2, 2]])
    assert covered("a ", np.array([[0, 2]]), spans).tolist() == [True, False, True, False]
    assert not covered("a ", np.zeros((0, 2), dtype=int), spans).any()
