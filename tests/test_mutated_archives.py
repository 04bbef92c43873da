"""200 damaged or hostile `.keras` files: a clean exception, or a model.

Of the damaged, a release tries all, and each change every fourth.

Where a damaged file loads all the same (a flipped bit in a weight, an edited
name), what comes back must be a `Sequential` of Keras layers, each of whose
weights has the shape that it declares. Sizes in the configs are not made huge:
what a file asks for, Keras allocates.
"""

import contextlib
import copy
import io
import json
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_linattn import LinearSelfAttention
from keras_linattn import LinearTransformerEncoder

pytestmark = pytest.mark.once
SECONDS = 20  # for one file; they take well under one
CONFIG, METADATA, WEIGHTS = MEMBERS = (
    "config.json",
    "metadata.json",
    "model.weights.h5",
)
ODD_VALUES = (None, True, 0, -1, 2.5, "", "odd", [], {}, [None], {"odd": 1})
EVENTS = {  # of `sys.audit`, none of which loading a model needs
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
}


class Hang(BaseException):
    """No `Exception`, so that it does not count as a clean one."""


# --- Good files


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """The members of a good file."""
    model = keras.Sequential(
        [
            keras.Input((None, 8)),
            LinearSelfAttention(2, 4, mechanism="hedgehog"),
            LinearTransformerEncoder(8, 2),
        ]
    )
    path = tmp_path_factory.mktemp("good") / "model.keras"
    model.save(path)
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def pack(members):
    """A `.keras` file whose checksums are right."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return packed.getvalue()


# --- Damage: functions of (random generator, members) that return a file


def flip(generator, content):
    content = bytearray(content)
    for _ in range(generator.choice((1, 1, 3, 20))):
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(
            8
        )
    return bytes(content)


def cut(generator, content):
    return content[: generator.randrange(len(content))]


def flip_file(generator, members):
    return flip(generator, pack(members))


def cut_file(generator, members):
    return cut(generator, pack(members))


def flip_member(generator, members):
    name = generator.choice(MEMBERS)
    return pack({**members, name: flip(generator, members[name])})


def cut_member(generator, members):
    name = generator.choice(MEMBERS)
    return pack({**members, name: cut(generator, members[name])})


def rename_member(generator, members):
    old = generator.choice(MEMBERS)
    names = (" ", "CONFIG.JSON", "model.h5", f"../{old}", f"/{old}", f"{old}/x")
    new = generator.choice([*MEMBERS, *names])
    renamed = {new if n == old else n: c for n, c in members.items()}
    return pack(renamed)


def drop_or_swap(generator, members):
    first, second = generator.sample(MEMBERS, 2)
    if generator.random() < 0.3:
        return pack({n: c for n, c in members.items() if n != first})
    swapped = {first: members[second], second: members[first]}
    return pack({**members, **swapped})


def edit_json(generator, members):
    config = json.loads(members[CONFIG])
    for _ in range(generator.choice((1, 1, 2, 4))):
        place, key = generator.choice(list(places(config)))
        change = generator.randrange(3)
        if change == 0:
            del place[key]
        elif change == 1 and isinstance(place, dict):
            place[f"{key}_"] = place.pop(key)
        else:
            place[key] = copy.deepcopy(generator.choice(ODD_VALUES))
    return pack({**members, CONFIG: json.dumps(config).encode()})


def places(node):
    """All (container, key or index) of parsed JSON."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
        yield node, key
        if isinstance(node[key], dict | list):
            yield from places(node[key])


def foreign(generator, members):
    """No `.keras` file at all, or another program's."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        info = tarfile.TarInfo(CONFIG)
        info.size = len(members[CONFIG])
        file.addfile(info, io.BytesIO(members[CONFIG]))
    arrays = io.BytesIO()
    np.savez(arrays, weight=np.zeros(3))
    return generator.choice(
        [
            b"",
            b"PK",
            generator.randbytes(4096),
            b"<html>404</html>",
            members[WEIGHTS],
            members[CONFIG],
            packed.getvalue(),
            arrays.getvalue(),
            pack({}),
            pack({"word/document.xml": b"<w:document/>"}),
            pack({"model.keras": pack(members)}),
        ]
    )


# --- Hostile files: functions of (members, marker), a path that they write to
# if anything of theirs is run


class Payload:
    """Pickled, a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return subprocess.check_call, (["touch", str(self.marker)],)


def with_layer(members, layer):
    config = json.loads(members[CONFIG])
    config["config"]["layers"].insert(1, layer)
    return pack({**members, CONFIG: json.dumps(config).encode()})


def with_argument(members, name, value):
    """The attention layer's argument `name` replaced by `value`."""
    config = json.loads(members[CONFIG])
    config["config"]["layers"][1]["config"][name] = value
    return pack({**members, CONFIG: json.dumps(config).encode()})


def lambda_layer(marker):
    # The path is in the code itself, with no closure to be restored.
    source = f"lambda x: __import__('os').mkdir({str(marker)!r}) or x"
    function = eval(source)
    layer = keras.layers.Lambda(function, output_shape=(None, 8))
    return keras.saving.serialize_keras_object(layer)


def command(marker):
    return named("subprocess", "Popen", {"args": ["touch", str(marker)]})


def named(module, name, config):
    return {
        "module": module,
        "class_name": name,
        "config": config,
        "registered_name": name,
    }


def outside_link(members, marker):
    """Weights that Keras would read from another file."""
    other = marker.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["vars/0"] = np.zeros((8, 2, 4), "float32")
    packed = io.BytesIO(members[WEIGHTS])
    with h5py.File(packed, "r+") as file:
        layers = file["layers"]
        name = next(iter(layers))
        del layers[name]
        layers[name] = h5py.ExternalLink(str(other), "/")
    return pack({**members, WEIGHTS: packed.getvalue()})


def with_compile(members, marker):
    config = json.loads(members[CONFIG])
    config["compile_config"] = {"optimizer": command(marker), "loss": "mse"}
    return pack({**members, CONFIG: json.dumps(config).encode()})


HOSTILE = {
    "lambda": lambda m, marker: with_layer(m, lambda_layer(marker)),
    "lambda as kernel_initializer": lambda m, marker: with_argument(
        m, "kernel_initializer", lambda_layer(marker)["config"]["function"]
    ),
    "command as layer": lambda m, marker: with_layer(m, command(marker)),
    "command as mechanism": lambda m, marker: with_argument(
        m, "mechanism", command(marker)
    ),
    "command as initializer": lambda m, marker: with_argument(
        m, "kernel_initializer", command(marker)
    ),
    "command as policy": lambda m, marker: with_argument(
        m, "dtype", command(marker)
    ),
    "command as optimizer": with_compile,
    "function as layer": lambda m, marker: with_layer(
        m, named("os", "mkdir", {"path": str(marker)})
    ),
    "os.system as function": lambda m, marker: with_argument(
        m, "activity_regularizer", named("os", "function", f"touch {marker}")
    ),
    "pickle as weights": lambda m, marker: pack(
        {**m, WEIGHTS: pickle.dumps(Payload(marker))}
    ),
    "pickle as config": lambda m, marker: pack(
        {**m, CONFIG: pickle.dumps(Payload(marker))}
    ),
    "link to another file": outside_link,
    "path outside": lambda m, marker: pack(
        {
            **m,
            f"assets/../../{marker.name}": b"x",
            f"../{marker.name}": b"x",
            str(marker): b"x",
        }
    ),
    "nested too deep": lambda m, marker: pack(
        {**m, CONFIG: b"[" * 100_000 + b"]" * 100_000}
    ),
}


# --- The 200


DAMAGE = {
    flip_file: 30,
    cut_file: 20,
    flip_member: 40,
    cut_member: 20,
    rename_member: 15,
    drop_or_swap: 11,
    edit_json: 40,
    foreign: 10,
}
FILES = [
    pytest.param(
        damage,
        number,
        id=f"{damage.__name__}-{number}",
        marks=[pytest.mark.release] if number % 4 else [],
    )
    for damage, count in DAMAGE.items()
    for number in range(count)
]


def test_there_are_200():
    assert len(FILES) + len(HOSTILE) == 200


@pytest.fixture(scope="module")
def events():
    """What happened that must not, since the list was cleared."""
    seen, active = [], [True]

    def hook(event, arguments):
        if active and event in EVENTS:
            seen.append((event, str(arguments)))

    sys.addaudithook(hook)  # for good, so it is switched off at the end
    yield seen
    active.clear()


def load(path, events, safe_mode=True):
    """The model or the clean exception."""
    events.clear()
    with limited(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return keras.saving.load_model(path, safe_mode=safe_mode)
        except Exception as error:
            return error


@contextlib.contextmanager
def limited():
    def stop(*unused):
        raise Hang(f"not loaded in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(found, events):
    assert not events
    if isinstance(found, Exception):
        assert str(found).strip(), f"{type(found)} says nothing"
        return
    assert type(found) is keras.Sequential
    for layer in found.layers:
        assert isinstance(layer, keras.layers.Layer)
    for weight in found.weights:
        assert tuple(weight.shape) == keras.ops.convert_to_numpy(weight).shape


@pytest.mark.parametrize(("damage", "number"), FILES)
def test_damaged(damage, number, members, events, tmp_path):
    path = tmp_path / "model.keras"
    generator = random.Random(f"{damage.__name__} {number}")
    path.write_bytes(damage(generator, members))
    check(load(path, events), events)
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile(kind, members, events, tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "inner" / "model.keras"
    path.parent.mkdir()
    path.write_bytes(HOSTILE[kind](members, marker))
    found = load(path, events)
    check(found, events)
    assert not marker.exists()
    # What a path leads outside with is ignored; all else is refused.
    assert isinstance(found, Exception) or kind == "path outside"


# --- That the tests above can fail


def test_good_file_loads(members, events, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(pack(members))
    found = load(path, events)
    check(found, events)
    assert not isinstance(found, Exception)


def test_payload_is_live(members, events, tmp_path):
    path, marker = tmp_path / "model.keras", tmp_path / "marker"
    path.write_bytes(HOSTILE["lambda"](members, marker))
    model = load(path, events, safe_mode=False)
    assert not isinstance(model, Exception), model
    model(np.zeros((1, 2, 8), "float32"))
    assert marker.exists()


def test_events_are_seen(events):
    events.clear()
    subprocess.run([sys.executable, "-c", ""])
    assert events
