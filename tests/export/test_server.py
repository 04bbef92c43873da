"""A server takes up what was published, and the example's client asks it.

Each test runs with the stand-in of `stand_in.py`, and with the real server
where `tensorflow_model_server` is on PATH.
"""

import dataclasses
import importlib.util
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from exported import NAME
from helpers import predict

from keras_linattn.export import serving_directory
from keras_linattn.export._configs import write_configs

pytest.importorskip("tensorflow_serving")
from stand_in import stand_in  # noqa: E402  (after the skip above)

ROOT = pathlib.Path(__file__).parents[2]
CLIENT = ROOT / "examples" / "serving" / "client.py"
SERVER = "tensorflow_model_server"
TEXTS = ["wheat prices rose", "blé, 小麦"]
TOLERANCE = 1e-5
SECONDS = 120  # for what takes a few


def load_client():
    spec = importlib.util.spec_from_file_location("serving_client", CLIENT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


client = load_client()


def expected(model):
    texts = [text.encode() for text in TEXTS]
    tokens = np.zeros((len(texts), max(map(len, texts))), "int32")
    for row, text in zip(tokens, texts):
        row[: len(text)] = np.frombuffer(text, "uint8").astype("int32") + 1
    return predict(model, tokens)


@dataclasses.dataclass
class Server:
    base: pathlib.Path
    url: str
    address: str

    def ask(self, protocol, inputs, signature, version=None):
        question = NAME, inputs, signature, version
        if protocol == "REST":
            return client.ask_rest(self.url, *question)["output_0"]
        return client.ask_grpc(self.address, *question)["output_0"]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(params=["stand-in", SERVER])
def server(request, published, tmp_path):
    if request.param == SERVER and shutil.which(SERVER) is None:
        pytest.skip(f"{SERVER} is not on PATH")
    base = tmp_path / "models"
    shutil.copytree(published.base / NAME, base / NAME)
    write_configs(base)
    if request.param == "stand-in":
        with stand_in(base / "models.config") as (rest, grpc, models):
            assert models.replayed > 0
            yield Server(base, f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}")
        return
    rest, grpc = free_port(), free_port()
    command = [
        SERVER,
        f"--port={grpc}",
        f"--rest_api_port={rest}",
        f"--model_config_file={base / 'models.config'}",
        "--file_system_poll_wait_seconds=1",
        "--enable_batching=true",
        f"--batching_parameters_file={base / 'batching.config'}",
    ]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Server(base, f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}")
    finally:
        process.terminate()
        process.wait(SECONDS)


def test_answers_by_both_protocols(server, published):
    client.wait_until_ready(server.url, NAME, seconds=SECONDS)
    wanted = expected(published.model)
    for protocol in ("REST", "gRPC"):
        for texts in (TEXTS, [text.encode() for text in TEXTS]):
            received = server.ask(protocol, {"text": texts}, "serve_text")
            np.testing.assert_allclose(received, wanted, rtol=0, atol=TOLERANCE)
        tokens = np.array([[1, 2, 3]], "int32")
        np.testing.assert_allclose(
            server.ask(protocol, {"tokens": tokens}, "serving_default", 1),
            predict(published.model, tokens),
            rtol=0,
            atol=TOLERANCE,
        )


@pytest.mark.once
def test_refusals_reach_the_user(server):
    client.wait_until_ready(server.url, NAME, seconds=SECONDS)
    with pytest.raises(RuntimeError, match="refused"):
        server.ask("REST", {"txt": TEXTS}, "serve_text")
    with pytest.raises(RuntimeError, match="refused.*404"):
        server.ask("REST", {"text": TEXTS}, "serve_text", version=9)
    with pytest.raises(TimeoutError, match="'cats', version any, must be"):
        client.wait_until_ready(server.url, "cats", seconds=0)


@pytest.mark.once
def test_a_new_version_fails_no_request(server, published):
    client.wait_until_ready(server.url, NAME, seconds=SECONDS)
    keras.utils.set_random_seed(1)
    second = type(published.model).from_config(published.model.get_config())
    wanted = [expected(published.model), expected(second)]
    assert np.abs(wanted[0] - wanted[1]).max() > 100 * TOLERANCE
    seen, failures, switched = [], [], threading.Event()

    def ask_on():
        """Until an answer is of version 2: each is of one version."""
        while not (failures or switched.is_set()):
            for protocol in ("REST", "gRPC"):
                try:
                    received = server.ask(
                        protocol, {"text": TEXTS}, "serve_text"
                    )
                except Exception as error:  # whatever it is, it is a failure
                    failures.append(error)
                    return
                errors = [np.abs(received - x).max() for x in wanted]
                seen.append(int(np.argmin(errors)) + 1)
                if min(errors) > TOLERANCE:
                    failures.append(f"an answer of neither: {errors}")
            if seen[-2:] == [2, 2]:
                switched.set()

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        path = serving_directory(second, server.base, NAME, verbose=False)
        assert path == server.base / NAME / "2"
        asking.join(SECONDS)
    finally:
        switched.set()
        asking.join()
    assert not failures
    assert seen == sorted(seen) and set(seen) == {1, 2}


@pytest.mark.once
def test_the_example_runs(server, published):
    rest, grpc = (x.rpartition(":")[2] for x in (server.url, server.address))
    child = subprocess.run(
        [sys.executable, CLIENT, NAME, "--text", *TEXTS]
        + ["--host", "127.0.0.1", "--protocol", "both", "--wait", str(SECONDS)]
        + ["--rest-port", rest, "--grpc-port", grpc],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
    )
    assert child.returncode == 0, child.stderr
    rows = [
        f"{row}: class {np.argmax(scores)}, {scores.max():.4f}"
        for row, scores in enumerate(expected(published.model))
    ]
    assert child.stdout.splitlines() == [
        f"{protocol} {row}" for protocol in ("REST", "gRPC") for row in rows
    ]


@pytest.mark.once
def test_the_example_without_a_server():
    child = subprocess.run(
        [sys.executable, CLIENT, NAME, "--text", "x", "--wait", "0"]
        + ["--host", "127.0.0.1", "--rest-port", str(free_port())],
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
    )
    assert child.returncode == 1
    assert child.stderr.startswith("error: Model 'topics', version any")
    assert "Is the server started" in child.stderr
