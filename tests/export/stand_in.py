"""A stand-in for TensorFlow Serving, for the tests alone.

It speaks the two protocols, gRPC on the official stubs and a little of REST,
and does with a `models.config` what the server does: loads the newest version
of each model, replays its warm-up requests, and changes to a version that
appears. It is not the server: it has no batching, and runs what it serves in
Python's TensorFlow.
"""

import base64
import concurrent.futures
import contextlib
import http.server
import json
import pathlib
import re
import threading

import grpc
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

WARMUP = "assets.extra/tf_serving_warmup_requests"
POLL = 0.05  # seconds
URL = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(:predict)?")


def warmup_requests(folder):
    """The `PredictRequest`s of a SavedModel folder."""
    records = tf.data.TFRecordDataset([str(folder / WARMUP)])
    logs = map(
        prediction_log_pb2.PredictionLog.FromString,
        records.as_numpy_iterator(),
    )
    return [log.predict_log.request for log in logs]


def predict(model, request):
    """Runs a `PredictRequest` through a loaded SavedModel."""
    name = request.model_spec.signature_name or "serving_default"
    outputs = model.signatures[name](
        **{
            key: tf.constant(tf.make_ndarray(value))
            for key, value in request.inputs.items()
        }
    )
    response = predict_pb2.PredictResponse(model_spec=request.model_spec)
    for key, value in outputs.items():
        response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
    return response


class Models:
    """The newest version of each model of `models.config`."""

    def __init__(self, config):
        self.config = pathlib.Path(config)
        self.loaded = {}  # name to (version, SavedModel), swapped whole
        self.replayed = 0
        self.poll()

    def poll(self):
        config = text_format.Parse(
            self.config.read_text(), model_server_config_pb2.ModelServerConfig()
        )
        for model in config.model_config_list.config:
            versions = [
                int(path.name)
                for path in pathlib.Path(model.base_path).iterdir()
                if path.name.isdecimal()
            ]
            newest = max(versions)
            if self.loaded.get(model.name, (0,))[0] != newest:
                folder = pathlib.Path(model.base_path, str(newest))
                self.loaded[model.name] = newest, self.load(folder)

    def load(self, folder):
        model = tf.saved_model.load(folder)
        for request in warmup_requests(folder):
            predict(model, request)
            self.replayed += 1
        return model

    def find(self, name, version=None):
        """The version that is served, and the model."""
        found, model = self.loaded[name]
        if version not in (None, found):
            raise KeyError(f"version {version}")
        return found, model


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models):
        self.models = models

    def Predict(self, request, context):
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        try:
            found, model = self.models.find(spec.name, version)
        except KeyError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, f"not found: {error}")
        try:
            response = predict(model, request)
        except (TypeError, ValueError, tf.errors.OpError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response.model_spec.version.value = found
        return response


class Handler(http.server.BaseHTTPRequestHandler):
    models = None  # of the class made for one server

    def do_GET(self):
        self.answer(lambda version, model: self.status(version))

    def do_POST(self):
        body = json.loads(
            self.rfile.read(int(self.headers["Content-Length"])),
            object_hook=decoded,
        )
        self.answer(lambda version, model: self.predict(model, body))

    def answer(self, make):
        name, version, _ = URL.fullmatch(self.path).groups()
        try:
            found = self.models.find(name, version and int(version))
            code, answer = 200, make(*found)
        except (KeyError, TypeError, ValueError, tf.errors.OpError) as error:
            code = 404 if isinstance(error, KeyError) else 400
            answer = {"error": str(error)}
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def status(self, version):
        status = {"error_code": "OK", "error_message": ""}
        state = {"version": str(version), "state": "AVAILABLE"}
        return {"model_version_status": [{**state, "status": status}]}

    def predict(self, model, body):
        serve = model.signatures[body["signature_name"]]
        specs = serve.structured_input_signature[1]
        if set(specs) != set(body["inputs"]):
            raise ValueError(f"the inputs must be {sorted(specs)}")
        outputs = serve(
            **{
                key: tf.constant(value, specs[key].dtype)
                for key, value in body["inputs"].items()
            }
        )
        outputs = {k: v.numpy().tolist() for k, v in outputs.items()}
        only = len(outputs) == 1
        return {"outputs": next(iter(outputs.values())) if only else outputs}

    def log_message(self, *unused):
        pass


def decoded(value):
    """A JSON object, or the bytes that one with the key `b64` stands for."""
    return base64.b64decode(value["b64"]) if set(value) == {"b64"} else value


@contextlib.contextmanager
def stand_in(config):
    """Yields the stand-in's REST port, its gRPC port, and its `Models`."""
    models = Models(config)
    stopped = threading.Event()

    def watch():
        while not stopped.wait(POLL):
            models.poll()

    service = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Service(models), service
    )
    grpc_port = service.add_insecure_port("127.0.0.1:0")
    handler = type("OwnHandler", (Handler,), {"models": models})
    rest = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threads = [threading.Thread(target=x) for x in (watch, rest.serve_forever)]
    service.start()
    for thread in threads:
        thread.start()
    try:
        yield rest.server_address[1], grpc_port, models
    finally:
        stopped.set()
        rest.shutdown()
        for thread in threads:
            thread.join()
        rest.server_close()
        service.stop(None).wait()
