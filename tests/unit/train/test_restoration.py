"""Taught rows against whole logits in float64, row by row, and what is left alone."""

import copy
import inspect
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from skipwise.config import AdapterRecipe
from skipwise.errors import InputError
from skipwise.rope import extend_rope
from skipwise.train.adapters import add_adapter
from skipwise.train.loss import chunk_the_loss
from skipwise.train.restoration import taught_by

VOCABULARY = 97
EQUAL = {"num_key_value_heads": 2}
FAMILIES = {
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {
        "num_key_value_heads": 1,
        "final_logit_softcapping": 0.5,
        "attn_implementation": "eager",
    },  # far from linear for these logits
    "granite": {"logits_scaling": 3.0} | EQUAL,
    "cohere": {"logit_scale": 0.3, "pad_token_id": 0} | EQUAL,
}


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
    return pair_of(make_model)


def pair_of(make_model, family="llama", **changes):
    teacher = make_model(family, **changes or EQUAL)
    config = extend_rope(teacher.config, 8 * teacher.config.max_position_embeddings, "yarn")
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        model = type(teacher)(copy.deepcopy(config)).train()
    with torch.no_grad():
        for own, known in zip(model.parameters(), teacher.parameters(), strict=True):
            own.add_(known / 2)
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


def outcome(model, given, items=None):
    """Loss and gradients by name."""
    model.zero_grad()
    loss = model(**given, num_items_in_batch=items, use_cache=False).loss
    loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return loss.item(), gradients


def outcome_by_hand(model, teacher, given, items=None):
    model.zero_grad()
    loss = by_hand(model, teacher, given, items)
    loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return loss.item(), gradients


def assert_equal(found, expected, rounding=1e-4):
    assert found[0] == pytest.approx(expected[0], rel=rounding / 10)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= rounding * gradient.norm(), name


@pytest.mark.parametrize("chunk", [0, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_scale_or_cap_their_logits(make_model, family, chunk):
    """The teacher's as well as the model's: each is seen with the other one's left alone."""
    model, teacher = pair_of(make_model, family, **FAMILIES[family])
    given = batch(model)
    expected = outcome_by_hand(model, teacher, given, 31)
    assert chunk_the_loss(model, chunk) is None
    with taught_by(model, teacher, chunk=chunk):
        assert_equal(outcome(model, given, 31), expected)


def test_the_teacher_scales_as_its_own_config_says(make_model):
    model, teacher = pair_of(make_model, "granite", logits_scaling=3.0, **EQUAL)
    teacher.config.logits_scaling = 0.7
    given = batch(model)
    expected = outcome_by_hand(model, teacher, given)
    with taught_by(model, teacher, chunk=8):
        assert_equal(outcome(model, given), expected)


def test_a_model_like_its_teacher_has_nothing_to_learn(make_model):
    model, teacher = make_model().train(), make_model()
    with taught_by(model, teacher):
        loss, gradients = outcome(model, batch(model, "sss"))
    assert abs(loss) < 1e-6
    assert max(each.abs().max() for each in gradients.values()) < 1e-6


def test_adapters_learn_from_the_model_without_them(pair):
    model, teacher = pair
    adapted = add_adapter(model, AdapterRecipe(rank=3, embeddings=True)).train()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=random) / 9)
    given = batch(model)
    expected = outcome_by_hand(adapted, teacher, given)
    assert chunk_the_loss(model, 8) is None
    with taught_by(adapted, teacher, chunk=8):
        found = outcome(adapted, given)
    assert_equal(found, expected)
    assert any("lora_A" in name for name in found[1])
    assert not any("base_layer" in name for name in found[1])


def test_gradient_checkpointing(pair):
    model, teacher = pair
    given = batch(model)
    expected = outcome_by_hand(model, teacher, given)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(
        {"use_reentrant": False}
    )
    with taught_by(model, teacher, chunk=8):
        assert_equal(outcome(model, given), expected)


def test_weights_in_bfloat16(pair):
    """The logits are; what is made of them is float32."""
    model, teacher = (each.to(torch.bfloat16) for each in pair)
    given = batch(model, "ss")
    expected = by_hand(model, teacher, given).item()
    with taught_by(model, teacher):
        loss = model(**given, use_cache=False).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_decoder_runs_once_and_the_teachers_only_on_its_rows(pair):
    model, teacher = pair
    seen = []
    for name, each in (("model", model), ("teacher", teacher)):
        each.model.layers[0].register_forward_pre_hook(
            lambda layer, args, name=name: seen.append((name, len(args[0]), torch.is_grad_enabled()))
        )
    with taught_by(model, teacher, chunk=4):
        seen.clear()
        outcome(model, batch(model, "slls"))
    assert seen == [("model", 4, True), ("teacher", 2, False)]
    assert not any(each.requires_grad or each.grad is not None for each in teacher.parameters())


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
    sizes = {"vocab_size": vocabulary, "hidden_size": 8, "intermediate_size": 8}
    model, teacher = make_model(**sizes).train(), make_model(seed=1, **sizes)
    given, found = batch(model, "sl", 120), []
    for size in (0, chunk):
        chunk_the_loss(model, size)
        with taught_by(model, teacher, chunk=size), LargestTensor() as seen:
            model(**given, use_cache=False).loss.backward()
        found.append(seen.largest)
    assert found[0] >= tokens // 2 * vocabulary
    assert found[1] == chunk * vocabulary


def test_evaluation_and_generation_are_stock(pair):
    model, teacher = pair
    given = batch(model)
    row = {name: value for name, value in given.items() if name != "taught"}
    untouched, expected = copy.deepcopy(model), inspect.signature(model.forward)
    with taught_by(model, teacher):
        assert inspect.signature(model.forward) == expected  # Trainer reads there what a model accepts
        assert torch.equal(model(row["input_ids"]).logits, untouched(row["input_ids"]).logits)  # a probe
        for each in (model, untouched):
            each.eval()
        assert torch.equal(model(**given).loss, untouched(**row).loss)
        prompt = row["input_ids"][:1, :5]
        options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
        assert torch.equal(model.generate(prompt, **options), untouched.generate(prompt, **options))
        assert torch.equal(model.train()(**row).loss, untouched.train()(**row).loss)  # no row is taught
    model.train()


@pytest.mark.parametrize("chunk", [0, 8])
def test_afterwards_the_model_is_as_it_was(pair, chunk):
    model, teacher = pair
    chunk_the_loss(model, chunk)
    before = vars(model).get("forward")
    for error in (None, ValueError):
        with pytest.raises(error) if error else nullcontext(), taught_by(model, teacher, chunk=chunk):
            assert vars(model)["forward"] is not before
            if error:
                raise error
        assert vars(model).get("forward") is before
    with taught_by(model, None):
        assert vars(model).get("forward") is before


def test_a_teacher_is_compiled_only_meanwhile(pair, monkeypatch):
    model, teacher = pair
    layers, compiled = [*teacher.model.layers], []
    for layer in layers:
        monkeypatch.setattr(layer, "compile", lambda layer=layer: compiled.append(layer), raising=False)
        layer._compiled_call_impl = layer._call_impl
    with taught_by(model, teacher, compiled=True):
        outcome(model, batch(model))
    assert compiled == layers
    assert not any("_compiled_call_impl" in vars(layer) for layer in layers)


def test_a_head_that_looks_at_the_tokens_is_refused(pair):
    model, teacher = pair
    stock = teacher.forward

    def forward(input_ids=None, **inputs):
        return stock(input_ids=input_ids[:, :], **inputs)

    teacher.forward = forward
    with pytest.raises(InputError) as error, taught_by(model, teacher):
        pass
    assert str(error.value).startswith(
        "data.beside: llama makes its logits not of hidden states alone (TypeE"
    )
    assert str(error.value).endswith("leave taught out")
    teacher.forward = stock
    teacher.lm_head.register_forward_hook(lambda head, args, logits: logits + teacher.seen)
    teacher.seen = 0
    teacher.model.register_forward_hook(lambda *_: setattr(teacher, "seen", teacher.seen + 1))
    with pytest.raises(InputError, match="would be off by"), taught_by(model, teacher):
        pass
