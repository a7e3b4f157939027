"""What is measured, by name: one frozen `Case` each; those to compare differ in one setting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from transformers import LlamaConfig

SHAPES = {
    "7b": {  # LLaMA-7B
        **{"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32_000},
        **{"tie_word_embeddings": False, "max_position_embeddings": 2_048},
    },
    "135m": {  # SmolLM2-135M
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152},
        **{"tie_word_embeddings": True, "max_position_embeddings": 8_192},
    },
    "curve": {  # few layers, so that a step is soon launched, and wide enough for float8
        **{"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8},
        **{"num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 4_096},
        **{"tie_word_embeddings": False, "max_position_embeddings": 2_048},
    },
    "tiny": {
        **{"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 256},
        **{"tie_word_embeddings": False, "max_position_embeddings": 64},
    },
}
THETA = {"7b": 10_000.0, "135m": 100_000.0, "curve": 10_000.0, "tiny": 10_000.0}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement.

    kind: ``engine`` (`skipwise.train.engine`), ``plain`` (stock `Trainer`), ``loop`` (the engine's kernels
    and optimizer in a bare loop), ``ceilings``, ``figure3``. optimizer: ``recipe`` is what the recipe's
    settings give, ``compiled`` the same with each update in one kernel (`candidates`), ``fused`` torch's
    fused AdamW, ``8bit`` torchao's. attention: the kernel of SDPA. fp8: a recipe of torchao. profile:
    optimizer steps under the profiler, after the measured ones. limit: seconds after which the case is
    ended. note: what is expected.
    """

    name: str
    kind: Literal["engine", "plain", "loop", "ceilings", "figure3"] = "engine"
    shape: str = "7b"
    row_length: int = 2_048
    target: int = 131_072
    rows: int = 16
    micro_batch: int | Literal["auto"] = 4
    weights: Literal["float32", "bfloat16"] = "bfloat16"
    optimizer: Literal["recipe", "compiled", "fused", "8bit"] = "recipe"
    checkpointing: bool = False
    liger: Literal["auto", "off"] = "auto"
    logits_chunk: int = 1024
    compile: bool = False
    attention: Literal["default", "flash", "cudnn", "efficient"] = "default"
    fp8: Literal["", "recipe", "rowwise", "tensorwise", "rowwise_with_gw_hp"] = ""
    text: Literal["random", "repository"] = "random"
    learning_rate: float = 2e-5
    warm: int = 2
    steps: int = 3
    profile: int = 0
    limit: int = 150
    workers: int = 0
    note: str = ""


def named(base: Case, **changes: dict[str, object]) -> list[Case]:
    """``base`` with each set of changes, under the keyword's name (``_`` for ``-``)."""
    return [replace(base, name=name.replace("_", "-"), **change) for name, change in changes.items()]


_PLAIN = Case(name="plain", kind="plain", weights="float32", checkpointing=True, liger="off", logits_chunk=0)
_OURS = Case(name="ours", compile=True, micro_batch=8, optimizer="compiled")

SEVEN_B = [
    Case(name="ceilings", kind="ceilings", limit=60, note="what the chip gives to these shapes"),
    replace(_PLAIN, name="7b-plain", warm=1, note="float32 weights under autocast fit: 116-125 GiB"),
    replace(_OURS, name="7b-ours", profile=1, note="compiled layers, Liger's loss, fused update, 8 rows"),
    replace(_OURS, name="7b-fp8-rowwise", fp8="rowwise", profile=1, note="matrices 1.3-1.5 times as fast"),
    replace(_PLAIN, name="7b-plain-bf16", weights="bfloat16", warm=1, note="all of it in bfloat16"),
    replace(_OURS, name="7b-loop", kind="loop", note="without Trainer: less than 1 % faster"),
    replace(_OURS, name="7b-fp8-tensorwise", fp8="tensorwise", note="cheaper casts than rowwise; not causal"),
    replace(_OURS, name="7b-cudnn", attention="cudnn", note="attention 1.5 times as fast: -3 %"),
    replace(_OURS, name="7b-mb4", micro_batch=4, note="gradients are added 3 times in place of 1: +1.2 %"),
    replace(_OURS, name="7b-no-compile", compile=False, note="Liger's kernels instead: +15 %"),
    replace(_OURS, name="7b-recipe-adamw", optimizer="recipe", note="the update in 30 kernels: +15 %"),
    replace(_OURS, name="7b-fp8-recipe", fp8="recipe", optimizer="recipe", note="as a recipe has it"),
    replace(_OURS, name="7b-8bit", optimizer="8bit", note="13 GB less, the update slower"),
    replace(_OURS, name="7b-torch-fused", optimizer="fused", note="the floor of the update, rounds wrongly"),
    replace(_OURS, name="7b-checkpointing", checkpointing=True, note="a third more forward: +30 %"),
    replace(_OURS, name="7b-flash", attention="flash", note="if the default is not flash"),
    replace(_OURS, name="7b-plain-loss", liger="off", note="logits in chunks of 1,024, twice: +1 %"),
    replace(_OURS, name="7b-mb2", micro_batch=2, note="7 additions of gradients: +4 %"),
    *named(
        replace(_PLAIN, warm=1, steps=2),
        plain_mb1={"micro_batch": 1, "note": "launches show"},
        plain_mb2={"micro_batch": 2},
        plain_mb8={"micro_batch": 8, "note": "Trainer's default of 8 rows: about 131 GiB"},
    ),
]

_SMALL = Case(name="small", shape="135m", weights="float32", micro_batch="auto", warm=5, steps=20, profile=3)
_SMALL_PLAIN = replace(_PLAIN, shape="135m", warm=5, steps=20, profile=3)
SMALL = [
    replace(_SMALL_PLAIN, name="135m-8k-plain", row_length=8_192, rows=8, micro_batch=8),
    replace(_SMALL, name="135m-8k-ours", row_length=8_192, rows=8, note="the shipped recipe"),
    replace(_SMALL, name="135m-8k-compiled", row_length=8_192, rows=8, compile=True),
    replace(_SMALL_PLAIN, name="135m-2k-plain", rows=32, micro_batch=8),
    replace(_SMALL, name="135m-2k-ours", rows=32),
    replace(_SMALL, name="135m-2k-compiled", rows=32, compile=True),
    replace(_SMALL, name="135m-8k-best", row_length=8_192, rows=8, compile=True, workers=2),
    replace(_SMALL, name="135m-2k-best", rows=32, compile=True, workers=2),
]

FIGURE = [Case(name="figure3", kind="figure3", limit=330, note="the paper's Figure 3, both panels")]

_LEARN = {"shape": "curve", "text": "repository", "rows": 8, "micro_batch": 8, "learning_rate": 6e-4}
_LEARN |= {"warm": 5, "steps": 195, "limit": 90}
_FAST = {"weights": "bfloat16", "compile": True, "optimizer": "compiled"}
CURVES = [
    replace(_PLAIN, name="curve-plain", **_LEARN),
    *named(
        Case(name="curve", weights="float32", **_LEARN),
        curve_ours={**_FAST, "note": "as 7b-ours"},
        curve_fp8_rowwise={**_FAST, "fp8": "rowwise"},
        curve_fp8_tensorwise={**_FAST, "fp8": "tensorwise"},
        curve_bf16={"weights": "bfloat16", "note": "only the stochastic optimizer, and Liger"},
        curve_compile={"compile": True},
        curve_liger={},
        curve_8bit={"optimizer": "8bit"},
        curve_bf16_nearest={"weights": "bfloat16", "optimizer": "fused", "note": "rounds to the nearest"},
    ),
]

CASES = {each.name: each for each in (*SEVEN_B, *SMALL, *FIGURE, *CURVES)}


def tiny(case: Case) -> Case:
    """The same settings for a CPU: a tiny model, short rows, two steps."""
    rows = {"rows": 4, "micro_batch": "auto" if case.micro_batch == "auto" else 2}
    few = {"warm": 1, "steps": 2, "profile": min(case.profile, 1), "limit": 300}
    return replace(case, shape="tiny", row_length=32, target=256, logits_chunk=16, **rows, **few)


def config_of(case: Case) -> LlamaConfig:
    """The model's config as it was pretrained."""
    rope = {"rope_type": "default", "rope_theta": THETA[case.shape]}
    return LlamaConfig(**SHAPES[case.shape], rope_parameters=rope)


def operations(case: Case) -> dict[str, float]:
    """Floating-point operations of one token forward and backward, nothing that is computed again.

    strict: 6 for each weight of a matrix product (the embeddings are looked up, not multiplied), and
    attention for the pairs that a causal mask shows: 6 layers x width x row length. usual: 6 for every
    parameter and attention for all pairs, 12 layers x width x row length, as most published figures count.
    """
    shape = SHAPES[case.shape]
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    shared = shape["num_key_value_heads"] / shape["num_attention_heads"]
    matrices = layers * hidden * (2 * hidden * (1 + shared) + 3 * shape["intermediate_size"])
    matrices += hidden * shape["vocab_size"]
    parameters = matrices + hidden * (2 * layers + 1)
    parameters += 0 if shape["tie_word_embeddings"] else hidden * shape["vocab_size"]
    attention = 6.0 * layers * hidden * case.row_length
    return {
        "parameters": parameters,
        "strict": 6.0 * matrices + attention,
        "usual": 6.0 * parameters + 2 * attention,
    }
