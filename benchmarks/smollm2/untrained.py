"""What an interpolation costs inside the old window before any training: the less, the less is to be mended.

    python benchmarks/smollm2/untrained.py OUT.jsonl --model SMOLLM2 --text TOKENS.npz OTHER.npz

Documents of each kind at 2,048 tokens, dev novels also at 8,192; a line for each of `SETTINGS`. About a
minute each on two CPU cores, float32.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from search import DEFAULTS, NOT_JUDGED, opened, read_tokens

from skipwise.evals.local import LocalReader
from skipwise.evals.perplexity import Perplexity
from skipwise.evals.run import evaluate
from skipwise.models.load import find_checkpoint, load_tokenizer

BASES = [{"interpolation": "abf", "rope": {"rope_theta": theta}} for theta in (1.6e6, 4e6)]
RAMPS = [(32, 1), (2, 1), (1, 0.25)]
FACTORS = [1.0, 1.277]


def settings() -> list[dict[str, Any]]:
    """The untouched model first; each base and each ramp of YaRN without and with its attention factor."""
    found: list[dict[str, Any]] = [{"interpolation": "untouched"}]
    for factor in FACTORS:
        own = {"attention_factor": factor}
        found += [each | {"rope": each["rope"] | own} for each in BASES]
        ramps = [{"beta_fast": fast, "beta_slow": slow} for fast, slow in RAMPS]
        found += [{"interpolation": "yarn", "rope": ramp | own} for ramp in ramps]
    return [*found, {"interpolation": "linear", "rope": {}}]


def main() -> None:
    """Append a line for each setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--documents", type=int, default=2, help="of each kind")
    options = parser.parse_args()
    tokens = read_tokens(options.text)
    checkpoint = find_checkpoint(options.model)
    tokenizer = load_tokenizer(checkpoint)
    kinds = {kind: (tokens[kind], 2048) for kind in sorted(set(tokens) - NOT_JUDGED)}
    kinds |= {"novels": (tokens["dev"], 2048), "novels, 8k": (tokens["dev"], 8192)}
    for changes in settings():
        reader = LocalReader(opened(DEFAULTS | changes, checkpoint), tokenizer)
        found = {
            kind: perplexity(reader, texts[: options.documents], n) for kind, (texts, n) in kinds.items()
        }
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(changes | {"perplexity": found}) + "\n")
        print(changes, found, flush=True)


def perplexity(reader: LocalReader, documents: list[np.ndarray], length: int) -> float:
    """Of the first ``length`` tokens."""
    return round(evaluate(Perplexity(documents=documents, lengths=[length]), reader)[0].value, 4)


if __name__ == "__main__":
    main()
