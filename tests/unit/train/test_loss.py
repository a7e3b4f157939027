import copy
import inspect
from types import MethodType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from skipwise.config import AdapterRecipe
from skipwise.train.adapters import add_adapter
from skipwise.train.loss import chunk_the_loss, loss_and_gradient

VOCABULARY = 97
EQUAL = {"num_key_value_heads": 2}
FAMILIES = {
    "llama": EQUAL,
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {
        "num_key_value_heads": 1,
        "final_logit_softcapping": 0.5,
        "attn_implementation": "eager",
    },  # far from linear for these logits
    "granite": {"logits_scaling": 3.0} | EQUAL,
    "cohere": {"logit_scale": 0.3, "pad_token_id": 0} | EQUAL,
    "mixtral": {"num_local_experts": 2, "pad_token_id": 0} | EQUAL,
}


def row_with_gap(rows=2, length=21):
    index = torch.arange(length).expand(rows, -1)
    tokens = (index * 7 + torch.arange(rows)[:, None] * 5) % VOCABULARY
    labels = tokens.clone()
    labels[0, 3:6] = labels[1, -2:] = -100
    return {
        "input_ids": tokens,
        "labels": labels,
        "position_ids": index + 300 * (index > 9),
        "attention_mask": torch.ones_like(tokens),
    }


def outcome(model, items=None, **changes):
    model.zero_grad()
    outputs = model(**row_with_gap() | changes, num_items_in_batch=items, use_cache=False)
    outputs.loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return outputs, gradients


def assert_equal(expected, found):
    assert found[0].loss.item() == pytest.approx(expected[0].loss.item(), rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("items", [None, torch.tensor(80), 33])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_stock(make_model, family, items):
    model = make_model(family, **FAMILIES[family]).train()
    expected = outcome(model, items)
    assert chunk_the_loss(model, 8) is None
    found = outcome(model, items)
    assert_equal(expected, found)
    assert expected[0].logits is not None
    assert found[0].logits is None


@pytest.mark.parametrize("chunk", [1, 5, 41, 42, 1000])
def test_any_chunk_will_do(make_model, chunk):
    model = make_model().train()
    expected = outcome(model)
    assert chunk_the_loss(model, chunk) is None
    assert_equal(expected, outcome(model))


def test_zero_leaves_the_model_alone(make_model):
    model = make_model()
    assert chunk_the_loss(model, 0) is None
    assert "forward" not in vars(model)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_and_activation_checkpointing_on_top(make_model, checkpointing):
    model = make_model()
    if checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(
            {"use_reentrant": False}
        )
    adapted = add_adapter(model, AdapterRecipe(rank=3, embeddings=True)).train()
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) / 9)
    expected = outcome(adapted)
    assert chunk_the_loss(model, 8) is None
    found = outcome(adapted)
    assert found[0].logits is None
    assert_equal(expected, found)
    assert all(gradient.any() for gradient in found[1].values())


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of every tensor made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, torch.Tensor):
                self.largest = max(self.largest, each.numel())
        return found


def test_no_tensor_of_tokens_by_vocabulary_is_made(make_model):
    tokens, vocabulary, chunk = 2 * 120, 1009, 16
    model = make_model(vocab_size=vocabulary, hidden_size=8, intermediate_size=8).train()
    row = row_with_gap(2, 120)
    found = []
    for size in (0, chunk):
        chunk_the_loss(model, size)
        with LargestTensor() as seen:
            model(**row, use_cache=False).loss.backward()
        found.append(seen.largest)
    stock, chunked = found
    assert stock >= tokens * vocabulary
    assert chunked == chunk * vocabulary  # the weights are 1009 x 8


def test_no_logits_wait_for_the_backward_pass(make_model):
    """Chunks whose logits are all kept until then would save nothing."""
    tokens, vocabulary = 2 * 120, 1009
    model = make_model(vocab_size=vocabulary, hidden_size=8, intermediate_size=8).train()
    found = []

    def count(each):
        found[-1] += each.numel() if each.shape[-1:] == (vocabulary,) else 0
        return each

    for size in (0, 16):
        chunk_the_loss(model, size)
        found.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda each: each):
            model(**row_with_gap(2, 120), use_cache=False)
    stock, chunked = found
    assert stock >= tokens * vocabulary
    assert chunked <= (8 + 2) * vocabulary  # the weights of the head, and the one token in each row


def test_evaluation_and_generation_see_logits(make_model):
    stock, model = make_model(), make_model()
    chunk_the_loss(model, 4)
    row = row_with_gap()
    expected, found = stock(**row), model(**row)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(model.train()(row["input_ids"]).logits, stock(row["input_ids"]).logits)
    prompt = row["input_ids"][:1, :5]
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    assert torch.equal(model.eval().generate(prompt, **options), stock.generate(prompt, **options))


def test_trainer_finds_what_the_model_accepts(make_model):
    model = make_model()
    expected = inspect.signature(model.forward)
    chunk_the_loss(model, 4)
    assert inspect.signature(model.forward) == expected


def test_a_copy_computes_with_its_own_weights(make_model):
    model = make_model().train()
    chunk_the_loss(model, 8)
    before = outcome(model)[0].loss.item()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert outcome(other)[0].loss.item() == pytest.approx(before, rel=1e-6)
    assert outcome(model)[0].loss.item() != pytest.approx(before, rel=1e-3)


def test_a_loss_that_is_no_sum_over_tokens_is_left_alone(make_model):
    """Mixtral adds a loss that balances its experts."""
    options = FAMILIES["mixtral"] | {"output_router_logits": True, "router_aux_loss_coef": 0.1}
    model = make_model("mixtral", **options).train()
    expected = outcome(model)
    said = chunk_the_loss(model, 8)
    assert said.startswith(
        "mixtral computes its loss from all logits at once: in chunks of 8 tokens its loss"
    )
    assert "forward" not in vars(model)
    assert_equal(expected, outcome(model))


def test_a_head_that_mixes_tokens_is_left_alone(make_model):
    """Same loss on the short row or not: the gradients tell."""
    model = make_model().train()
    model.lm_head.register_forward_hook(
        lambda module, args, logits: logits + logits.mean(dim=1, keepdim=True)
    )
    assert "would be off by" in chunk_the_loss(model, 8)
    assert "forward" not in vars(model)


def test_a_forward_that_cannot_be_called_so_is_left_alone(make_model):
    model = make_model().train()
    stock = model.forward
    mine = model.forward = lambda labels=None, **inputs: stock(
        labels=labels, input_ids=inputs["input_ids"], use_cache=False
    )
    assert "TypeError" in chunk_the_loss(model, 8)
    assert model.forward is mine


def test_a_forward_that_wants_to_see_its_input_can_be_cut(make_model):
    """Gemma 4 compares the lengths of its hidden states and its input, Gemma 3 refuses to have none."""
    model = make_model().train()
    expected = outcome(model)

    def forward(self, input_ids=None, inputs_embeds=None, **inputs):
        assert (input_ids if inputs_embeds is None else inputs_embeds).shape[1] > 0
        return type(self).forward(self, input_ids=input_ids, inputs_embeds=inputs_embeds, **inputs)

    model.forward = MethodType(forward, model)
    assert chunk_the_loss(model, 8) is None
    assert_equal(expected, outcome(model))


@pytest.mark.parametrize("training", [False, True])
def test_the_probe_leaves_no_trace(make_model, training):
    model = make_model(attention_dropout=0.5).train(training)
    random = torch.get_rng_state()
    loss, gradient = loss_and_gradient(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training is training
    assert all(weight.grad is None for weight in model.parameters())
    assert "forward" not in vars(model.model)
    assert not loss.requires_grad
    assert gradient.any()
    assert chunk_the_loss(model, 8) is None  # dropout drew the same twice
