import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from skipwise.errors import RunError
from skipwise.evals import perplexity
from skipwise.evals.perplexity import perplexity_scores, token_losses


class Table(torch.nn.Module):
    """A model of next tokens: ``table[a, b]`` is the probability of b after a, whatever came before."""

    device = torch.device("cpu")

    def __init__(self, table):
        super().__init__()
        self.head = torch.nn.Linear(len(table), len(table), bias=False)
        self.head.weight.data = torch.tensor(table).log().T

    def base_model(self, input_ids, attention_mask, use_cache):
        return (torch.nn.functional.one_hot(input_ids, self.head.in_features).float(),)

    def get_output_embeddings(self):
        return self.head

    def forward(self, *, input_ids, attention_mask, use_cache, output_hidden_states):
        hidden = self.base_model(input_ids, attention_mask, use_cache)
        return SimpleNamespace(logits=self.head(hidden[0]), hidden_states=hidden)


TWO_TOKENS = [[0.9, 0.1], [0.4, 0.6]]


def tokens(seed, *counts, vocabulary=97):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, count).astype(np.int32) for count in counts]


def by_task(scores, task):
    return [score for score in scores if score["task"] == task]


def full_losses(model, document):
    """The same losses from the logits of the whole document at once."""
    token_ids = torch.from_numpy(document).long()[None]
    with torch.inference_mode():
        logits = model(token_ids, attention_mask=torch.ones_like(token_ids)).logits[0, :-1].double()
    return -logits.log_softmax(-1)[torch.arange(len(document) - 1), token_ids[0, 1:]].numpy()


def test_losses_by_hand():
    found = token_losses(Table(TWO_TOKENS), np.array([0, 1, 1, 0, 0]))
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx(-np.log([0.1, 0.6, 0.4, 0.9]), rel=1e-6)
    assert found.dtype == np.float64


def test_perplexity_by_hand():
    """exp of the mean loss of every scored token: 7 of them in the first 8, 2 in the last quarter."""
    document = np.array([0, 1, 1, 0, 0, 0, 0, 1, 1])
    scores = perplexity_scores(Table(TWO_TOKENS), [document], [8], name="m")
    after = {"perplexity": [0.1, 0.6, 0.4, 0.9, 0.9, 0.9, 0.1], "perplexity_last_quarter": [0.9, 0.1]}
    for task, probabilities in after.items():
        (score,) = by_task(scores, task)
        expected = math.prod(probabilities) ** (-1 / len(probabilities))
        assert score == {
            "model": "m",
            "task": task,
            "length": 8,
            "value": pytest.approx(expected, rel=1e-6),
            "n": 1,
            "stderr": 0.0,
        }


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(make_model):
    model = make_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    scores = perplexity_scores(model, tokens(0, 50, 61), [16, 48], name="m")
    assert [score["value"] for score in scores] == pytest.approx([97.0] * len(scores), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_one_pass_gives_every_shorter_window(make_model, family):
    """The identity the evaluation rests on, against one separate pass for each window."""
    model, (document,) = make_model(family), tokens(1, 61)
    scores = by_task(perplexity_scores(model, [document], [7, 16, 33, 61], name="m"), "perplexity")
    assert [score["length"] for score in scores] == [7, 16, 33, 61]
    for score in scores:
        separate = np.exp(full_losses(model, document[: score["length"]]).mean())
        assert score["value"] == pytest.approx(separate, rel=1e-4)
    assert len({round(score["value"], 3) for score in scores}) == 4


@pytest.mark.parametrize("chunk", [1, 10, 52, 1024])
def test_the_head_may_be_applied_in_chunks(make_model, monkeypatch, chunk):
    monkeypatch.setattr(perplexity, "HEAD_CHUNK", chunk)
    model, (document,) = make_model(), tokens(2, 53)
    assert token_losses(model, document)[1:] == pytest.approx(full_losses(model, document), rel=1e-4)


def test_the_mean_is_over_tokens_and_the_spread_over_documents(make_model):
    model, documents = make_model(), tokens(3, 40, 64, 50)
    scores = perplexity_scores(model, documents, [40], name="m")
    losses = np.array([full_losses(model, document[:40]) for document in documents])
    (whole,) = by_task(scores, "perplexity")
    value = np.exp(losses.mean())
    assert whole["value"] == pytest.approx(value, rel=1e-4)
    assert whole["stderr"] == pytest.approx(value * losses.mean(1).std(ddof=1) / math.sqrt(3), rel=1e-3)
    (last,) = by_task(scores, "perplexity_last_quarter")
    assert last["value"] == pytest.approx(np.exp(losses[:, 29:].mean()), rel=1e-4)  # tokens 30 .. 39


def test_buckets_double_and_are_scored_by_position(make_model):
    model, documents = make_model(), tokens(4, 64, 64)
    buckets = by_task(perplexity_scores(model, documents, [16, 32, 64], name="m"), "perplexity_bucket")
    assert [(bucket["start"], bucket["end"]) for bucket in buckets] == [
        (0, 4),
        (4, 8),
        (8, 16),
        (16, 32),
        (32, 64),
    ]
    losses = np.array([token_losses(model, document) for document in documents])
    for bucket in buckets:
        span = losses[:, max(bucket["start"], 1) : bucket["end"]]
        assert bucket["value"] == pytest.approx(np.exp(span.mean()), rel=1e-6)
        assert bucket["length"] == bucket["end"]


def test_a_length_uses_the_documents_that_reach_it(make_model):
    model, documents = make_model(), tokens(5, 20, 40, 39)
    scores = perplexity_scores(model, documents, [16, 40, 64], name="m")
    assert [(score["length"], score["n"]) for score in by_task(scores, "perplexity")] == [(16, 3), (40, 1)]
    (expected,) = by_task(perplexity_scores(model, documents[1:2], [40], name="m"), "perplexity")
    assert by_task(scores, "perplexity")[1]["value"] == expected["value"]
    assert max(bucket["end"] for bucket in by_task(scores, "perplexity_bucket")) <= 40


def test_no_document_no_score(make_model):
    assert perplexity_scores(make_model(), [], [16], name="m") == []
    assert perplexity_scores(make_model(), tokens(6, 3), [16], name="m") == []


def test_a_family_that_caps_its_logits_is_refused_by_name(make_model):
    sizes = {"layer_types": ["full_attention"] * 2, "num_key_value_heads": 2, "attn_implementation": "eager"}
    model = make_model("gemma2", final_logit_softcapping=2.0, **sizes)
    with pytest.raises(RunError, match=r"^Gemma2ForCausalLM changes its logits after the output head"):
        perplexity_scores(model, tokens(7, 20), [16], name="m")
    model = make_model("gemma2", final_logit_softcapping=None, **sizes)
    assert perplexity_scores(model, tokens(7, 20), [16], name="m")
