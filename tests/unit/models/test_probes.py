import pytest
import torch

from skipwise.errors import RunError
from skipwise.models.probes import check, probe
from skipwise.rope import extend_rope

CUT, LEAK, IGNORED, NOT_ONE_BY_ONE, ANGLES = (
    "the attention mask cuts the row",
    "the attention is not causal",
    "the model ignores position_ids",
    "positions are not used one by one",
    "rotary angles at the target are off",
)


def failures(model, target_length=4096):
    """Which of the five sentences the probes say, and nothing but these."""
    found = probe(model, target_length).failures()
    known = [CUT, LEAK, IGNORED, NOT_ONE_BY_ONE, ANGLES]
    said = [sentence for sentence in known if any(sentence in each for each in found)]
    assert len(said) == len(found)
    return said


def change_call(model, change):
    """Let ``change(arguments)`` edit the keyword arguments of every forward pass."""
    original = model.forward

    def forward(**arguments):
        change(arguments)
        return original(**arguments)

    model.forward = forward
    return model


def change_positions(model, change):
    """Let the rotary module see ``change(position_ids)``."""
    rotary = model.base_model.rotary_emb
    original = rotary.forward
    rotary.forward = lambda x, position_ids: original(x, change(position_ids))
    return model


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_sound_models_pass_every_probe(make_model, family, attention, checkpointing):
    model = make_model(family, attn_implementation=attention)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    report = check(model, 4096)
    assert report.reaches > 1e-3
    assert report.gap > 1e-3
    assert report.leaks == report.gap_leak == 0.0
    assert not model.training


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn"])
def test_interpolated_models_pass_every_probe(make_model, method):
    config = extend_rope(make_model().config, 64 * 1031, method)
    model = make_model(rope_parameters=config.rope_parameters)
    check(model, 64 * 1031)


def test_a_training_model_stays_in_training_and_keeps_its_dropout(make_model):
    model = make_model("gpt_neox", hidden_dropout=0.5).train()
    check(model, 4096)
    assert all(module.training for module in model.modules())


def test_dropped_mask_cuts_the_chunks_apart(make_model):
    model = change_call(make_model(), lambda arguments: arguments.pop("attention_mask"))
    assert failures(model) == [CUT]


def test_bidirectional_mask_leaks(make_model):
    def see_all(arguments):
        size = arguments["input_ids"].shape[1]
        arguments["attention_mask"] = torch.zeros(1, 1, size, size)

    assert failures(change_call(make_model(), see_all)) == [LEAK]


def test_ignored_positions(make_model):
    model = change_call(make_model(), lambda arguments: arguments.pop("position_ids"))
    assert failures(model) == [IGNORED]


def test_positions_that_depend_on_the_rest_of_the_row(make_model):
    def squeeze(positions):
        return positions / (1 + 0.001 * positions.diff().amax())

    # The rows whose angles are compared have no skip: there this model is nearly right.
    model = change_positions(make_model(), lambda p: squeeze(p) if p.diff().amax() > 1 else p)
    assert failures(model) == [NOT_ONE_BY_ONE]


def test_rounded_frequencies(make_model):
    model = make_model().to(torch.bfloat16).to(torch.float32)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert failures(model, 131072) == [ANGLES]


def test_weights_cast_at_loading_keep_their_frequencies(make_model):
    model = make_model()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    check(model, 131072)


def test_positions_rounded_as_tf32_does(make_model):
    def ten_bits(positions):
        bits = positions.float().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)

    assert failures(change_positions(make_model(), ten_bits), 2048) == []
    assert failures(change_positions(make_model(), ten_bits), 131072) == [ANGLES]


def test_every_failure_is_said_in_one_error(make_model):
    model = change_call(make_model().to(torch.bfloat16), lambda arguments: arguments.pop("position_ids"))
    with pytest.raises(RunError, match=f"llama is not ready.*{IGNORED}.*{ANGLES}"):
        check(model, 131072)


def test_a_model_without_rope_is_named(make_model):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    with pytest.raises(RunError, match=r"^gpt2 has no rotary"):
        check(make_model("gpt2", **sizes), 4096)
