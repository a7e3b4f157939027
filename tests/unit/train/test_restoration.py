import copy

import pytest
import torch

from skipwise.rope import extend_rope
from skipwise.train.loss import chunk_the_loss
from skipwise.train.restoration import taught_by

VOCABULARY = 97


def batch(model, rows="sls", length=19):
    """Taught rows (s) and others with a skip (l), with labels missing here and there."""
    window = 256
    index = torch.arange(length).expand(len(rows), -1)
    tokens = (index * 7 + torch.arange(len(rows))[:, None] * 5) % VOCABULARY
    labels = tokens.clone()
    labels[0, 3:6] = labels[-1, -2:] = -100
    far = torch.tensor([kind == "l" for kind in rows])[:, None]
    return {
        "taught": ~far[:, 0],
        "input_ids": tokens,
        "labels": labels,
        "position_ids": index + window * (far & (index > 9)),
        "attention_mask": torch.ones_like(tokens),
    }


@pytest.fixture
def pair(make_model):
    """The untouched model, and a copy of other weights that is to be trained."""
    teacher = make_model("llama", num_key_value_heads=2)
    config = extend_rope(teacher.config, 8 * teacher.config.max_position_embeddings, "yarn")
    model = type(teacher)(copy.deepcopy(config)).train()
    return model, teacher


def by_hand(model, teacher, given, items=None):
    """Row by row in float64, from whole logits of the stock models."""
    ahead = torch.nn.functional.pad(given["labels"], (0, 1), value=-100)[:, 1:]
    counted, total = ahead != -100, 0.0
    inputs = {key: value for key, value in given.items() if key not in ("labels", "taught")}
    found = model(**inputs).logits.double().log_softmax(-1)
    with torch.no_grad():
        known = teacher(**inputs).logits.double().softmax(-1)
    for row in range(len(ahead)):
        for place in counted[row].nonzero()[:, 0]:
            if given["taught"][row]:
                p = known[row, place]
                total = total + (p * (p.log() - found[row, place])).sum()
            else:
                total = total - found[row, place, ahead[row, place]]
    return total / (items or int(counted.sum()))


@pytest.mark.parametrize("rows", ["sls", "ss", "ll", "l", "s"])
@pytest.mark.parametrize("chunk", [0, 4, 1024])
@pytest.mark.parametrize("items", [None, 31])
def test_loss_and_gradient_are_those_made_by_hand(pair, rows, chunk, items):
    model, teacher = pair
    given = batch(model, rows)
    expected = by_hand(model, teacher, given, items)
    expected.backward()
    gradients = [each.grad.clone() for each in model.parameters()]
    model.zero_grad()
    assert chunk_the_loss(model, chunk) is None
    with taught_by(model, teacher, chunk=chunk):
        loss = model(**given, num_items_in_batch=items).loss
        loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, each in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(each.grad, gradient, rtol=1e-4, atol=1e-6)
