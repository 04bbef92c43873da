"""Asks a TensorFlow Serving server about a text or an image.

    python examples/serving/client.py topics --text "wheat prices rose"
    python examples/serving/client.py digits --pixels digits.npy
    python examples/serving/client.py topics --text "..." --protocol grpc

REST needs nothing but Python. gRPC needs `pip install tensorflow-serving-api`.
See docs/serving.md for the server.
"""

import argparse
import base64
import json
import sys
import time
import urllib.error
import urllib.request

import numpy as np

TIMEOUT = 60  # seconds, for one answer
NO_LIMIT = [("grpc.max_receive_message_length", -1)]  # 4 MB is the default


def wait_until_ready(url, name, version=None, seconds=60):
    """Waits until the server at `url` (REST) has the model, or this version."""
    end = time.monotonic() + seconds
    while True:
        try:
            statuses = _get(_model_url(url, name, version))
            states = [x["state"] for x in statuses["model_version_status"]]
            if "AVAILABLE" in states:
                return
            said = f"its state is {states}"
        except (OSError, urllib.error.URLError) as error:
            said = str(error)
        if time.monotonic() > end:
            raise TimeoutError(
                f"Model {name!r}, version {version or 'any'}, must be ready in "
                f"{seconds} s. Received from {url}: {said}. Is the server "
                "started, and is the model in its models.config?"
            )
        time.sleep(0.2)


def ask_rest(url, name, inputs, signature="serving_default", version=None):
    """Returns the model's outputs by name, over REST.

    Args:
        url: such as `"http://localhost:8501"`.
        name: the model's name.
        inputs: dict from names to arrays, or to lists of str or bytes.
        signature: str. Defaults to `"serving_default"`.
        version: int, or `None` for the newest. Defaults to `None`.
    """
    body = {
        "signature_name": signature,
        "inputs": {key: _to_json(value) for key, value in inputs.items()},
    }
    request = urllib.request.Request(
        _model_url(url, name, version) + ":predict",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        outputs = _get(request)["outputs"]
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        raise RuntimeError(f"{url} refused ({error}): {said}") from error
    # The server leaves out the name of an only output.
    outputs = outputs if isinstance(outputs, dict) else {"output_0": outputs}
    return {key: np.asarray(value) for key, value in outputs.items()}


def ask_grpc(address, name, inputs, signature="serving_default", version=None):
    """Does the same over gRPC, at an address such as `"localhost:8500"`."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    with grpc.insecure_channel(address, NO_LIMIT) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = stub.Predict(request, timeout=TIMEOUT)
    return {key: tf.make_ndarray(x) for key, x in answer.outputs.items()}


def _model_url(url, name, version):
    path = f"{url.rstrip('/')}/v1/models/{name}"
    return path if version is None else f"{path}/versions/{version}"


def _get(request):
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        return json.load(answer)


def _to_json(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [
        {"b64": base64.b64encode(x).decode()} if isinstance(x, bytes) else x
        for x in value
    ]


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("name", help="the model's name")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--text", nargs="+", help="for a TextClassifier")
    asked.add_argument(
        "--pixels",
        help="for a VisionTransformer: a .npy file of uint8 images, "
        "(B, height, width, channels)",
    )
    parser.add_argument(
        "--protocol", choices=("rest", "grpc", "both"), default="rest"
    )
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--rest-port", type=int, default=8501)
    parser.add_argument("--grpc-port", type=int, default=8500)
    parser.add_argument("--version", type=int, help="not the newest")
    parser.add_argument(
        "--wait", type=float, default=10, help="seconds, for the server"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    if options.text:
        inputs, signature = {"text": options.text}, "serve_text"
    else:
        inputs = {"pixels": np.load(options.pixels).astype("uint8")}
        signature = "serve_pixels"
    question = options.name, inputs, signature, options.version
    url = f"http://{options.host}:{options.rest_port}"
    try:
        wait_until_ready(url, options.name, options.version, options.wait)
        answers = {}
        if options.protocol != "grpc":
            answers["REST"] = ask_rest(url, *question)
        if options.protocol != "rest":
            address = f"{options.host}:{options.grpc_port}"
            answers["gRPC"] = ask_grpc(address, *question)
    except (ImportError, RuntimeError, TimeoutError) as error:
        sys.exit(f"error: {error}")
    for protocol, outputs in answers.items():
        for row, scores in enumerate(outputs["output_0"]):
            best = int(np.argmax(scores))
            print(f"{protocol} {row}: class {best}, {scores[best]:.4f}")


if __name__ == "__main__":
    main()
