"""A served model, against servers that do what real ones were seen to do: good answers, and every bad one."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import numpy as np
import pytest
from transformers import AutoTokenizer

from skipwise.errors import InputError, RunError
from skipwise.evals import served
from skipwise.evals.served import ServedReader
from skipwise.scores import Subject

URL = "http://server:8000/v1"
ONE_MODEL = {"data": [{"id": "m", "max_model_len": 64}]}


@pytest.fixture(scope="module")
def tokenizer(demo_base):
    return AutoTokenizer.from_pretrained(demo_base)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(served, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.delenv(served.KEY, raising=False)


def completion(text="", logprobs=None):
    return {"choices": [{"index": 0, "text": text, "logprobs": logprobs}]}


def echo(body):
    """vLLM's answer to an echo: log-probabilities (-token / 10) of all but the first, and the new one's."""
    values = [-token / 10 for token in body["prompt"]] + [-9.0]
    return completion(logprobs={"token_logprobs": [None, *values[1:]]})


class Server:
    """Answers ``models`` and what ``complete(body)`` gives: JSON, a status and a text, or an error."""

    def __init__(self, complete=echo, models=ONE_MODEL):
        self.complete, self.models = complete, models
        self.requests, self.bodies = [], []

    def __call__(self, request):
        self.requests.append(request)
        found = self.models
        if request.method == "POST":
            self.bodies.append(json.loads(request.content))
            found = self.complete(self.bodies[-1])
        if isinstance(found, Exception):
            raise found
        status, content = found if isinstance(found, tuple) else (200, found)
        if isinstance(content, str):
            return httpx2.Response(status, text=content)
        return httpx2.Response(status, json=content)

    def reader(self, tokenizer, url=URL, **options):
        client = httpx2.Client(transport=httpx2.MockTransport(self))
        return ServedReader(
            url, tokenizer, Subject(name="s", window=999, dtype="x"), client=client, **options
        )


def in_turn(*answers):
    left = list(answers)
    return lambda body: left.pop(0)


def test_losses_are_those_of_the_prompt_alone(tokenizer):
    server = Server()
    rows = [np.array([5, 6, 7, 8]), [9, 10, 11, 12]]
    found = server.reader(tokenizer).losses(rows, 2)
    assert [each.tolist() for each in found] == [[0.7, 0.8], [1.1, 1.2]]
    assert found[0].dtype == np.float64
    assert [each.tolist() for each in server.reader(tokenizer).losses(rows[:1])] == [[0.6, 0.7, 0.8]]
    for body in server.bodies:
        assert body["echo"]
        assert body["logprobs"] == 1  # SGLang: 0 would mean none
        assert body["max_tokens"] == 1  # vLLM: a prompt of the whole window is one too long


def test_answers_are_greedy_whatever_the_checkpoint_says(tokenizer):
    server = Server(lambda body: completion(" 123"))
    assert server.reader(tokenizer).generate([[5, 6]], 7) == [" 123"]
    (body,) = server.bodies
    assert body["prompt"] == [5, 6]
    assert body["max_tokens"] == 7
    assert body["model"] == "m"
    assert body["temperature"] == 0
    assert body["repetition_penalty"] == body["repeat_penalty"] == 1
    assert "echo" not in body
    assert "logprobs" not in body


def test_rows_go_together_and_answers_keep_their_order(tokenizer):
    together = threading.Barrier(3, timeout=10)

    def slow_first(body):
        together.wait()  # passes only with three requests under way at once
        time.sleep(0.1 / body["prompt"][0])
        return completion(str(body["prompt"][0]))

    reader = Server(slow_first).reader(tokenizer, rows=3)
    assert reader.at_once(100_000) == 3
    assert reader.generate([[1], [2], [3], [4], [5], [6]], 1) == list("123456")


def test_the_record_says_what_was_served(tokenizer):
    reader = Server().reader(tokenizer, URL + "/")
    assert reader.subject == Subject(name="s", path=f"{URL} (m)", window=64)
    silent = Server(models={"data": [{"id": "m"}]}).reader(tokenizer)
    assert silent.subject.window == 999
    # vLLM, made to serve more, reads past the end of its table of angles
    longer = Server(models={"data": [{"id": "m", "max_model_len": 9_999}]}).reader(tokenizer)
    assert longer.subject.window == 999


def test_one_of_several_models(tokenizer):
    several = Server(lambda body: completion(body["model"]), {"data": [{"id": "a"}, {"id": "b"}]})
    assert several.reader(tokenizer, model="b").generate([[1]], 1) == ["b"]
    with pytest.raises(InputError, match=r"has several models: name one of a, b$"):
        several.reader(tokenizer)
    with pytest.raises(InputError, match=r"has no model c: name one of a, b$"):
        several.reader(tokenizer, model="c")
    with pytest.raises(InputError, match=r"has no model: name one of those it loads$"):
        Server(models={"data": []}).reader(tokenizer)


def test_a_key_is_sent_where_one_is_set(tokenizer, monkeypatch):
    server = Server()
    server.reader(tokenizer)
    monkeypatch.setenv("SKIPWISE_API_KEY", "secret")
    server.reader(tokenizer)
    sent = [request.headers.get("authorization") for request in server.requests]
    assert sent == [None, "Bearer secret"]


@pytest.mark.parametrize(
    ("models", "line"),
    [
        ((404, '{"detail":\n"Not Found"}'), r"/models answered 404 .*does --base-url end in /v1\?$"),
        ((200, "<html>"), r"/models is no OpenAI-compatible page: does --base-url end in /v1\?$"),
        ({"models": []}, r"is no OpenAI-compatible page"),
        ([], r"is no OpenAI-compatible page"),
        ((401, "Unauthorized"), r"answered 401 \(Unauthorized\): set SKIPWISE_API_KEY$"),
        ((403, "Forbidden"), r"answered 403 \(Forbidden\): set SKIPWISE_API_KEY$"),
    ],
)
def test_a_page_that_is_none(tokenizer, models, line):
    with pytest.raises(InputError, match=line) as error:
        Server(models=models).reader(tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "file:///etc/hosts", ""])
def test_an_address_that_is_none(tokenizer, url):
    with pytest.raises(InputError, match="must begin with http://"):
        ServedReader(url, tokenizer, Subject(name="s"))


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "127.0.0.1:port"])
def test_nobody_there(tokenizer, host):
    with pytest.raises(InputError, match=r"does not answer: is the server up\? \(") as error:
        ServedReader(f"http://{host.format(port=free_port())}/v1", tokenizer, Subject(name="s"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(tokenizer, status):
    server = Server(in_turn((status, "busy"), (status, "busy"), (status, "busy"), completion("yes")))
    assert server.reader(tokenizer).generate([[1]], 1) == ["yes"]
    assert len(server.bodies) == 4


def test_a_server_that_stays_busy_is_given_up(tokenizer):
    server = Server(lambda body: (503, "no room"))
    with pytest.raises(RunError, match=r"/completions answered 503 \(no room\)$"):
        server.reader(tokenizer).generate([[1]], 1)
    assert len(server.bodies) == 4


@pytest.mark.parametrize("lost", [httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.ConnectError])
def test_a_lost_connection_is_made_again(tokenizer, lost):
    server = Server(in_turn(lost("gone"), completion("yes")))
    assert server.reader(tokenizer).generate([[1]], 1) == ["yes"]
    with pytest.raises(RunError, match=r"server:8000/v1 broke off: gone$"):
        Server(lambda body: lost("gone")).reader(tokenizer).generate([[1]], 1)


def test_an_answer_that_does_not_come_is_not_waited_for_again(tokenizer):
    server = Server(lambda body: httpx2.ReadTimeout(""))
    with pytest.raises(RunError, match="broke off: ReadTimeout"):
        server.reader(tokenizer).generate([[1]], 1)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(("status", "kind"), [(400, InputError), (404, InputError), (500, RunError)])
def test_a_refusal_is_one_line_with_what_the_server_said(tokenizer, status, kind):
    server = Server(lambda body: (status, '{"error":\n {"message": "Token id 9 is out of vocabulary"}}'))
    with pytest.raises(kind, match=rf"answered {status} .*Token id 9 is out") as error:
        server.reader(tokenizer).generate([[9]], 1)
    assert "\n" not in str(error.value)
    assert len(server.bodies) == 1


def test_no_choice_at_all(tokenizer):
    with pytest.raises(RunError, match="without a choice"):
        Server(lambda body: {"choices": []}).reader(tokenizer).generate([[1]], 1)


@pytest.mark.parametrize(
    "answer",
    [
        completion("text alone"),
        completion(logprobs={"token_logprobs": [-1.0]}),  # of the new token only
        completion(logprobs={"token_logprobs": [None, -1.0, None, -1.0]}),
        (400, '{"error":{"code":400,"message":"Only no echo is supported"}}'),  # llama-server
        (500, '{"error":{"code":500,"message":"Only no echo is supported"}}'),
    ],
)
def test_a_server_without_losses_is_named_as_one(tokenizer, answer):
    with pytest.raises(InputError, match=r"no log-probabilities of the prompt.*vLLM or SGLang"):
        Server(lambda body: answer).reader(tokenizer).losses([[5, 6, 7]])


def test_what_is_too_long_is_said_before_it_is_sent(tokenizer):
    server = Server(lambda body: completion("yes"))
    reader = server.reader(tokenizer)
    assert reader.generate([[1] * 60], 4) == ["yes"]
    with pytest.raises(InputError, match=r"has room for 64 tokens, 60 and 5 of the answer are more"):
        reader.generate([[1] * 60], 5)
    assert len(server.bodies) == 1


def test_a_server_that_takes_only_text_gets_text(tokenizer):
    """The server of llama-cpp-python: its prompts are strings, and it puts the BOS token first itself.

    The log-probabilities that it gives are not those of the tokens they stand beside.
    """
    refusal = {"error": {"message": "{'type': 'string_type', 'loc': ('body', 'prompt', 'str')", "code": None}}
    good = completion("yes", {"token_logprobs": [None, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0]})
    server = Server(lambda body: good if isinstance(body["prompt"], str) else (500, refusal))
    words = tokenizer("if x == 1:", add_special_tokens=False)["input_ids"]

    class WithStart:
        decode = tokenizer.decode

        def __call__(self, text, add_special_tokens=True):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [7, *ids] if add_special_tokens else ids}

    reader = server.reader(WithStart(), rows=1)
    assert reader.generate([[7, *words], words], 1) == ["yes", "yes"]
    assert [body["prompt"] for body in server.bodies[1:]] == ["if x == 1:"] * 2
    with pytest.raises(InputError, match="no log-probabilities"):
        reader.losses([words])


class Cut(BaseHTTPRequestHandler):
    """Cuts the first POST off, without an answer. Keeps connections open if it is let."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(ONE_MODEL)

    def do_POST(self):
        self.server.callers.append(self.client_address)
        self.rfile.read(int(self.headers["content-length"]))
        if not self.server.was_cut:
            self.server.was_cut = True
            self.close_connection = True
            return
        self.answer(completion("yes"))

    def answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def test_over_a_real_socket(tokenizer):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cut)
    server.was_cut, server.callers = False, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        reader = ServedReader(url, tokenizer, Subject(name="s"))
        assert reader.generate([[1]], 1) == ["yes"]
        assert reader.generate([[1]], 1) == ["yes"]
        assert server.was_cut
        assert len(set(server.callers)) == len(server.callers) == 3  # nothing is left open in between
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
