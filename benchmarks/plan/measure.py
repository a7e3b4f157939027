"""Peak memory and time of training steps, to compare `skipwise plan` with.

    python benchmarks/plan/measure.py --output DIR      (one GPU of 140 GB; about four minutes)
    python benchmarks/plan/measure.py --tiny --output DIR     (any machine: does the script run?)

Llama models of several sizes with random weights are trained for a few steps as `skipwise extend` trains:
under bfloat16 autocast unless all weights are bfloat16, two micro-batches to an optimizer step, gradients
clipped, fused AdamW (adamw-8bit: torchao's, or bitsandbytes'), rows with skipped positions and a mask of
ones. Writes measured.json: for each case its settings, bytes and seconds; or the reason why there are none.
A case that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
import traceback
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = {  # hidden, intermediate, layers, heads, key/value heads, vocabulary, tied
    "135M": (576, 1536, 30, 9, 3, 49_152, True),  # SmolLM2-135M
    "1.2B": (2048, 8192, 16, 32, 8, 128_256, True),  # Llama-3.2-1B
    "6.7B": (4096, 11_008, 32, 32, 32, 32_000, False),  # Llama-2-7B
    "tiny": (64, 128, 3, 4, 2, 257, True),
}
RANK = 16


@dataclass(frozen=True)
class Case:
    """What is trained, and how; the fields are those of `skipwise.plan`."""

    model: str
    method: str = "full"
    weights: str = "float32"
    row_length: int = 2_048
    micro_batch: int = 1
    checkpointing: bool = False
    fused_loss: bool = True
    optimizer: str = "adamw"
    liger: str = "loss"
    """With ``fused_loss``: Liger's kernel for the loss only, or "all" of its kernels."""
    micro_batches: int = 2
    steps: int = 3

    @property
    def autocast(self) -> bool:
        """Where every weight is bfloat16, none is needed; adapters are float32."""
        return self.method != "full" or self.weights == "float32"


CASES = [
    Case("135M", micro_batch=4, fused_loss=False),
    Case("135M", row_length=512, micro_batch=4),
    Case("135M", row_length=8_192, checkpointing=True),
    Case("1.2B", fused_loss=False),
    Case("1.2B", row_length=8_192),
    Case("1.2B", micro_batch=4, checkpointing=True, fused_loss=False),
    Case("1.2B", weights="bfloat16", micro_batch=4),
    Case("1.2B", weights="bfloat16", row_length=8_192, checkpointing=True, optimizer="adamw-8bit"),
    Case("6.7B", "lora", "bfloat16", fused_loss=False),
    Case("6.7B", "lora", "bfloat16", row_length=8_192, checkpointing=True),
    Case("6.7B", "qlora", "bfloat16"),
    Case("6.7B", "qlora", "bfloat16", row_length=8_192, checkpointing=True),
    Case("6.7B", "qlora", "bfloat16", row_length=512, micro_batch=4, checkpointing=True, fused_loss=False),
    Case("6.7B", weights="bfloat16", fused_loss=False),
    Case("6.7B", weights="bfloat16", row_length=8_192, checkpointing=True),
    Case("6.7B", checkpointing=True, steps=2),
    Case("6.7B", "inference", "bfloat16", row_length=32_768),
    Case("6.7B", weights="bfloat16", row_length=32_768, checkpointing=True, micro_batches=1, steps=1),
    # Last, since they patch modules of transformers:
    Case("1.2B", weights="bfloat16", micro_batch=4, liger="all"),
    Case("1.2B", micro_batch=4, liger="all"),
]


def main() -> None:
    """Measure every case that time allows; the file is written again after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", Path(__file__).parent)))
    parser.add_argument("--tiny", action="store_true", help="a tiny model in place of each")
    parser.add_argument("--seconds", type=float, default=400, help="start no case later than that")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("highest")
    started, found = time.perf_counter(), {"environment": environment(), "cases": []}
    for case in CASES:
        if time.perf_counter() - started > options.seconds:
            print("out of time", flush=True)
            break
        small = {"model": "tiny", "row_length": case.row_length // 128}
        found["cases"].append(attempt(replace(case, **small) if options.tiny else case))
        text = json.dumps(found, indent=1) + "\n"
        (options.output / "measured.json").write_text(text, encoding="utf-8")
        print(f"{time.perf_counter() - started:5.0f} s  {line(found['cases'][-1])}", flush=True)


def attempt(case: Case) -> dict[str, Any]:
    """One case, whatever happens; the memory it took is free again."""
    result: dict[str, Any] = {"settings": asdict(case)}
    try:
        result |= (infer if case.method == "inference" else train)(case)
    except Exception as error:  # noqa: BLE001 - one case must not lose the others
        result["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        traceback.print_exc()
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    return result


def train(case: Case) -> dict[str, Any]:
    """A step to warm up, then ``case.steps`` measured ones; medians of seconds, maxima of bytes."""
    model = build(case)
    built = allocated()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = make_optimizer(case, trained)
    steps = [step(model, optimizer, trained, case) for _ in range(1 + case.steps)][1:]
    seconds = {key: statistics.median(each[0][key] for each in steps) for key in steps[0][0]}
    memory = {key: max(each[1][key] for each in steps) for key in steps[0][1]}
    memory |= {"built": built, "at_rest": allocated(), "reserved": reserved()}
    memory["peak"] = max(memory[f"peak_{each}"] for each in ("forward", "backward", "optimizer"))
    return {"trained_parameters": sum(each.numel() for each in trained), "memory": memory, "seconds": seconds}


def step(model: Any, optimizer: Any, trained: list[Any], case: Case) -> tuple[dict[str, float], ...]:
    """One optimizer step: seconds of each part (of all micro-batches), and bytes, peaks of each part."""
    seconds = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)
    memory = dict.fromkeys([f"peak_{each}" for each in seconds] + ["after_forward"], 0)
    for _ in range(case.micro_batches):
        batch = make_batch(case, model.config.vocab_size)
        autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=case.autocast)
        with timed("forward", seconds, memory), autocast:
            loss = model(**batch, use_cache=False).loss / case.micro_batches
        memory["after_forward"] = max(memory["after_forward"], allocated())
        with timed("backward", seconds, memory):
            loss.backward()
        assert torch.isfinite(loss)
    with timed("optimizer", seconds, memory):
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return seconds, memory


class timed:  # noqa: N801
    """Adds the seconds of a block to ``seconds[name]`` and raises ``memory["peak_" + name]`` to its peak."""

    def __init__(self, name: str, seconds: dict[str, float], memory: dict[str, int]) -> None:
        self.name, self.seconds, self.memory = name, seconds, memory

    def __enter__(self) -> None:
        synchronize()
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        synchronize()
        self.seconds[self.name] += time.perf_counter() - self.started
        peak = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0
        self.memory[f"peak_{self.name}"] = max(self.memory[f"peak_{self.name}"], peak)


def infer(case: Case) -> dict[str, Any]:
    """A prompt of ``row_length`` tokens read into the cache, 2,048 at a time."""
    model = build(case).eval()
    built, cache, seconds, memory = allocated(), DynamicCache(config=model.config), {"prefill": 0.0}, {}
    ids = make_batch(case, model.config.vocab_size)["input_ids"]
    memory["peak_prefill"] = 0
    with torch.inference_mode(), timed("prefill", seconds, memory):
        for part in ids.split(2_048, dim=1):
            model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
    keys = sum(each.keys.nbytes + each.values.nbytes for each in cache.layers)
    return {"memory": memory | {"built": built, "cache": keys, "after": allocated()}, "seconds": seconds}


def build(case: Case) -> Any:
    """The model with random weights, on the device."""
    hidden, inner, layers, heads, shared, vocabulary, tied = SHAPES[case.model]
    config = LlamaConfig(
        **{"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers},
        **{"num_attention_heads": heads, "num_key_value_heads": shared, "vocab_size": vocabulary},
        **{"tie_word_embeddings": tied, "max_position_embeddings": 131_072},
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )
    with DEVICE:
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, case.weights), attn_implementation="sdpa"
        )
    model.train()
    if case.fused_loss and case.method != "inference" and DEVICE.type == "cuda":
        fuse(model, everything=case.liger == "all")
    if case.method == "qlora":
        quantize(model)
    if case.method in ("lora", "qlora"):
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter)
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    gc.collect()
    return model


def fuse(model: Any, everything: bool) -> None:
    """Liger's fused linear cross entropy, and its other kernels if ``everything``, in this model."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    others = dict.fromkeys(("rope", "rms_norm", "swiglu"), everything)
    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=True, **others)


def quantize(model: Any) -> None:
    """Every matrix of the layers in nf4, its scales quantized too (QLoRA)."""
    import bitsandbytes as bnb

    for layer in model.model.layers:
        for name, linear in list(layer.named_modules()):
            if isinstance(linear, torch.nn.Linear):
                small = bnb.nn.Linear4bit(
                    *(linear.in_features, linear.out_features),
                    **{"bias": False, "compute_dtype": torch.bfloat16, "quant_type": "nf4", "device": "meta"},
                )
                small.weight = bnb.nn.Params4bit(
                    linear.weight.data, requires_grad=False, quant_type="nf4", module=small
                )
                layer.set_submodule(name, small.to(DEVICE))
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True


def make_optimizer(case: Case, trained: list[Any]) -> Any:
    """AdamW as the engine's."""
    if case.optimizer == "adamw-8bit" and DEVICE.type == "cuda":
        try:
            from torchao.optim import AdamW8bit
        except ImportError:
            from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(trained, lr=1e-5)
    return torch.optim.AdamW(trained, lr=1e-5, fused=True)


def make_batch(case: Case, vocabulary: int) -> dict[str, torch.Tensor]:
    """Random rows, whose second half lies far from the first."""
    ids = torch.randint(vocabulary, (case.micro_batch, case.row_length), device=DEVICE)
    positions = torch.arange(case.row_length, device=DEVICE).expand_as(ids).clone()
    positions[:, case.row_length // 2 :] += 50_000
    return {
        "input_ids": ids,
        "labels": ids,
        "position_ids": positions,
        "attention_mask": torch.ones_like(ids),
    }


def environment() -> dict[str, Any]:
    """Versions, the device, its speed at a large matrix product, and what a process takes besides tensors."""
    names = ("torch", "transformers", "peft", "liger-kernel", "bitsandbytes", "torchao")
    found: dict[str, Any] = {"versions": {name: version(name) for name in names}}
    found["made"] = datetime.now(UTC).isoformat(timespec="seconds")
    found["device"] = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    if DEVICE.type == "cuda":
        found["bf16_matmul_tflops"] = matmul_tflops()
        free, total = torch.cuda.mem_get_info()
        found |= {"total_bytes": total, "context_bytes": total - free - reserved()}
    return found


def matmul_tflops(size: int = 8_192, repeats: int = 10) -> float:
    """TFLOP/s of a bfloat16 product of two matrices with random entries."""
    left, right = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    seconds, memory = {"product": 0.0}, {"peak_product": 0}
    with timed("product", seconds, memory):
        for _ in range(repeats):
            left @ right
    return 2 * size**3 * repeats / seconds["product"] / 1e12


def version(name: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def allocated() -> int:
    """Bytes of the tensors that are alive."""
    synchronize()
    return torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0


def reserved() -> int:
    """Bytes that torch holds, used or not, at most so far."""
    return torch.cuda.max_memory_reserved() if DEVICE.type == "cuda" else 0


def synchronize() -> None:
    """Wait until the device is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def line(result: dict[str, Any]) -> str:
    """A case in one line."""
    settings = result["settings"]
    words = [
        f"{settings[key]}" for key in ("model", "method", "weights", "row_length", "micro_batch", "optimizer")
    ]
    words += [name for name in ("checkpointing", "fused_loss") if settings[name]]
    if "error" in result:
        return " ".join([*words, "FAILED:", result["error"]])
    numbers = [f"{name} {value / 1e9:.2f}" for name, value in result["memory"].items()]
    times = [f"{name} {value:.3f} s" for name, value in result["seconds"].items()]
    return " ".join(words) + f"\n         GB: {', '.join(numbers)}\n         {', '.join(times)}"


if __name__ == "__main__":
    main()
