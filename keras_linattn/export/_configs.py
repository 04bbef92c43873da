"""The two files beside the models: `models.config`, `batching.config`.

Both are protocol buffers as text, for the server's `--model_config_file` and
`--batching_parameters_file`.
"""

import os
import re
import uuid

MODELS = "models.config"
BATCHING = "batching.config"
# In a URL, a shell and a file system each of these stands for itself.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
# What the server reads as a number. It takes the sign and zeros in front, too.
VERSION = re.compile(r"[+-]?[0-9]+")
# Of protobuf text: what stands in strings and comments is none of the others.
TOKEN = re.compile(
    r"""\#[^\n]* | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*'
    | (?P<open>[{<]) | (?P<close>[}>]) | (?P<name>[A-Za-z_]\w*)""",
    re.VERBOSE,
)
# The message is `BatchingParameters` of the server's
# session_bundle_config.proto, which has no Python stub.
BATCHING_TEXT = """\
# The server runs requests that arrive together as one batch. Start it with
# --enable_batching and --batching_parameters_file=batching.config.
# This file is written once and never replaced: you can change it.

# A batch is at most this large, and waits at most this long for company.
max_batch_size { value: 32 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 100 }

# The server pads a batch to one of these sizes with copies of a row, and drops
# their outputs. A model from JAX is then compiled for these sizes only.
allowed_batch_sizes: 1
allowed_batch_sizes: 2
allowed_batch_sizes: 4
allowed_batch_sizes: 8
allowed_batch_sizes: 16
allowed_batch_sizes: 32

# Leave this off. The server pads with the first element of a request. A model
# reads that as a token, and its answers are wrong. Send text to `serve_text`,
# which pads in the model, or inputs of one length.
pad_variable_length_inputs: false
"""


def read_models_config(base):
    """The `ModelServerConfig` of the folder `base`, empty without a file."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    path = base / MODELS
    problem = "a `custom_model_config`"
    try:
        text_format.Parse(_text_of(path), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        problem = str(error)
    else:
        if config.WhichOneof("config") != "custom_model_config":
            return config
    raise ValueError(
        f"`{MODELS}` must be a `ModelServerConfig` with a "
        f"`model_config_list`, as protobuf text. Received: {path}: {problem}. "
        "Correct the file, or remove it so that it is written again."
    )


def write_configs(base):
    """Lists every model under `base`; what users wrote themselves is kept."""
    if not os.path.lexists(base / BATCHING):
        _write(base / BATCHING, BATCHING_TEXT)
    # Repeat until nothing changes. Another process may have published a model
    # after this one read the folder, and written the file before this one.
    while True:
        config = read_models_config(base)
        before = config.SerializeToString(deterministic=True)
        _update(config, base)
        if config.SerializeToString(deterministic=True) == before:
            return
        _write(base / MODELS, _edited(_text_of(base / MODELS), config))


def _text_of(path):
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _edited(text, config):
    """`text` with the models of `config`, and all that users wrote between."""
    from google.protobuf import text_format

    models = config.model_config_list.config
    old = type(config)()
    text_format.Parse(text, old)
    kept = [m in models for m in old.model_config_list.config]
    entries, end = _places(text)
    if end is None:
        text += "model_config_list {\n}\n"
        end = len(text) - 2
    added = "".join(
        f"  config {{\n{text_format.MessageToString(model, indent=4)}  }}\n"
        for model in models[sum(kept) :]
    )
    if added and text[end - 1] != "\n":
        added = f"\n{added}"
    new = text[:end] + added + text[end:]
    for keep, (start, stop) in reversed(list(zip(kept, entries))):
        if not keep:
            new = new[:start] + new[stop:]
    # Forms that `_places` does not know, such as `config: [{...}]`.
    if not _says(new, config):
        return text_format.MessageToString(config)
    return new


def _says(text, config):
    from google.protobuf import text_format

    said = type(config)()
    try:
        return text_format.Parse(text, said) == config
    except text_format.ParseError:
        return False


def _places(text):
    """Spans of `config { ... }` with their lines, and where the list ends."""
    entries, end, depth, start = [], None, 0, 0
    for token in TOKEN.finditer(text):
        if token["name"] and depth == 1:
            start = token.start()
        elif token["open"]:
            depth += 1
        elif token["close"]:
            depth -= 1
            if depth == 1:
                entries.append(_whole_lines(text, start, token.end()))
            elif depth == 0:
                end = token.start()
    return entries, end


def _whole_lines(text, start, stop):
    """The span with its indent and line break, if its lines have no more."""
    before = len(text[:start].rstrip(" \t"))
    after = re.compile(r"[ \t]*\n").match(text, stop)
    if after and (before == 0 or text[before - 1] == "\n"):
        return before, after.end()
    return start, stop


def _update(config, base):
    """Adds the models that are new, drops those that are gone."""
    models = config.model_config_list.config
    names = [path.name for path in base.iterdir() if _is_model(path)]
    kept = [
        model
        for model in models
        if model.name in names or model.base_path != str(base / model.name)
    ]
    known = {model.name for model in kept}
    if len(kept) < len(models):
        del models[:]
        models.extend(kept)
    for name in sorted(set(names) - known):
        models.add(
            name=name,
            base_path=str(base / name),  # the server wants it absolute
            model_platform="tensorflow",
        )


def _is_model(path):
    return SAFE_NAME.fullmatch(path.name) is not None and any(
        (path / version / "saved_model.pb").is_file()
        for versions in versions_of(path).values()
        for version in versions
    )


def versions_of(folder):
    """Versions in the folder of a model: from number to names of entries."""
    versions = {}
    if folder.is_dir():
        for entry in os.listdir(folder):
            if VERSION.fullmatch(entry):
                versions.setdefault(int(entry), []).append(entry)
    return versions


def _write(path, text):
    """Replaces `path` in one step, readable as any new file is."""
    new = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
