import sys

import pytest
import torch
from transformers import Trainer

from skipwise.config import AdapterRecipe, TrainingRecipe
from skipwise.errors import InputError
from skipwise.train import optimizers
from skipwise.train.adapters import add_adapter
from skipwise.train.arguments import training_arguments
from skipwise.train.optimizers import StochasticAdamW, hashed, optimizer_for, stochastically_rounded

COUNT = 4099


def gradients(steps, scale=lambda step: 1.0, seed=1):
    """Noise around 0.3: every weight is pushed down, by very different amounts."""
    random = torch.Generator().manual_seed(seed)
    return [scale(step) * (torch.randn(COUNT, generator=random) + 0.3) for step in range(steps)]


def run(kind, dtype, pushes, start=1.0, **options):
    """The weights and the optimizer after one step a gradient."""
    weight = torch.nn.Parameter(torch.full((COUNT,), start, dtype=dtype))
    optimizer = kind([weight], **{"lr": 1e-5, "weight_decay": 0.0} | options)
    for push in pushes:
        weight.grad = push.to(dtype)
        optimizer.step()
    return weight.detach().float(), optimizer.state[weight]


def random_bits(count, seed=0):
    return hashed(torch.arange(count, dtype=torch.int32), torch.tensor(seed, dtype=torch.int32))


def test_rounding_keeps_the_mean_and_chooses_a_neighbour():
    for value in (1 + 0.3 * 2**-7, -3.1, 1e-30, 0.0):
        found = stochastically_rounded(torch.full((40000,), value), random_bits(40000)).float()
        step = abs(value) * 2**-7
        assert found.mean().item() == pytest.approx(value, abs=4 * step / 200)
        assert (found - value).abs().max() <= step
        assert len(found.unique()) <= 2


def test_rounding_leaves_what_bfloat16_holds():
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 2.0**-126, float("inf"), -float("inf")])
    assert torch.equal(stochastically_rounded(values, random_bits(7)).float(), values)


@pytest.mark.parametrize("seed", [0, 1, -5, 2**31 - 1])
def test_hashed_bits_are_uniform_and_independent(seed):
    count = 2**18
    bits = random_bits(count, seed)
    each = torch.stack([(bits >> place) & 1 for place in range(32)]).double()
    assert (each.mean(1) - 0.5).abs().max() < 5 * 0.5 / count**0.5
    neighbours = torch.cat([each[:, 1:], each[:, :-1]])
    correlation = (torch.corrcoef(neighbours) - torch.eye(64)).abs().max()
    assert correlation < 6 / count**0.5


def test_hashed_bits_are_those_of_the_published_function():
    """lowbias32 in Python's integers, of an index and a seed whose product and sum wrap around."""
    for index, seed in ((0, 1), (77, -9), (2**31 - 1, 2**31 - 1)):
        word = (index * 0x9E3779B9 + seed) % 2**32
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            word = ((word ^ (word >> shift)) * factor) % 2**32
        word ^= word >> 16
        found = hashed(torch.tensor(index, dtype=torch.int32), torch.tensor(seed, dtype=torch.int32))
        assert found.item() % 2**32 == word


def test_one_kernel_for_all_lengths_and_no_numbers_of_64_bits_but_lengths():
    graphs = []

    def keep(graph, inputs):
        graphs.append([each for each in inputs if not isinstance(each, torch.Tensor)])
        return graph.forward

    update = optimizers._adamw_compiled(keep)
    numbers = torch.tensor(
        optimizers._numbers({"betas": (0.9, 0.9), "lr": 1, "eps": 1, "weight_decay": 0}, 1)
    )
    seeds = torch.tensor(optimizers._words(1, 0)).to(torch.int32)
    for count in (COUNT, 2 * COUNT, 17):
        update(*(torch.rand(count).to(torch.bfloat16) for _ in range(4)), numbers, seeds)
    assert [len(found) for found in graphs] == [2]  # of the tensors, and of the random words


def test_a_compiled_update_is_taken_only_if_it_works():
    def fails(*tensors):
        raise RuntimeError("CompilationError: at 89:12:\nCannot bitcast")

    def does_nothing(*tensors):
        pass

    def works(*tensors):
        optimizers._adamw_in_pieces(*tensors)

    here = torch.device("cpu")
    assert optimizers._tried(works, here) is works
    for wrong, words in ((fails, "at 89:12:$"), (does_nothing, "other numbers in")):
        with pytest.warns(UserWarning, match=f"is not compiled, and slower: .*{words}"):
            assert optimizers._tried(wrong, here) is optimizers._adamw_in_pieces
    assert optimizers._update_on(here) is optimizers._adamw_in_pieces


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch about itself
def test_the_compiled_update_is_the_same():
    def tensors():
        random = torch.Generator().manual_seed(0)
        made = [torch.randn(COUNT, generator=random).to(torch.bfloat16) for _ in range(3)]
        return [*made, torch.rand(COUNT, generator=random).to(torch.bfloat16)]

    group = {"betas": (0.9, 0.999), "lr": 1e-3, "eps": 1e-8, "weight_decay": 0.1}
    numbers = torch.tensor(optimizers._numbers(group, 3))
    seeds = torch.tensor(optimizers._words(3, 0)).to(torch.int32)
    expected, found = tensors(), tensors()
    optimizers._adamw_in_pieces(*expected, numbers, seeds)
    optimizers._adamw_compiled()(*found, numbers, seeds)
    for one, other in zip(expected, found, strict=True):
        assert (one != other).float().mean() < 1e-3  # fused products round once


def test_small_updates_do_not_vanish():
    """Each is 1/400 of the distance to the next bfloat16 number; plain rounding loses every one of them."""
    pushes = gradients(300)
    exact, _ = run(torch.optim.AdamW, torch.float32, pushes)
    lost, _ = run(torch.optim.AdamW, torch.bfloat16, pushes)
    found, _ = run(StochasticAdamW, torch.bfloat16, pushes)
    moved = (exact - 1).mean().item()
    assert abs(moved) < 2**-9  # altogether less than half of that distance
    assert torch.equal(lost, torch.ones(COUNT))
    assert (found - 1).mean().item() == pytest.approx(moved, rel=0.1)


def test_the_second_moment_falls_when_the_gradients_do():
    """Rounded to the nearest it never falls: a thousandth is less than half a unit in the last place."""
    pushes = gradients(900, scale=lambda step: 1.0 if step < 300 else 0.1)
    exact, lost, found = (
        run(kind, dtype, pushes)[1]["exp_avg_sq"].float().mean().item()
        for kind, dtype in (
            (torch.optim.AdamW, torch.float32),
            (torch.optim.AdamW, torch.bfloat16),
            (StochasticAdamW, torch.bfloat16),
        )
    )
    assert lost > 1.5 * exact
    assert found == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_float32_weights_are_updated_as_by_torch(decay):
    pushes = gradients(20)
    expected, _ = run(torch.optim.AdamW, torch.float32, pushes, lr=1e-2, weight_decay=decay)
    found, _ = run(StochasticAdamW, torch.float32, pushes, lr=1e-2, weight_decay=decay)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_all_that_is_stored_is_bfloat16():
    _, state = run(StochasticAdamW, torch.bfloat16, gradients(2))
    assert {each.dtype for each in state.values() if isinstance(each, torch.Tensor)} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_make_one_tensor(monkeypatch, dtype):
    expected, _ = run(StochasticAdamW, dtype, gradients(3), lr=1e-2)
    monkeypatch.setattr("skipwise.train.optimizers._PIECE", 1000)
    found, _ = run(StochasticAdamW, dtype, gradients(3), lr=1e-2)
    assert torch.equal(found, expected)


def test_the_random_bits_follow_from_step_and_place_alone():
    """Whatever else drew random numbers: copies on several devices stay equal."""
    torch.manual_seed(1)
    first, _ = run(StochasticAdamW, torch.bfloat16, gradients(3))
    torch.manual_seed(2)
    second, _ = run(StochasticAdamW, torch.bfloat16, gradients(3))
    assert torch.equal(first, second)
    weights = [torch.nn.Parameter(torch.ones(COUNT, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = StochasticAdamW(weights, lr=1e-5)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert not torch.equal(*weights)


def test_a_resumed_run_is_the_uninterrupted_run():
    pushes = gradients(8)
    whole, _ = run(StochasticAdamW, torch.bfloat16, pushes)
    weight = torch.nn.Parameter(torch.ones(COUNT, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([weight], lr=1e-5)
    for number, push in enumerate(pushes):
        if number == 5:
            state = optimizer.state_dict()
            optimizer = StochasticAdamW([weight], lr=1e-5)
            optimizer.load_state_dict(state)
        weight.grad = push.to(torch.bfloat16)
        optimizer.step()
    assert torch.equal(weight.detach().float(), whole)


def test_weights_without_a_gradient_stay():
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    StochasticAdamW([weight], lr=1.0, weight_decay=0.5).step()
    assert torch.equal(weight.detach().float(), torch.ones(3))


def test_which_optimizer_for_which_weights(make_model):
    plain = TrainingRecipe(learning_rate=3e-4)
    assert optimizer_for(make_model(), plain) is None
    kind, options = optimizer_for(make_model().to(torch.bfloat16), plain)
    assert kind is StochasticAdamW
    assert options["lr"] == 3e-4
    frozen = add_adapter(make_model().to(torch.bfloat16), AdapterRecipe())
    assert optimizer_for(frozen, plain) is None


def test_trainer_groups_the_weights(make_model, tmp_path):
    """Norms get no weight decay, as with its own AdamW."""
    recipe = TrainingRecipe(weight_decay=0.1, weights="bfloat16", report_to=())
    model = make_model().to(torch.bfloat16)
    arguments = training_arguments(recipe, tmp_path, micro_batch=1, seed=0, device=torch.device("cpu"))
    trainer = Trainer(model, arguments, optimizer_cls_and_kwargs=optimizer_for(model, recipe))
    groups = trainer.create_optimizer().param_groups
    decay = {group["weight_decay"]: {each.ndim for each in group["params"]} for group in groups}
    assert decay == {0.1: {2}, 0.0: {1}}
    assert {group["lr"] for group in groups} == {recipe.learning_rate}
    assert type(trainer.optimizer) is StochasticAdamW


def test_8bit_moments_without_torchao(make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(InputError, match=r"^training\.optimizer = adamw-8bit needs torchao: pip install"):
        optimizer_for(make_model(), TrainingRecipe(optimizer="adamw-8bit"))
