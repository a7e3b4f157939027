"""A `Reader` as lm-evaluation-harness asks its models; nothing of the harness is changed."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedTokenizerBase

from skipwise.errors import InputError
from skipwise.evals.local import LocalReader
from skipwise.evals.reader import Reader, encode, start_tokens
from skipwise.evals.served import KEY, PLAIN, ServedReader


def language_model(reader: Reader, batch_size: int, *, scores: bool) -> Any:
    """The model as the harness asks it. ``cut`` counts the prompts that are longer than its window.

    ``scores``: it will be asked for the probability of given answers. Texts are encoded as the tokenizer does
    by itself, with a BOS token or without, here as behind a server. Raises InputError for a server that gives
    no log-probabilities, and for packages that are missing.
    """
    if isinstance(reader, LocalReader):
        return _local(reader, batch_size)
    if isinstance(reader, ServedReader):
        if scores:
            text = encode(reader.tokenizer, "yes or no")
            reader.losses([[*start_tokens(reader.tokenizer), *text]])  # raises where it cannot be had
        return _served(reader, batch_size)
    raise TypeError(f"the harness cannot ask a {type(reader).__name__}")


def _local(reader: LocalReader, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    reader.forget()
    tokenizer = _copy(reader)
    if tokenizer.pad_token_id is None:  # else it might add a token to the vocabulary; padding is masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return _counting(HFLM)(
        pretrained=reader.model,
        tokenizer=tokenizer,
        backend="causal",
        max_length=reader.subject.window or None,
        batch_size=batch_size,
        softmax_dtype="float32",
    )


def _served(reader: ServedReader, batch_size: int) -> Any:
    if not (find_spec("aiohttp") and find_spec("tenacity") and find_spec("requests")):
        raise InputError("the harness asks servers with packages of its own: pip install 'lm-eval[api]'")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class Plain(LocalCompletionsAPI):  # type: ignore[misc]
        """Without what a checkpoint's generation config says."""

        def _create_payload(self, *given: Any, **options: Any) -> dict[str, Any]:
            return {**PLAIN, **super()._create_payload(*given, **options)}

    model = _counting(Plain)(
        base_url=f"{reader.base_url}/completions",
        model=reader.model,
        tokenizer_backend=None,  # it would load one by its name
        batch_size=batch_size,
        max_length=reader.subject.window or 2**30,
        add_bos_token=bool(start_tokens(reader.tokenizer)),
        header={"Authorization": f"Bearer {os.environ.get(KEY, '')}"},  # never the key of another service
        timeout=3_600,
    )
    model.tokenizer = _copy(reader)
    model.tokenizer_backend, model.tokenized_requests = "huggingface", True
    return model


def _copy(reader: Reader) -> PreTrainedTokenizerBase:
    """The tokenizer, for the harness to write to; it has no limit to warn of, the window is the model's."""
    tokenizer = copy.deepcopy(reader.tokenizer)
    tokenizer.model_max_length = 2**62
    return tokenizer


def _counting(kind: Callable[..., Any]) -> Callable[..., Any]:
    """A model of the harness that counts the prompts whose beginning it cuts off."""

    class Counting(kind):  # type: ignore[misc, valid-type]
        cut = 0

        def _loglikelihood_tokens(self, requests: Any, *given: Any, **options: Any) -> Any:
            self.cut += sum(len(each[1]) + len(each[2]) > self.max_length + 1 for each in requests)
            return super()._loglikelihood_tokens(requests, *given, **options)

    return Counting


class _Nowhere(io.TextIOBase):
    """Takes all and shows nothing. Never closed: a progress bar may still hold it."""

    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars, logs and warnings of the harness and of what it uses on stderr."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(_Nowhere()):
        warnings.simplefilter("ignore")
        yield
