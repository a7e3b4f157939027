"""Every way to train, on a real device, against a plain float32 run of the same rows; prints a table.

    python -m pytest tests/gpu/test_training.py -s

``SKIPWISE_TEST_DEVICE=cpu`` runs a much smaller model; what does not run there is skipped with its reason.
"""

import logging
import os
import time
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from skipwise.config import TrainingRecipe
from skipwise.data.collate import SkipCollator
from skipwise.data.rows import Rows
from skipwise.data.skips import PoSE
from skipwise.export.checkpoint import export_checkpoint
from skipwise.models.load import Checkpoint, load_model, load_tokenizer
from skipwise.rope import extend_rope
from skipwise.train.adapters import add_adapter, loaded_dtype, merged, quantization
from skipwise.train.engine import train

DEVICE = os.environ.get("SKIPWISE_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # compilers and kernels talk about themselves
]

ON_GPU = DEVICE == "cuda"
LENGTH, WINDOW, TARGET = (512, 2048, 16_384) if ON_GPU else (64, 256, 1024)
SIZES = {"hidden_size": 512, "intermediate_size": 1408, "vocab_size": 32_000, "num_attention_heads": 8}
if not ON_GPU:
    SIZES = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 499, "num_attention_heads": 2}

PLAIN = {"precision": "float32", "liger": "off", "logits_chunk": 0}
LORA = {"learning_rate": 1e-2, "adapter": {"rank": 16}}
LONG_LORA = {"learning_rate": 2e-3, "adapter": {"rank": 16, "embeddings": True, "norms": True}}
QLORA = {"learning_rate": 1e-2, "adapter": {"rank": 16, "quantize": "4bit"}}
QLORA_8 = {"learning_rate": 1e-2, "adapter": {"rank": 16, "quantize": "8bit"}}
HALF = {"precision": "bfloat16"}
ALL = {"liger": "on", "compile": True, "gradient_checkpointing": True}

RUNS = {
    "logits in chunks": (PLAIN | {"logits_chunk": 300}, PLAIN, 1e-3),
    "checkpointing": (PLAIN | {"gradient_checkpointing": True}, PLAIN, 1e-3),
    "Liger": (PLAIN | {"liger": "on"}, PLAIN, 2e-3),
    "compiled": (PLAIN | {"compile": True}, PLAIN, 2e-3),
    "autocast": (PLAIN | HALF, PLAIN, 0.03),
    "autocast and all": (HALF | ALL, PLAIN, 0.03),
    "bfloat16 weights": (HALF | {"weights": "bfloat16"}, PLAIN, 0.05),
    "8-bit AdamW": (PLAIN | {"optimizer": "adamw-8bit"}, PLAIN, 0.03),
    "bfloat16 weights, 8-bit": (HALF | {"weights": "bfloat16", "optimizer": "adamw-8bit"}, PLAIN, 0.05),
    "LoRA": (LORA | HALF, PLAIN | LORA, 0.03),
    "LoRA and all": (LORA | HALF | ALL, PLAIN | LORA, 0.03),
    "LoRA, bfloat16 factors": (LORA | HALF | {"weights": "bfloat16"}, PLAIN | LORA, 0.05),
    "LoRA, embeddings, norms": (LONG_LORA | HALF, PLAIN | LONG_LORA, 0.03),
    "QLoRA 4 bits": (QLORA | HALF, PLAIN | LORA, 0.1),
    "QLoRA 8 bits": (QLORA_8 | HALF, PLAIN | LORA, 0.05),
    "QLoRA and all": (QLORA | HALF | ALL, PLAIN | LORA, 0.1),
}
"""By name: the recipe, the plain run of the same training, and how far each step's loss may be from that."""


class Counting:
    """Passages that count upwards to 31, over and over: a text that is learned in a few steps."""

    def __len__(self):
        return 40

    def draw(self, epoch, example, rng):
        return (np.arange(2 * LENGTH) * (1 + example % 5) + example * 7) % 31


def make_recipe(changes):
    values = {"steps": 30, "rows_per_step": 8, "micro_batch": 4, "learning_rate": 2e-3, "warmup_steps": 5}
    return TrainingRecipe(**values | {"report_to": (), "save_every": 1000} | changes)


def make_rows(recipe):
    return Rows(Counting(), PoSE(LENGTH, TARGET), count=recipe.steps * recipe.rows_per_step, seed=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Llama of 29 million weights (on a GPU), stored in bfloat16, and its config for the target."""
    config = AutoConfig.for_model(
        "llama", **SIZES, num_hidden_layers=4, max_position_embeddings=WINDOW, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return Checkpoint(str(folder)), extend_rope(config, TARGET, "yarn")


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    """The curve of a plain run, made once."""
    known = {}

    def curve(changes):
        key = str(changes)
        if key not in known:
            known[key] = losses(run(base, make_recipe(changes), tmp_path_factory.mktemp("plain")))
        return known[key]

    return curve


@pytest.fixture(scope="module")
def table(request):
    """Lines that are printed when all is done."""
    names = ("first", "last", "plain", "off by", "allowed", "trained", "exported", "s", "GiB")
    widths = (6, 7, 7, 8, 8, 8, 8, 6, 6)
    lines = [f"{'':24} " + " ".join(f"{each:>{width}}" for each, width in zip(names, widths, strict=True))]
    yield lines
    writer = request.config.get_terminal_writer()
    writer.line()
    for line in lines:
        writer.line(line)


def run(base, recipe, folder):
    checkpoint, config = base
    dtype = loaded_dtype(recipe, DEVICE)
    model = load_model(
        checkpoint,
        config,
        dtype=dtype,
        device=DEVICE,
        gradient_checkpointing=recipe.gradient_checkpointing,
        quantization=quantization(recipe, dtype),
    )
    if recipe.adapter:
        model = add_adapter(model, recipe.adapter, dtype=getattr(torch, recipe.weights))
    return train(model, make_rows(recipe), recipe, folder, seed=0)


def losses(result):
    return np.array([line["loss"] for line in result.curve])


def need(recipe):
    """Skip what this machine does not have."""
    quantized = recipe.adapter is not None and recipe.adapter.quantize != "none"
    packages = {"bitsandbytes": quantized, "torchao": recipe.optimizer == "adamw-8bit"}
    packages["liger_kernel"] = recipe.liger == "on"
    for name, needed in packages.items():
        if needed and find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    if recipe.liger == "on" and not ON_GPU:
        pytest.skip("Liger runs on a GPU")


def loss_of(model, rows, half):
    batch = {key: value.to(DEVICE) for key, value in SkipCollator()([rows[0], rows[1]]).items()}
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16, enabled=half):
        return float(model.eval()(**batch, use_cache=False).loss)


@pytest.mark.parametrize("name", RUNS)
def test_the_curve_is_that_of_the_plain_run_and_the_export_is_the_model(
    name, base, plain, demo_base, tmp_path, caplog, table
):
    changes, reference, allowed = RUNS[name]
    recipe = make_recipe(changes)
    need(recipe)
    expected = plain(reference)
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with caplog.at_level(logging.WARNING, "skipwise"):
        result = run(base, recipe, tmp_path / "run")
    seconds = time.perf_counter() - began
    said = [each.getMessage() for each in caplog.records if each.name.startswith("skipwise")]
    found = losses(result)
    error = float((np.abs(found - expected) / expected).max())
    memory = torch.cuda.max_memory_allocated() / 2**30 if ON_GPU else 0.0
    rows, half = make_rows(recipe), recipe.precision == "bfloat16"
    before = loss_of(result.model, rows, half)
    checkpoint, config = base
    again = load_model(checkpoint, config, dtype=torch.float32, device=DEVICE) if "Q" in name else None
    export_checkpoint(  # which compares the logits of a stock reload
        merged(result.model, again),
        load_tokenizer(Checkpoint(str(demo_base))),
        tmp_path / "out",
        dtype=torch.float32,
    )
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).to(DEVICE)
    exported = loss_of(stock, rows, half)
    table.append(
        f"{name:24} {found[0]:6.3f} {found[-1]:7.4f} {expected[-1]:7.4f} {error:8.1e} {allowed:8.0e} "
        f"{before:8.4f} {exported:8.4f} {seconds:6.1f} {memory:6.2f}  {'; '.join(said)}"
    )
    assert found[-1] < found[0] - 0.25
    assert error <= allowed
    assert exported == pytest.approx(before, rel=allowed)
    assert not said
