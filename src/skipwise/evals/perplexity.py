"""Perplexity by position and at every window, from one forward pass a document.

A causal model's prediction at position t depends on tokens 0 .. t only, so the losses of the first L tokens
of one long pass are the losses of a pass over just those L tokens: every window shorter than the pass comes
for free. Perplexity is exp of the mean loss over scored tokens (not over windows or documents).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from skipwise.errors import RunError
from skipwise.evals.scores import Score

HEAD_CHUNK = 1_024
"""Tokens that pass the output head at a time: logits over a whole long document would not fit."""


def perplexity_scores(
    model: PreTrainedModel,
    documents: Sequence[NDArray[np.integer]],
    lengths: Sequence[int],
    *,
    name: str,
) -> list[Score]:
    """Perplexity of ``model`` over the first tokens of ``documents`` (arrays of token ids).

    For each length L: task ``perplexity`` over tokens 1 .. L - 1, ``perplexity_last_quarter`` over tokens
    3L/4 .. L - 1, and ``perplexity_bucket`` over consecutive buckets of positions, doubling in size. Each
    length uses the documents of at least that many tokens, and is left out when there is none.
    """
    losses = [token_losses(model, document[: max(lengths)]) for document in documents]
    scores: list[Score] = []
    longest = max((len(loss) for loss in losses), default=0)
    for length in lengths:
        if length > longest:
            continue
        scores.append(_score(losses, name, "perplexity", 1, length))
        scores.append(_score(losses, name, "perplexity_last_quarter", 3 * length // 4, length))
    edges = _bucket_edges(lengths)
    for start, end in itertools.pairwise(edges):
        if end > longest:
            continue
        bucket = _score(losses, name, "perplexity_bucket", max(start, 1), end)
        scores.append({**bucket, "start": start, "end": end})
    return scores


@torch.inference_mode()
def token_losses(model: PreTrainedModel, token_ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """The loss (negative log-likelihood, nats) of each token given all before it.

    In: ``(T,)`` token ids; out: float64 ``(T,)``, entry t the loss of token t. Entry 0 is nan: nothing
    predicts the first token.
    """
    tokens = torch.from_numpy(np.asarray(token_ids, dtype=np.int64)).to(model.device)[None]
    hidden = model.base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)[0][0]
    head = model.get_output_embeddings()
    _check_head(model, tokens[:, :8])
    losses = [torch.full((1,), torch.nan, device=hidden.device)]
    for chunk, labels in zip(hidden[:-1].split(HEAD_CHUNK), tokens[0, 1:].split(HEAD_CHUNK), strict=True):
        losses.append(torch.nn.functional.cross_entropy(head(chunk).float(), labels, reduction="none"))
    return torch.cat(losses).double().cpu().numpy()


def _check_head(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    """Refuse families that scale or cap their logits after the head: the head alone would be wrong."""
    outputs = model(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, output_hidden_states=True
    )
    expected = model.get_output_embeddings()(outputs.hidden_states[-1])
    if not torch.allclose(outputs.logits, expected, rtol=1e-4, atol=1e-4):
        raise RunError(
            f"{type(model).__name__} changes its logits after the output head, which the perplexity "
            "evaluation does not support yet"
        )


def _score(losses: Sequence[NDArray[np.float64]], name: str, task: str, start: int, end: int) -> Score:
    """Perplexity over positions start .. end - 1 of the documents that have them all."""
    spans = [loss[start:end] for loss in losses if len(loss) >= end]
    means = np.array([span.mean() for span in spans])
    value = float(np.exp(means.mean()))  # spans have one length, so this is the mean over tokens
    # Documents are the independent units; exp's derivative carries their spread over to the perplexity.
    stderr = value * float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else 0.0
    return {"model": name, "task": task, "length": end, "value": value, "n": len(spans), "stderr": stderr}


def _bucket_edges(lengths: Sequence[int]) -> list[int]:
    """0, then doublings that end at the largest length and begin near a quarter of the smallest."""
    edges = [max(lengths)]
    while edges[0] // 2 >= max(min(lengths) // 4, 2):  # token 0 is not scored: a bucket of it alone is empty
        edges.insert(0, edges[0] // 2)
    return [0, *edges]
