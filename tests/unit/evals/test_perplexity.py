import math

import numpy as np
import pytest
import torch
from planted import PlantedReader

from skipwise.errors import InputError
from skipwise.evals.local import LocalReader
from skipwise.evals.perplexity import Perplexity, SlidingPerplexity, windows
from skipwise.evals.run import evaluate

TWO_TOKENS = np.array([[0.9, 0.1], [0.4, 0.6]])
"""The probability of each token after each: a model whose perplexity can be computed by hand."""


def table(row):
    return np.concatenate([[np.nan], -np.log(TWO_TOKENS[row[:-1], row[1:]])])


def of_task(scores, task):
    return [score for score in scores if score.task == task]


def tokens(seed, *counts, vocabulary=97):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, count).astype(np.int32) for count in counts]


def full_losses(model, document):
    """The losses of tokens 1 .. from the logits of the whole document at once, in float64."""
    token_ids = torch.from_numpy(np.asarray(document)).long()[None]
    with torch.inference_mode():
        logits = model(token_ids, attention_mask=torch.ones_like(token_ids)).logits[0, :-1].double()
    return -logits.log_softmax(-1)[torch.arange(len(document) - 1), token_ids[0, 1:]].numpy()


def by_position(model, documents, lengths):
    reader = model if isinstance(model, PlantedReader) else LocalReader(model, None)
    return evaluate(Perplexity(documents=documents, lengths=lengths), reader)


def test_perplexity_by_hand():
    """exp of the mean loss of every scored token: 7 of them in the first 8, 2 in the last quarter."""
    document = np.array([0, 1, 1, 0, 0, 0, 0, 1, 1])
    scores = by_position(PlantedReader(None, lose=table), [document], [8])
    after = {"perplexity": [0.1, 0.6, 0.4, 0.9, 0.9, 0.9, 0.1], "perplexity_last_quarter": [0.9, 0.1]}
    for task, probabilities in after.items():
        (score,) = of_task(scores, task)
        expected = math.prod(probabilities) ** (-1 / len(probabilities))
        assert score.value == pytest.approx(expected, rel=1e-9)
        assert (score.model, score.length, score.n, score.stderr) == ("planted", 8, 1, 0.0)
        assert score.samples == pytest.approx([math.log(expected)])


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(make_model):
    model = make_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    scores = by_position(model, tokens(0, 50, 61), [16, 48])
    assert [score.value for score in scores] == pytest.approx([97.0] * len(scores), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "gemma2"])
def test_one_pass_gives_every_shorter_window(make_model, family):
    """The identity the evaluation rests on, against one separate pass for each window."""
    eager = {"attn_implementation": "eager", "num_key_value_heads": 1} if family == "gemma2" else {}
    model, (document,) = make_model(family, **eager), tokens(1, 61)
    scores = of_task(by_position(model, [document], [7, 16, 33, 61]), "perplexity")
    assert [score.length for score in scores] == [7, 16, 33, 61]
    for score in scores:
        separate = np.exp(full_losses(model, document[: score.length]).mean())
        assert score.value == pytest.approx(separate, rel=1e-4)
    assert len({round(score.value, 3) for score in scores}) == 4


def test_the_mean_is_over_tokens_and_the_spread_over_documents(make_model):
    model, documents = make_model(), tokens(3, 40, 64, 50)
    scores = by_position(model, documents, [40])
    losses = np.array([full_losses(model, document[:40]) for document in documents])
    (whole,) = of_task(scores, "perplexity")
    value = np.exp(losses.mean())
    assert whole.value == pytest.approx(value, rel=1e-4)
    assert whole.stderr == pytest.approx(value * losses.mean(1).std(ddof=1) / math.sqrt(3), rel=1e-3)
    assert whole.samples == pytest.approx(losses.mean(1), rel=1e-4)
    (last,) = of_task(scores, "perplexity_last_quarter")
    assert last.value == pytest.approx(np.exp(losses[:, 29:].mean()), rel=1e-4)  # tokens 30 .. 39


def test_buckets_double_and_are_scored_by_position(make_model):
    model, documents = make_model(), tokens(4, 64, 64)
    buckets = of_task(by_position(model, documents, [16, 32, 64]), "perplexity_bucket")
    assert [(each.start, each.length) for each in buckets] == [(0, 4), (4, 8), (8, 16), (16, 32), (32, 64)]
    losses = np.array([full_losses(model, document) for document in documents])
    for each in buckets:
        expected = np.exp(losses[:, max(each.start - 1, 0) : each.length - 1].mean())
        assert each.value == pytest.approx(expected, rel=1e-4)


def test_a_length_uses_the_documents_that_reach_it():
    lose = lambda row: np.full(len(row), float(len(row)))  # noqa: E731
    scores = by_position(PlantedReader(None, lose=lose), tokens(5, 100, 31), [30, 60, 200])
    perplexity = {score.length: (score.n, score.value) for score in of_task(scores, "perplexity")}
    assert perplexity == {30: (2, pytest.approx(math.exp(65.5))), 60: (1, pytest.approx(math.exp(100.0)))}
    assert {score.length for score in scores} == {12, 25, 30, 50, 60, 100}  # nothing at 200


@pytest.mark.parametrize(
    ("total", "length", "stride"), [(10, 4, 3), (9, 4, 2), (7, 7, 6), (5, 8, 3), (64, 9, 1)]
)
def test_windows_score_every_token_once_with_room_before_it(total, length, stride):
    found = windows(total, length, stride)
    scored = [start + each for start, end, first in found for each in range(first, end - start)]
    assert scored == list(range(1, total))
    for start, end, first in found[1:]:
        assert end - start == length
        assert first >= length - stride
    assert [end for _, end, _ in found] == [min(length + stride * i, total) for i in range(len(found))]


@pytest.mark.parametrize("stride", [1, 5, 15])
def test_a_sliding_window_matches_its_definition(make_model, stride):
    """Token t of a document is predicted in the first window that reaches it; one pass a window, and the
    mean over all tokens of all documents."""
    model, documents = make_model(), tokens(6, 40, 53, 11)
    losses = []
    for document in documents[:2]:  # the last one is shorter than the window
        end = 0
        while end < len(document):
            until = min(16 if end == 0 else end + stride, len(document))
            begin = max(0, until - 16)
            window = full_losses(model, document[begin:until])
            losses += list(window[max(end - begin - 1, 0) :])
            end = until
    assert len(losses) == 40 + 53 - 2
    task = SlidingPerplexity(documents=documents, lengths=[16], stride=stride)
    (score,) = evaluate(task, LocalReader(model, None))
    assert score.value == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    assert score.weights == (39.0, 52.0)
    assert score.task == "sliding_perplexity"


def test_averaging_over_windows_would_be_another_number(make_model):
    """The mistake of other implementations: the last window of a document scores few tokens."""
    model, documents = make_model(), tokens(7, 41)
    spans = windows(41, 16, 8)
    means = [full_losses(model, documents[0][a:b])[first - 1 :].mean() for a, b, first in spans]
    task = SlidingPerplexity(documents=documents, lengths=[16], stride=8)
    (score,) = evaluate(task, LocalReader(model, None))
    assert abs(math.log(score.value) - np.mean(means)) > 1e-3


def test_the_spread_of_weighted_documents_is_that_of_a_ratio():
    """Against the jackknife, which knows no formula."""
    rng = np.random.default_rng(8)
    documents = tokens(8, *rng.integers(20, 200, size=60))
    lose = lambda row: np.full(len(row), 1 + row[3] / 97)  # noqa: E731
    task = SlidingPerplexity(documents=documents, lengths=[20], stride=19)
    (score,) = evaluate(task, PlantedReader(None, lose=lose))
    weight, value = np.array(score.weights), np.array(score.samples)
    left_out = [np.average(np.delete(value, i), weights=np.delete(weight, i)) for i in range(60)]
    jackknife = math.sqrt(59 / 60 * np.sum((left_out - np.mean(left_out)) ** 2))
    assert score.stderr == pytest.approx(score.value * jackknife, rel=0.05)


@pytest.mark.parametrize("stride", [0, 16])
def test_a_stride_that_skips_tokens_is_refused(stride):
    task = SlidingPerplexity(documents=tokens(9, 40), lengths=[16, 32], stride=stride)
    with pytest.raises(InputError, match=f"a stride of {stride} does not fit windows of 16 tokens"):
        evaluate(task, PlantedReader(None))


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (
            Perplexity(documents=tokens(10, 40, 1), lengths=[41]),
            "no document has 41 tokens: evaluate shorter",
        ),
        (Perplexity(documents=[], lengths=[41]), "no document has 41 tokens"),
        (Perplexity(documents=tokens(10, 40), lengths=[1, 8]), "a length of 1 has no token to score"),
        (
            SlidingPerplexity(documents=tokens(10, 40), lengths=[41, 50], stride=3),
            "no document has 41 tokens",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(task, words):
    with pytest.raises(InputError, match=words):
        evaluate(task, PlantedReader(None))


def test_a_window_that_no_document_fills_has_no_score(make_model):
    task = SlidingPerplexity(documents=tokens(11, 40, 30), lengths=[16, 35, 41], stride=5)
    scores = evaluate(task, LocalReader(make_model(), None))
    assert [(score.length, score.n) for score in scores] == [(16, 2), (35, 1)]
    by_position = Perplexity(documents=task.documents, lengths=[16, 41, 1_000])
    assert task.notes == ("No document is long enough for 41 tokens (the longest has 40): no score there.",)
    assert by_position.notes[0].startswith("No document is long enough for 41, 1,000 tokens")
    assert Perplexity(documents=task.documents, lengths=[16, 40]).notes == ()
