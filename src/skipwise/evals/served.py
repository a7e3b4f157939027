"""A model behind an OpenAI-compatible completions server: vLLM, SGLang, llama.cpp.

Prompts are sent as token ids, so the server's model must have the tokenizer that is used here. (Only the
server of llama-cpp-python takes nothing but text; its prompts can come out a few tokens longer or shorter.)
Losses need the log-probabilities of the prompt itself (``echo`` with ``logprobs``), which vLLM and SGLang
give. Each row is a request of its own; several are under way at once, for the server to batch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from skipwise.errors import InputError, RunError
from skipwise.evals.reader import Tokens, start_tokens
from skipwise.scores import Subject

TIMEOUT = httpx2.Timeout(10.0, read=3_600.0)
"""Seconds: a server that is there answers soon, but may read a million tokens before it has a result."""

NO_SOCKETS_KEPT = httpx2.Limits(max_keepalive_connections=0)
"""Between requests: a new connection costs nothing beside them, and nobody has to close the last one."""

WAITS = (1.0, 2.0, 4.0)
"""Seconds before a request is sent again that the server was too busy for, or that was cut off."""

BUSY = (429, 502, 503, 504)

KEY = "SKIPWISE_API_KEY"
"""Environment variable of the key that a server may ask for: never another service's, sent by mistake."""

PLAIN = {"temperature": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
"""Greedy, whatever a checkpoint's generation config says: vLLM and SGLang (first two), llama.cpp (last)."""


class ServedReader:
    """A `Reader` over a server at ``base_url``, which ends in ``/v1``.

    ``model``: one of its names, None: its only one. ``rows``: requests under way at once.
    Raises InputError when no server answers there, or none that has the model, and RunError when it breaks
    down. ``client``: for tests.
    """

    def __init__(
        self,
        base_url: str,
        tokenizer: PreTrainedTokenizerBase,
        subject: Subject,
        *,
        model: str | None = None,
        rows: int = 4,
        client: httpx2.Client | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        if not self.base_url.startswith(("http://", "https://")):
            raise InputError(f"--base-url {base_url}: must begin with http:// (http://host:port/v1)")
        self.tokenizer = tokenizer
        self._rows = rows
        key = os.environ.get(KEY)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = client or httpx2.Client(timeout=TIMEOUT, limits=NO_SOCKETS_KEPT, follow_redirects=True)
        self._texts = False
        found = self._find(model)
        self.model = str(found["id"])
        self._room = int(found.get("max_model_len") or 0)
        self.subject = subject.model_copy(
            update={
                "path": f"{self.base_url} ({self.model})",
                "window": min(filter(None, (self._room, subject.window)), default=0),
                "dtype": "",
                "attention": "",
            }
        )

    def at_once(self, length: int) -> int:  # noqa: ARG002
        """As many rows as were asked for: the server decides what it batches."""
        return self._rows

    def losses(self, rows: Sequence[Tokens], first: int = 1) -> list[NDArray[np.float64]]:
        """See `Reader.losses`. Raises InputError for a server that gives no log-probabilities of prompts."""
        return self._each(rows, lambda row: self._row_losses(row, first))

    def generate(self, prompts: Sequence[Tokens], new_tokens: int) -> list[str]:
        """See `Reader.generate`."""
        return self._each(prompts, lambda row: str(self._complete(row, max_tokens=new_tokens)["text"]))

    def _each(self, rows: Sequence[Tokens], work: Callable[[Tokens], Any]) -> list[Any]:
        with ThreadPoolExecutor(self._rows) as pool:
            return list(pool.map(work, rows))

    def _row_losses(self, row: Tokens, first: int) -> NDArray[np.float64]:
        # SGLang takes an echo with no log-probability for one without any; every server wants a token to make
        choice = self._complete(row, max_tokens=1, echo=True, logprobs=1)
        values = ((choice.get("logprobs") or {}).get("token_logprobs") or [])[: len(row)]
        # llama-cpp-python, which wants text, gives values that belong one token further (0.3.36)
        if self._texts or len(values) < len(row) or any(value is None for value in values[1:]):
            raise InputError(self._no_losses())
        return -np.array(values[first:], dtype=np.float64)

    def _no_losses(self) -> str:
        return (
            f"{self.base_url} gives no log-probabilities of the prompt, which losses are made of: use a vLLM "
            "or SGLang server, or the checkpoint itself"
        )

    def _complete(self, row: Tokens, *, max_tokens: int, **options: Any) -> dict[str, Any]:
        """What the server says to one prompt."""
        tokens = [int(token) for token in row]
        if self._room and len(tokens) + max_tokens > self._room:
            raise InputError(
                f"{self.base_url} has room for {self._room} tokens, {len(tokens)} and {max_tokens} of the "
                "answer are more: start it with a longer context, or evaluate shorter lengths"
            )
        body = {"model": self.model, "max_tokens": max_tokens, **PLAIN, **options}
        prompt: str | list[int] = self._text(tokens) if self._texts else tokens
        answer = self._send("POST", "/completions", body | {"prompt": prompt})
        if answer.is_error and "string_type" in answer.text:  # pydantic's word for: no string
            self._texts = True
            answer = self._send("POST", "/completions", body | {"prompt": self._text(tokens)})
        if "echo" in options and answer.is_error and "echo" in answer.text:  # llama-server
            raise InputError(self._no_losses())
        choices = self._content(answer, "choices")
        if not choices:
            raise RunError(f"{self.base_url} answered without a choice")
        return dict(choices[0])

    def _text(self, tokens: list[int]) -> str:
        """The prompt without the tokens that the server itself puts first."""
        start = start_tokens(self.tokenizer)
        rest = tokens[len(start) :] if tokens[: len(start)] == start else tokens
        return str(self.tokenizer.decode(rest))

    def _find(self, model: str | None) -> dict[str, Any]:
        try:
            answer = self._send("GET", "/models")
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.InvalidURL) as error:
            raise InputError(f"{self.base_url} does not answer: is the server up? ({error})") from None
        served: list[dict[str, Any]] = self._content(answer, "data")
        if model is None and len(served) == 1:
            return served[0]
        for each in served:
            if each["id"] == model:
                return each
        names = ", ".join(str(each["id"]) for each in served)
        asked = f"no model {model}" if model else "several models" if served else "no model"
        raise InputError(f"{self.base_url} has {asked}: name one of {names or 'those it loads'}")

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        """The last answer; a busy server and a lost connection are asked again."""
        for wait in (*WAITS, None):
            try:
                answer = self._client.request(method, self.base_url + path, json=body, headers=self._headers)
                if answer.status_code not in BUSY or wait is None:
                    return answer
            except httpx2.TransportError as error:
                if method == "GET" and isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                    raise  # no server there, rather than one that was lost
                if wait is None or isinstance(error, httpx2.ReadTimeout):
                    raise RunError(
                        f"{self.base_url} broke off: {str(error) or type(error).__name__}"
                    ) from None
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _content(self, answer: httpx2.Response, field: str) -> list[dict[str, Any]]:
        """A list in the answer. Raises InputError or RunError for an answer that is none."""
        where = f"{self.base_url}{'/models' if field == 'data' else '/completions'}"
        address = "does --base-url end in /v1?"
        if answer.is_success:
            try:
                return list(answer.json()[field])
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{where} is no OpenAI-compatible page: {address}") from None
        hint = {401: f": set {KEY}", 403: f": set {KEY}", 404: f": {address}"}.get(answer.status_code, "")
        kind = InputError if answer.status_code < 500 else RunError
        said = " ".join(answer.text.split())[:300]
        raise kind(f"{where} answered {answer.status_code} ({said}){hint}")
