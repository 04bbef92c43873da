"""A folder for a server, written once: it takes seconds."""

import dataclasses
import pathlib

import keras
import pytest
from exported import NAME

from keras_linattn.export import serving_directory
from keras_linattn.models import TextClassifier


def pytest_collection_modifyitems(items):
    """What writes a file in place of a SavedModel knows no backend."""
    for item in items:
        if "quick" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.once)


@dataclasses.dataclass
class Published:
    base: pathlib.Path
    path: pathlib.Path  # of version 1
    model: keras.Model  # which it is of


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    pytest.importorskip("tensorflow_serving")
    keras.utils.set_random_seed(0)
    model = TextClassifier(
        num_classes=3,
        hidden_dim=16,
        num_layers=1,
        num_heads=2,
        num_buckets=8192,
        embedding_dim=8,
    )
    base = tmp_path_factory.mktemp("serving") / "models"
    return Published(base, serving_directory(model, base, NAME), model)
