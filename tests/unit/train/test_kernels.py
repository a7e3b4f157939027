import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters
from transformers.models.llama import modeling_llama

from skipwise.config import TrainingRecipe
from skipwise.errors import InputError
from skipwise.train import kernels
from skipwise.train.kernels import apply_liger, compiled_layers, fast_kernels

CPU = torch.device("cpu")


def outcome(model, length=21):
    model.zero_grad()
    tokens = torch.arange(2 * length).reshape(2, length) % 97
    positions = torch.arange(length).expand(2, -1) + 300 * (torch.arange(length) > 8)
    model(tokens, labels=tokens, position_ids=positions, use_cache=False).loss.backward()
    return torch.cat([each.grad.flatten() for each in model.parameters()])


def fake_liger(monkeypatch, apply, known=("llama",)):
    """A stand-in for its package: the real kernels need a GPU (tests/gpu)."""
    found = ModuleType("liger_kernel.transformers")
    found._apply_liger_kernel_to_instance = apply
    table = ModuleType("liger_kernel.transformers.monkey_patch")  # no attribute of its package until imported
    table.MODEL_TYPE_TO_APPLY_LIGER_FN = dict.fromkeys(known)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", found)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", table)
    monkeypatch.setattr(kernels, "_missing", lambda model: None)


def doubled_norm(model):
    model.model.norm.forward = lambda hidden: 2 * type(model.model.norm).forward(model.model.norm, hidden)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.filterwarnings("ignore")  # torch's compiler about its own code
def test_compiled_layers_compute_the_same_from_one_graph(make_model, checkpointing):
    model = make_model(num_hidden_layers=3).train()
    if checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(
            {"use_reentrant": False}
        )
    names, expected = list(model.state_dict()), outcome(model)
    torch._dynamo.reset()
    counters.clear()
    with compiled_layers(model, backend="aot_eager"):
        assert list(model.state_dict()) == names
        found = outcome(model)
        assert counters["stats"]["unique_graphs"] == 1
        assert not counters["graph_break"]
        assert torch.equal(outcome(model), found)
        for length in range(3, 20):  # probes, retrieval: any length, no new graphs
            with torch.no_grad():
                model(torch.arange(length)[None])
            model.eval()(torch.arange(length)[None])
            model.train()
        assert counters["stats"]["unique_graphs"] == 1
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    outcome(model, 11)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_the_model_is_stock_again_afterwards(make_model, compiled, monkeypatch):
    monkeypatch.setattr(kernels, "compiled_layers", lambda model: compiled_layers(model, backend="eager"))
    model = make_model()
    before = [set(vars(each)) for each in model.modules()]
    recipe = TrainingRecipe(logits_chunk=8, compile=compiled)
    with fast_kernels(model, recipe, CPU, 16):
        assert "forward" in vars(model)
        assert (model.model.layers[0]._compiled_call_impl is not None) is compiled
    assert [set(vars(each)) for each in model.modules()] == before
    assert model.model.layers[0]._compiled_call_impl is None


@pytest.mark.parametrize(
    ("chunk", "micro_batch", "replaced"),
    [(0, 4, False), (64, 4, False), (63, 4, True), (63, 2, False), (31, 2, True), (63, "auto", True)],
)
def test_the_loss_is_cut_only_where_a_pass_can_have_more_tokens(make_model, chunk, micro_batch, replaced):
    model = make_model()
    recipe = TrainingRecipe(rows_per_step=4, micro_batch=micro_batch, logits_chunk=chunk)
    with fast_kernels(model, recipe, CPU, 16):
        assert ("forward" in vars(model)) is replaced


def test_what_is_left_out_is_said_in_one_line(make_model, caplog):
    options = {"num_local_experts": 2, "num_key_value_heads": 2, "output_router_logits": True}
    model = make_model("mixtral", **options)
    with caplog.at_level(logging.WARNING), fast_kernels(model, TrainingRecipe(logits_chunk=8), CPU, 16):
        assert "forward" not in vars(model)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("mixtral computes its loss from all logits at once")


def test_liger_runs_on_gpus(make_model):
    assert apply_liger(make_model(), "auto") is None
    assert apply_liger(make_model(), "off") is None
    with pytest.raises(InputError, match=r"^training\.liger = on: Liger runs on a GPU .* or set it to auto$"):
        apply_liger(make_model(), "on")


def test_liger_stays_on_the_one_model(make_model, monkeypatch):
    def apply(model, **choice):
        assert choice["rope"] is choice["cross_entropy"] is False  # these have no instance to go to
        modeling_llama.LlamaRMSNorm = "Liger's"
        modeling_llama.LlamaForCausalLM.forward = "Liger's"
        norm = model.model.norm
        norm.forward = lambda hidden: type(norm).forward(norm, hidden)

    fake_liger(monkeypatch, apply)
    stock = modeling_llama.LlamaRMSNorm, modeling_llama.LlamaForCausalLM.forward
    model = make_model()
    assert apply_liger(model, "on") is None
    assert (modeling_llama.LlamaRMSNorm, modeling_llama.LlamaForCausalLM.forward) == stock
    assert "forward" in vars(model.model.norm)
    with fast_kernels(make_model(), TrainingRecipe(), CPU, 16):
        pass
    assert (modeling_llama.LlamaRMSNorm, modeling_llama.LlamaForCausalLM.forward) == stock


def test_only_ligers_loss_is_wrong(make_model, monkeypatch):
    def apply(model, *, fused_linear_cross_entropy, **choice):
        if fused_linear_cross_entropy:
            doubled_norm(model)
        model.model.norm.marked = True

    fake_liger(monkeypatch, apply)
    model = make_model()
    said = apply_liger(model, "on")
    assert said.startswith("Liger's loss is not used for llama: its loss would be off by")
    assert model.model.norm.marked
    assert "forward" not in vars(model.model.norm)


@pytest.mark.parametrize("failing", [False, True])
def test_kernels_that_compute_something_else_are_not_used(make_model, monkeypatch, failing):
    def apply(model, **choice):
        doubled_norm(model)
        if failing:
            raise AttributeError("LlamaConfig has no attribute pretraining_tp\nmore")

    fake_liger(monkeypatch, apply)
    model = make_model()
    reason = "AttributeError: LlamaConfig has no" if failing else "its loss would be off by"
    assert apply_liger(model, "auto").startswith(f"Liger's kernels are not used for llama: {reason}")
    assert "forward" not in vars(model.model.norm)
    with pytest.raises(InputError, match=r"^training\.liger = on: its kernels do not compute llama"):
        apply_liger(model, "on")


@pytest.mark.parametrize(
    ("family", "device", "missing"),
    [
        ("llama", "cuda", None),
        ("whale", "cuda", "Liger has no kernels for whale: set it to off"),
        ("llama", "cpu", "Liger runs on a GPU and the model is loaded on the cpu"),
    ],
)
def test_what_is_missing_for_liger(monkeypatch, family, device, missing):
    missing_for = kernels._missing
    fake_liger(monkeypatch, apply=None)
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    model = SimpleNamespace(device=torch.device(device), config=SimpleNamespace(model_type=family))
    found = missing_for(model)
    assert found is None if missing is None else found.startswith(missing)


@pytest.mark.parametrize("in_layers", [True, False])
def test_liger_stays_out_of_layers_that_are_compiled(monkeypatch, make_model, in_layers):
    given = []
    fake_liger(monkeypatch, lambda model, **options: given.append(options))
    apply_liger(make_model(), "on", in_layers=in_layers)
    assert given[0].get("swiglu", True) is given[0].get("rms_norm", True) is in_layers
    assert given[0]["fused_linear_cross_entropy"]
