"""What the evaluations save against the plain way, in one run on one machine.

    python benchmarks/evals/run.py --output DIR           (a GPU of 140 GB; about five minutes)
    python benchmarks/evals/run.py --tiny --output DIR    (any machine: does the script run?)

perplexity: ten windows, evenly spaced up to 128k, from one pass, against ten separate passes: `ours` in the
same code (head in pieces), `stock` as ``model(input_ids, labels)`` does it, logits whole.
passkey: 50 trials of a length, prefixes shared and short rows together, against one ``generate`` a trial.
memory: one document of 128k tokens on a 7B model, whole and in pieces that continue a cache.
Weights are random: time and memory do not depend on them, and both sides must give the same numbers.
Writes results.json; `table.py` makes RESULTS.md of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

import skipwise
from skipwise.environment import exact_matmuls, facts
from skipwise.evals.local import LocalReader
from skipwise.evals.passkey import Passkey, PromptBuilder
from skipwise.evals.perplexity import Perplexity
from skipwise.evals.run import evaluate
from skipwise.models.repairs import repair

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SHAPES = {  # hidden, intermediate, layers, heads, key/value heads, vocabulary
    "135M": (576, 1536, 30, 9, 3, 49_152),  # SmolLM2-135M
    "6.7B": (4096, 11_008, 32, 32, 32, 32_000),  # Llama-2-7B: no key/value head is shared
    "tiny": (64, 128, 2, 4, 2, 2_048),
}


def make(shape: str, window: int) -> PreTrainedModel:
    """A Llama of random weights in bfloat16 (float32 on the CPU)."""
    hidden, intermediate, layers, heads, key_heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        max_position_embeddings=window,
        bos_token_id=0,
        eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 4e6},
    )
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if CUDA else torch.float32, attn_implementation="sdpa"
        )
    repair(model)
    model.generation_config.eos_token_id = None
    return model.eval()


def timed(work: Callable[[], Any], repeats: int = 3) -> tuple[Any, float, float]:
    """(what the last call gave, median seconds, peak GiB); one call before the clock is started."""
    work()
    seconds = []
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        wait()
        started = time.perf_counter()
        found = work()
        wait()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 2**30 if CUDA else 0.0
    return found, statistics.median(seconds), peak


def wait() -> None:
    """Until the GPU has done what it was given."""
    if CUDA:
        torch.cuda.synchronize()


def perplexity(shape: str, longest: int, repeats: int) -> dict[str, Any]:
    """Ten windows from one pass, and from ten."""
    model = make(shape, longest)
    windows = [longest * tenth // 10 for tenth in range(1, 11)]
    document = np.random.default_rng(0).integers(1, model.config.vocab_size, size=longest)
    reader = LocalReader(model, None)

    def values(scores: Any) -> list[float]:
        return [score.value for score in scores if score.task == "perplexity"]

    def one() -> list[float]:
        return values(evaluate(Perplexity(documents=[document], lengths=windows), reader))

    def ten() -> list[float]:
        tasks = [Perplexity(documents=[document[:window]], lengths=[window]) for window in windows]
        return [values(evaluate(task, reader))[0] for task in tasks]

    @torch.inference_mode()
    def stock() -> list[float]:
        found = []
        for window in windows:
            tokens = torch.from_numpy(document[:window])[None].to(DEVICE)
            found.append(float(model(input_ids=tokens, labels=tokens, use_cache=False).loss.double().exp()))
        return found

    result: dict[str, Any] = {"shape": shape, "windows": windows, "repeats": repeats}
    expected, result["one_pass_seconds"], result["one_pass_gib"] = timed(one, repeats)
    for name, work in (("ours", ten), ("stock", stock)):
        try:
            found, result[f"{name}_seconds"], result[f"{name}_gib"] = timed(work, repeats)
        except torch.OutOfMemoryError:
            result[f"{name}_seconds"] = None
            continue
        result[f"{name}_ratio"] = result[f"{name}_seconds"] / result["one_pass_seconds"]
        result[f"{name}_difference"] = max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))
    return result


def passkey(shape: str, length: int, trials: int) -> dict[str, Any]:
    """All trials, and one ``generate`` a trial."""
    model = make(shape, length)
    tokenizer = AutoTokenizer.from_pretrained(Path(skipwise.__file__).parent / "demo" / "demo-base")
    reader, task = LocalReader(model, tokenizer), Passkey(lengths=[length], trials=trials)
    said: dict[str, str] = {}

    def ours() -> None:
        reader.forget()
        items = task.items(reader)
        size = reader.at_once(length)
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            said.update(
                (item.key, found["answer"])
                for item, found in zip(batch, task.measure(reader, batch), strict=True)
            )

    generated: dict[str, str] = {}

    @torch.inference_mode()
    def plain() -> None:
        builder = PromptBuilder(tokenizer)
        for item in task.items(reader):
            prompt = builder.build(length, *item.what)
            tokens = torch.tensor([prompt.token_ids[: -prompt.answer_length]], device=DEVICE)
            written = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=prompt.answer_length,
                do_sample=False,
                pad_token_id=0,
            )
            generated[item.key] = tokenizer.decode(written[0, tokens.shape[1] :], skip_special_tokens=True)

    _, seconds, gib = timed(ours, 1)
    reader.forget()
    model.set_attn_implementation("sdpa")
    started = time.perf_counter()
    plain()
    wait()
    taken = time.perf_counter() - started
    same = sum(said[key] == generated[key] for key in generated)
    return {
        "shape": shape,
        "length": length,
        "trials": trials,
        "ours_seconds": seconds,
        "ours_gib": gib,
        "generate_seconds": taken,
        "ratio": taken / seconds,
        "same_answers": same,
    }


def memory(shape: str, length: int, piece: int) -> dict[str, Any]:
    """The losses of one document, whole and in pieces."""
    model = make(shape, length)
    document = np.random.default_rng(0).integers(1, model.config.vocab_size, size=length)
    result: dict[str, Any] = {"shape": shape, "length": length, "piece": piece}
    found = {}
    for name, tokens in (("whole", None), ("pieces", piece)):
        reader = LocalReader(model, None, piece=tokens)
        losses, result[f"{name}_seconds"], result[f"{name}_gib"] = timed(
            lambda r=reader: r.losses([document]), 1
        )
        found[name] = losses[0]
        result[f"{name}_tokens_per_second"] = length / result[f"{name}_seconds"]
    result["largest_difference"] = float(np.abs(found["whole"] - found["pieces"]).max())
    result["mean_difference"] = float(abs(found["whole"].mean() - found["pieces"].mean()))
    return result


def main() -> None:
    """Measure everything; a case that fails does not stop the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    exact_matmuls()
    long, small, big = (4_096, "tiny", "tiny") if options.tiny else (131_072, "135M", "6.7B")
    cases: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("memory", lambda: memory(big, long, long // 8)),
        ("perplexity 135M", lambda: perplexity(small, long, 3)),
        *((f"passkey {n}", lambda n=n: passkey(small, n, 50)) for n in (max(long // 64, 128), long // 8)),
        (f"passkey {long}", lambda: passkey(small, long, 20)),
        ("perplexity 6.7B", lambda: perplexity(big, long, 1)),
    ]
    results: dict[str, Any] = {"command": "python benchmarks/evals/run.py", **facts(), "cases": {}}
    for name, case in cases:
        try:
            results["cases"][name] = case()
        except Exception as error:  # noqa: BLE001
            results["cases"][name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            traceback.print_exc()
        print(name, json.dumps(results["cases"][name]), flush=True)
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
