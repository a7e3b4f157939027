import json
import sys
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from skipwise.config import TrainingRecipe, make_recipe
from skipwise.data.rows import Rows
from skipwise.data.skips import PoSE
from skipwise.errors import InputError, RunError
from skipwise.models.probes import probe
from skipwise.models.repairs import repair
from skipwise.train import fp8, kernels
from skipwise.train.engine import train
from skipwise.train.fp8 import fp8_products
from skipwise.train.kernels import compiled_layers, fast_kernels

CPU = torch.device("cpu")
emulated = partial(fp8_products, device=CPU, emulate=True)


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao.float8")


@pytest.fixture
def emulating(torchao, monkeypatch):
    """A recipe's ``fp8`` without a GPU."""
    monkeypatch.setattr(kernels, "fp8_products", partial(fp8_products, emulate=True))


class Counting:
    """Passages of consecutive numbers: a text that a tiny model learns in a few steps."""

    def __len__(self):
        return 5

    def draw(self, epoch, example, rng):
        return (np.arange(40) + example * 7) % 97


class FailingRows(Rows):
    """Rows up to ``last``, then nothing but an error: a lost machine."""

    last = 10**6

    def __getitem__(self, index):
        if index > self.last:
            raise ConnectionAbortedError
        return super().__getitem__(index)


def run(model, folder, *, last=10**6, **changes):
    """The engine on a few rows; the machine is lost after row ``last``."""
    options = {"steps": 8, "rows_per_step": 4, "micro_batch": 2, "learning_rate": 3e-3, "warmup_steps": 2}
    recipe = TrainingRecipe(**options | {"report_to": (), "fp8": True, "save_every": 4} | changes)
    rows = FailingRows(Counting(), PoSE(17, 64), count=recipe.steps * recipe.rows_per_step, seed=3)
    rows.last = last
    repair(model)
    return train(model, rows, recipe, folder, seed=0)


def outcome(model, length=21):
    model.zero_grad()
    tokens = torch.arange(2 * length).reshape(2, length) % 97
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    return torch.cat([each.grad.flatten() for each in model.parameters()])


def rounded(values, dim):
    """To e4m3, whose largest number is 448, each line along ``dim`` scaled by a power of two."""
    scale = 2 ** (448 / values.abs().amax(dim, keepdim=True)).log2().floor()
    return (values * scale).to(torch.float8_e4m3fn).double() / scale


def test_each_product_rounds_both_factors_line_by_line(make_model, torchao):
    model = make_model().train()
    layer = model.model.layers[1].mlp.up_proj
    hidden = torch.randn(13, 32, generator=torch.manual_seed(0)).requires_grad_()
    slope = torch.randn(13, 48, generator=torch.manual_seed(1))
    with emulated(model):
        found = layer(hidden)
        found.backward(slope)
    weight = layer.weight.detach()
    given = hidden.detach()
    expected = {
        "output": (found, rounded(given, 1) @ rounded(weight, 1).T),
        "gradient by the input": (hidden.grad, rounded(slope, 1) @ rounded(weight, 0)),
        "gradient by the weight": (layer.weight.grad, rounded(slope, 0).T @ rounded(given, 0)),
    }
    for name, (value, exact) in expected.items():
        assert torch.allclose(value.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.std())), name
    plain = given.double() @ weight.double().T
    assert 5e-3 < (found.double() - plain).norm() / plain.norm() < 5e-2


def test_linear_layers_of_the_decoder_that_the_kernels_take(make_model, torchao):
    model = make_model(intermediate_size=40)
    attention = model.model.layers[1].self_attn
    attention.q_proj = type("Quantised", (torch.nn.Linear,), {})(32, 32, bias=False)
    with emulated(model):
        found = [name for name, each in model.named_modules() if "forward" in vars(each)]
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert found == [
        *(f"model.layers.0.self_attn.{kind}" for kind in kinds),
        *(f"model.layers.1.self_attn.{kind}" for kind in kinds[1:]),
    ]


def test_sums_over_any_number_of_tokens_are_filled_up(make_model, torchao, monkeypatch):
    from torchao.float8 import float8_ops

    sizes, multiply = [], float8_ops.addmm_float8_unwrapped

    def note(first, first_scale, second, *args, **options):
        sizes.append((*first.shape, second.shape[1]))
        return multiply(first, first_scale, second, *args, **options)

    monkeypatch.setattr(float8_ops, "addmm_float8_unwrapped", note)
    monkeypatch.setattr(fp8, "_check_device", lambda device: None)
    model = make_model().to(torch.bfloat16).train()
    with fp8_products(model, CPU):
        outcome(model)  # 42 tokens
    assert len(sizes) == 2 * 7 * 3
    assert all(inner % 16 == width % 16 == 0 for _, inner, width in sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaling", ["rowwise", "tensorwise"])
def test_one_scale_for_all_tokens_is_not_causal(make_model, torchao, scaling, dtype):
    model = make_model(num_hidden_layers=5).to(dtype)  # a last token must be the largest somewhere
    repair(model)
    with emulated(model, scaling=scaling):
        report = probe(model, 4096)
    assert ("the attention is not causal" in "; ".join(report.failures())) is (scaling == "tensorwise")
    assert (report.leaks == 0.0) is (scaling == "rowwise")


def test_the_engine_probes_the_products_it_trains_with(make_model, torchao, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "fp8_products", partial(fp8_products, emulate=True, scaling="tensorwise"))
    model = make_model(num_hidden_layers=5)
    repair(model)
    before = [set(vars(each)) for each in model.model.modules()]
    with pytest.raises(RunError, match="a later token changes an earlier one"):
        run(model, tmp_path)
    assert [set(vars(each)) for each in model.model.modules()] == before


@pytest.mark.parametrize("changes", [{}, {"weights": "bfloat16"}, {"precision": "bfloat16"}])
def test_the_loss_falls_as_without(make_model, emulating, tmp_path, changes):
    curves = []
    for on in (True, False):
        model = make_model().to(getattr(torch, changes.get("weights", "float32")))
        result = run(model, tmp_path / str(on), steps=30, fp8=on, logits_chunk=16, **changes)
        curves.append([line["loss"] for line in result.curve])
    assert curves[0] != curves[1]
    assert curves[0] == pytest.approx(curves[1], abs=0.15)
    assert curves[0][-1] < 0.7 * curves[0][0]


def test_a_resumed_run_is_the_uninterrupted_run(make_model, emulating, tmp_path):
    whole, parted = make_model(), make_model()
    run(whole, tmp_path / "whole", gradient_checkpointing=True)
    with pytest.raises(ConnectionAbortedError):
        run(parted, tmp_path / "parted", last=22)
    parted = make_model(seed=1)
    run(parted, tmp_path / "parted")
    assert all(map(torch.equal, whole.state_dict().values(), parted.state_dict().values()))


def test_what_is_saved_meanwhile_is_the_stock_model(make_model, emulating, tmp_path):
    model = make_model().train()
    model.save_pretrained(tmp_path / "before")
    modules = [(type(each), set(vars(each))) for each in model.modules()]
    with fast_kernels(model, TrainingRecipe(fp8=True), CPU, 16):
        assert "forward" in vars(model.model.layers[0].mlp.up_proj)
        assert [type(each) for each in model.modules()] == [kind for kind, _ in modules]
        model.save_pretrained(tmp_path / "meanwhile")
    assert [(type(each), set(vars(each))) for each in model.modules()] == modules
    files = sorted(file.name for file in (tmp_path / "before").iterdir())
    assert sorted(file.name for file in (tmp_path / "meanwhile").iterdir()) == files
    for name in files:
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "meanwhile" / name).read_bytes()


def test_a_checkpoint_loads_as_any_other(make_model, emulating, tmp_path):
    model = make_model()
    run(model, tmp_path)
    checkpoint = tmp_path / "checkpoint-8"
    assert "quantization_config" not in json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_it_is_stock_after_an_error(make_model, torchao):
    model = make_model()
    before = [set(vars(each)) for each in model.modules()]
    with pytest.raises(ConnectionAbortedError), emulated(model):
        raise ConnectionAbortedError
    assert [set(vars(each)) for each in model.modules()] == before


def test_what_is_judged_on_the_way_is_stock(make_model, torchao):
    model, tokens = make_model(), torch.arange(23)[None]
    expected = model(tokens).logits
    with emulated(model):
        assert torch.equal(model(tokens).logits, expected)
        assert not torch.equal(model.train()(tokens).logits, expected)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.filterwarnings("ignore")  # torch's compiler about its own code
def test_one_graph_serves_all_layers(make_model, torchao, checkpointing):
    model = make_model(num_hidden_layers=3).train()
    if checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(
            {"use_reentrant": False}
        )
    torch._dynamo.reset()
    counters.clear()
    found = []
    for compiled in (False, True):
        with emulated(model), compiled_layers(model, backend="aot_eager") if compiled else nullcontext():
            found.append(outcome(model))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert (found[1] - found[0]).norm() <= 1e-4 * found[0].norm()


def test_a_cpu_has_no_float8(make_model):
    with (
        pytest.raises(InputError, match=r"^training\.fp8 needs a GPU, and this trains on the cpu: set it to"),
        fast_kernels(make_model(), TrainingRecipe(fp8=True), CPU, 16),
    ):
        pass


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)])
def test_a_gpu_without_float8(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    if capability >= (8, 9):
        fp8._check_device(torch.device("cuda"))
        return
    with pytest.raises(InputError, match=r"8\.9 or more \(Ada, Hopper\), and NVIDIA A100 has 8\.0: set it"):
        fp8._check_device(torch.device("cuda"))


def test_without_torchao(make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    said = r"^training\.fp8 needs torchao: pip install 'skipwise\[fast\]', or set it to false$"
    with pytest.raises(InputError, match=said), emulated(make_model()):
        pass


@pytest.mark.parametrize(("family", "changes"), [("gpt_neox", {"hidden_size": 36}), ("gpt2", {})])
def test_a_model_that_has_no_such_layer(make_model, torchao, family, changes):
    model = make_model(family, **{"intermediate_size": 48} | changes)
    said = rf"^training\.fp8: the layers of {family} have no linear layer"
    with pytest.raises(InputError, match=said), emulated(model):
        pass


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"adapter": {}}, "training.fp8 is for training every weight: leave it out, or training.adapter"),
        ({"sharding": "fsdp2"}, "training.fp8 multiplies with whole weights: leave it out with shards"),
        ({"deepspeed": "zero.json"}, "training.fp8 multiplies with whole weights: leave it out with shards"),
        ({"precision": "float32"}, "training.fp8 and training.precision = float32: choose one"),
    ],
)
def test_recipes_that_do_not_go_with_it(training, said):
    values = {"model": "m", "target_length": "32k", "training": {"fp8": True} | training}
    with pytest.raises(InputError) as caught:
        make_recipe(values)
    assert str(caught.value) == f"the recipe does not hold: {said}"
    assert make_recipe(values | {"training": {"fp8": True}}).training.fp8
