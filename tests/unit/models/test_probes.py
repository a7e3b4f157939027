import pytest
import torch

from skipwise.errors import RunError
from skipwise.models import probes
from skipwise.models.probes import check, probe
from skipwise.models.repairs import repair
from skipwise.rope import extend_rope

CUT, LEAK, IGNORED, NOT_ONE_BY_ONE, ORACLE, ANGLES = (
    "the attention mask cuts the row",
    "the attention is not causal",
    "the model ignores position_ids",
    "positions are not used one by one",
    "a row is not the long row with its skipped tokens masked out",
    "rotary angles at the target are off",
)


def failures(model, target_length=4096):
    """Which of the six sentences the probes say, and nothing but these."""
    found = probe(model, target_length).failures()
    known = [CUT, LEAK, IGNORED, NOT_ONE_BY_ONE, ORACLE, ANGLES]
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


MIXED = {"layer_types": ["sliding_attention", "full_attention"], "num_key_value_heads": 1, "head_dim": 16}


@pytest.mark.parametrize("window", [48, 63])
def test_windows_cut_by_index(make_model, window):
    # Longer than any row of the probes: they are made short for a moment.
    model = make_model("gemma3_text", **MIXED, sliding_window=window)
    assert failures(model) == [ORACLE]
    assert {layer.self_attn.sliding_window for layer in model.model.layers} == {window, None}
    assert model.config.sliding_window == window
    repair(model)
    assert failures(model) == []


def test_windows_that_are_off_by_one(make_model):
    model = make_model("gemma3_text", **MIXED, sliding_window=48)
    repair(model)

    def widen(decoder, args, inputs):
        mask = inputs["attention_mask"]["sliding_attention"]
        inputs["attention_mask"]["sliding_attention"] = mask | mask.roll(-1, dims=-1).tril()
        return args, inputs

    model.model.register_forward_pre_hook(widen, with_kwargs=True)
    assert failures(model) == [ORACLE]


def test_layers_that_run_through_the_row_token_by_token(make_model):
    # A layer that is no attention sees the filler of the long row, or its absence.
    model = make_model()
    mlp = model.model.layers[0].mlp
    original = mlp.forward
    mlp.forward = lambda x: original(x) + x.cumsum(dim=1)
    assert failures(model) == [ORACLE]


@pytest.mark.parametrize("window", [48, 12])
def test_a_model_of_windows_alone_is_probed_within_their_sight(make_model, window):
    model = make_model("mistral", sliding_window=window, num_key_value_heads=1)
    repair(model)
    with pytest.raises(RunError, match=rf"^mistral has a limit: distances beyond its windows of {window} to"):
        check(model, 4096)
    report = check(model, 4096, accept_limits=True)
    assert report.reaches > 1e-3
    assert "since none sees further" in report.limits()[0]


GROUPED = {"num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("family", "config", "limited"),
    [
        ("cohere2", MIXED | {"sliding_window": 24}, True),
        ("gemma3_text", MIXED | {"sliding_window": 24}, False),
        ("llama4_text", GROUPED | {"no_rope_layers": [1, 0], "num_local_experts": 2}, True),
        ("smollm3", GROUPED | {"no_rope_layers": [0, 1]}, False),
        ("smollm3", GROUPED | {"no_rope_layers": [0, 1], "use_sliding_window": True}, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_yes_is_needed_where_no_layer_tells_far_distances_apart(make_model, family, config, limited, dtype):
    windows = {"llama4_text": "attention_chunk_size", "smollm3": "sliding_window"}
    config = {windows[family]: 24} | config if family in windows else config
    model = make_model(family, **config).to(dtype)
    repair(model)
    found = probe(model, 4096)
    assert found.failures() == []
    assert bool(found.limits()) == limited
    if limited:
        assert "windows of 24 tokens change nothing, since layers that see further have no pos" in str(
            found.limits()
        )


def test_windows_that_reach_the_target_are_no_limit(make_model):
    model = make_model("mistral", sliding_window=63, num_key_value_heads=1)
    repair(model)
    assert probe(model, 64).limits() == []


@pytest.fixture
def hybrid(make_model):
    """Convolutions below attention."""
    return make_model("lfm2", layer_types=["conv", "full_attention"], num_key_value_heads=1, pad_token_id=0)


def test_hybrids_need_a_yes(hybrid):
    with pytest.raises(
        RunError, match=r"^lfm2 has a limit: its conv layers run through .*; if that is enough"
    ):
        check(hybrid, 4096)
    report = check(hybrid, 4096, accept_limits=True)
    assert report.oracle_error > 0.05
    assert "(a row is off by 0." in report.limits()[0]


def test_a_hybrid_that_ignores_positions(hybrid):
    assert failures(change_call(hybrid, lambda arguments: arguments.pop("position_ids"))) == [IGNORED]


def test_a_hybrid_whose_attention_cuts_the_row(make_model):
    # Its recurrent layers carry token 0 across the cut.
    sizes = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16, "num_key_value_heads": 1}
    model = make_model("minimax", **sizes, num_local_experts=2)
    assert failures(model) == []
    change_call(model, lambda arguments: arguments.pop("attention_mask"))
    report = probe(model, 4096)
    assert report.reaches > 1e-3
    assert failures(model) == [IGNORED]


def test_a_hybrid_that_leaks_or_rounds(hybrid):
    hybrid.model.rotary_emb.inv_freq.copy_(hybrid.model.rotary_emb.inv_freq.bfloat16())
    assert failures(hybrid, 131072) == [ANGLES]
    norm = hybrid.model.embedding_norm
    original = norm.forward
    norm.forward = lambda x: original(x) + x.flip(1)
    assert LEAK in failures(hybrid, 131072)


def test_a_hybrid_is_no_excuse_for_windows_cut_by_index(make_model, monkeypatch):
    # As if it had convolutions, too: without windows its row is the long row, so nothing else is to blame.
    monkeypatch.setattr(probes, "_no_attention", lambda config: ("conv",))
    model = make_model("gemma3_text", **MIXED, sliding_window=48)
    assert failures(model) == [ORACLE]
    repair(model)
    assert failures(model) == []


def test_dropout_inside_functions_is_silenced(make_model):
    model = make_model("seed_oss", attention_dropout=0.3, residual_dropout=0.3, num_key_value_heads=2)
    check(model, 4096)
    assert model.model.layers[0].self_attn.attention_dropout == 0.3


def test_rounding_in_groups_of_tokens_is_no_leak(make_model):
    model = make_model()
    original = model.lm_head.forward
    model.lm_head.forward = lambda x: original(x) + 1e-6 * x.sum()
    report = check(model, 4096)
    assert report.leaks > 0


@pytest.mark.parametrize("layer_type", ["sliding_attention", "full_attention"])
def test_rounded_frequencies_of_one_layer_type(make_model, layer_type):
    model = make_model("gemma3_text", **MIXED, sliding_window=48)
    repair(model)
    frequencies = getattr(model.model.rotary_emb, f"{layer_type}_inv_freq")
    frequencies.copy_(frequencies.bfloat16())
    assert failures(model, 131072) == [ANGLES]


@pytest.mark.parametrize("family", ["cohere", "llama4_text"])
def test_angles_side_by_side_or_as_complex_numbers(make_model, family):
    sizes = {"num_local_experts": 2, "pad_token_id": 0, "head_dim": 16, "num_key_value_heads": 2}
    model = make_model(family, **(sizes if family == "llama4_text" else {}))
    assert failures(model, 131072) == []
    model.to(torch.bfloat16).to(torch.float32)
    assert failures(model, 131072) == [ANGLES]


def test_every_failure_is_said_in_one_error(make_model):
    model = change_call(make_model().to(torch.bfloat16), lambda arguments: arguments.pop("position_ids"))
    with pytest.raises(RunError, match=f"llama is not ready.*{IGNORED}.*{ANGLES}"):
        check(model, 131072)


def test_a_model_without_rope_is_named(make_model):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    with pytest.raises(RunError, match=r"^gpt2 has no rotary"):
        check(make_model("gpt2", **sizes), 4096)


def coarse(model, step):
    """Round what every MLP gives, so that differences in the last bits grow from layer to layer."""
    for layer in model.model.layers:
        layer.mlp.forward = lambda x, original=layer.mlp.forward: (original(x) / step).round() * step
    return model


def test_rounding_of_a_deep_model_is_no_mistake_and_hides_none(make_model):
    model = make_model(num_hidden_layers=24).to(torch.bfloat16)
    repair(model)
    report = probe(coarse(model, 0.5), 4096)
    assert report.failures() == []
    assert probes.HALF < report.oracle_error < report.oracle_bound <= probes.MOST_ROUNDING
    change_call(
        model, lambda arguments: arguments.update(attention_mask=torch.ones_like(arguments["input_ids"]))
    )
    assert failures(model) == [ORACLE]
    windowed = make_model("mistral", num_hidden_layers=24, sliding_window=40, num_key_value_heads=1)
    windowed.to(torch.bfloat16)  # and not repaired: cut by index
    windowed.model.rotary_emb.inv_freq = windowed.model.rotary_emb.original_inv_freq.float()
    assert ORACLE in failures(coarse(windowed, 0.5))


def test_nothing_is_put_down_to_rounding_in_float32(make_model):
    model = make_model(num_hidden_layers=24)
    assert probe(model, 4096).oracle_bound == 1e-3
