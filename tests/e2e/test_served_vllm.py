"""A real vLLM on the CPU and the same checkpoint here: the same answers, the same loss for every token.

vLLM pins a torch of its own, so it has an environment of its own: ``.vllm``, which ``make .vllm/installed``
makes, or the folder that SKIPWISE_VLLM names. Without one, these tests are skipped.
"""

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import skipwise
from skipwise.cli.evaluate import app
from skipwise.evals.opening import open_local, open_served
from skipwise.scores import Scores

VLLM = Path(os.environ.get("SKIPWISE_VLLM", Path(__file__).parents[2] / ".vllm"))
PYTHON = VLLM / "bin" / "python"
READY = 300
"""Seconds that the server may take to start; 30 to 60 are usual."""

needs_vllm = pytest.mark.skipif(not PYTHON.is_file(), reason="vLLM is not installed: make .vllm/installed")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def running(command, *, ready, log, environment=None):
    """A server, from when ``ready`` is a page; it is stopped with all its processes in any case."""
    with log.open("w") as file:
        server = subprocess.Popen(
            list(map(str, command)),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        wait_until_ready(ready, server, log)
        yield
    finally:
        stop(server)


def vllm(checkpoint, *, port, window, log):
    """vLLM with one checkpoint, in float32 and without compiling anything."""
    options = {
        "model": checkpoint,
        "served-model-name": "served",
        "dtype": "float32",
        "max-model-len": window,
        "max-num-seqs": 4,
        "host": "127.0.0.1",
        "port": port,
    }
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [word for key, value in options.items() for word in (f"--{key}", value)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one more than the checkpoint's
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
        "VLLM_NO_USAGE_STATS": "1",
    }
    return running(command, ready=f"http://127.0.0.1:{port}/health", log=log, environment=environment)


def wait_until_ready(url, server, log):
    end = time.monotonic() + READY
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    pytest.fail(f"the server did not start (exit code {server.poll()}):\n{log.read_text()[-4000:]}")


def stop(server):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(20)
    with contextlib.suppress(ProcessLookupError):  # its children may outlive it
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def with_rope(demo_base, folder, **changes):
    """The demo's checkpoint with other ``rope_parameters`` and a window of 1,024."""
    shutil.copytree(demo_base, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_position_embeddings": 1_024, "rope_parameters": {"rope_theta": 1_000.0} | changes}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(demo_base, tmp_path_factory):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    return with_rope(demo_base, tmp_path_factory.mktemp("yarn") / "model", **yarn)


@pytest.fixture(scope="module")
def address(checkpoint, tmp_path_factory):
    port = free_port()
    with vllm(checkpoint, port=port, window=1_025, log=tmp_path_factory.mktemp("vllm") / "log"):
        yield f"http://127.0.0.1:{port}/v1"


def evaluate(output, task, *arguments):
    found = CliRunner().invoke(app, [task, "--output", str(output), *map(str, arguments)])
    assert found.exit_code == 0, found.output
    (journal,) = (output / "measured").iterdir()
    items = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    return Scores.read(output).scores, {row["item"]: row["result"] for row in items}


@pytest.mark.slow
@needs_vllm
def test_passkeys_are_answered_alike(address, checkpoint, tmp_path):
    options = ["--lengths", "200,288,800", "--trials", 20, "--name", "m"]
    here, said_here = evaluate(tmp_path / "here", "passkey", checkpoint, *options)
    there, said_there = evaluate(
        tmp_path / "there", "passkey", "--base-url", address, "--tokenizer", checkpoint, *options
    )
    assert said_here == said_there
    assert here == there
    assert 0 < sum(said["found"] for said in said_here.values()) < 60  # neither blind nor perfect


@pytest.mark.slow
@needs_vllm
def test_perplexities_agree(address, checkpoint, tmp_path):
    text = Path(skipwise.__file__).parent / "config.py"
    options = ["--data", text, "--lengths", "64,1024", "--name", "m"]
    here, _ = evaluate(tmp_path / "here", "perplexity", checkpoint, *options)
    there, _ = evaluate(
        tmp_path / "there", "perplexity", "--base-url", address, "--tokenizer", checkpoint, *options
    )
    assert [each.key for each in here] == [each.key for each in there]
    assert len(here) > 4
    for one, other in zip(here, there, strict=True):
        assert other.samples == pytest.approx(one.samples, abs=1e-3)
        assert other.value == pytest.approx(one.value, rel=1e-3)


@pytest.mark.slow
@needs_vllm
def test_every_token_has_the_same_loss_and_another_rope_another(address, checkpoint, demo_base, tmp_path):
    rows = np.random.default_rng(0).integers(1, 2048, (3, 1_024))
    there = np.array(open_served(address, name="m", tokenizer=checkpoint).losses(rows, 2))
    here = np.array(open_local(checkpoint, name="m", device="cpu").losses(rows, 2))
    assert here.shape == there.shape == (3, 1_022)
    assert np.abs(here - there).max() < 1e-3
    other = with_rope(demo_base, tmp_path / "other", rope_type="linear", factor=4.0)
    changed = np.array(open_local(other, name="m", device="cpu").losses(rows, 2))
    assert np.abs(changed - there).max() > 0.1


STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", sys.argv[1]])
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.pause()
"""


def test_a_server_stops_with_its_children_when_a_test_fails(tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-c", STUBBORN, port]
    with pytest.raises(KeyError), running(command, ready=url, log=tmp_path / "log"):
        raise KeyError
    for _ in range(100):  # what was killed takes a moment to be gone
        with contextlib.closing(socket.socket()) as client:
            if client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED:
                return
        time.sleep(0.1)
    pytest.fail("the child goes on serving")


def test_a_server_that_does_not_start_says_why(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    ready = f"http://127.0.0.1:{free_port()}/"
    with (
        pytest.raises(pytest.fail.Exception, match=r"did not start \(exit code 1\):\nno such model"),
        running(command, ready=ready, log=tmp_path / "log"),
    ):
        pass
