"""Pairs attention layers of the student with those of the teacher."""

import typing

from keras_linattn.convert._sites import walk
from keras_linattn.mechanisms import Mechanism


class Pair(typing.NamedTuple):
    """An attention layer of the student, and the teacher's counterpart."""

    path: str
    student: object
    teacher: object

    @property
    def parts(self):
        """The two objects to compare: mechanisms or layers.

        Blocks of this package do not call their attention layer as a whole,
        but they do call its mechanism.
        """
        layers = self.student, self.teacher
        if all(map(has_mechanism, layers)):
            mechanisms = tuple(layer.mechanism for layer in layers)
            # A gate needs the layer's inputs, not only the heads.
            if not mechanisms[0].traits.gated:
                return mechanisms
        return layers


def has_mechanism(layer):
    return isinstance(getattr(layer, "mechanism", None), Mechanism)


def layers_by_path(model):
    """Returns a dict of all layers in a model, by their paths."""
    return {site.path: site.layer for site in walk(model)}


def attention_layers(model):
    """Returns a dict of the attention layers with a mechanism, by path."""
    return {
        path: layer
        for path, layer in layers_by_path(model).items()
        if has_mechanism(layer)
        # A block has the mechanism of its attention layer as an attribute.
        and not any(
            map(has_mechanism, layer._flatten_layers(include_self=False))
        )
    }


def pair_layers(student, teacher, layers=None):
    """Returns the `Pair`s, in the order of the student's layers.

    Args:
        student: built `keras.Model`.
        teacher: built `keras.Model`.
        layers: optional dict from the path of an attention layer of the student
            to that of a layer of the teacher: names joined by `/`. Defaults
            to `None`: equal paths.

    Raises:
        ValueError: if a model is not built, if the student has no converted
            layer, or if the teacher lacks a counterpart.
    """
    check_models(student, teacher)
    found = attention_layers(student)
    if not found:
        raise ValueError(
            "`student` must have attention layers with a mechanism. Received: "
            f"{student.name!r}, without such a layer. Make a student with "
            "`keras_linattn.linearize(teacher)`."
        )
    if layers is None:
        layers = {path: path for path in found}
    unknown = sorted(set(layers) - set(found))
    if unknown:
        raise ValueError(
            "The keys of `layers` must be attention layers of the student. "
            f"Received: {', '.join(unknown)}. It has {', '.join(found)}."
        )
    of_teacher = layers_by_path(teacher)
    missing = sorted(set(layers.values()) - set(of_teacher))
    if missing:
        raise ValueError(
            "Each attention layer of the student must have its counterpart in "
            "the teacher, at the same path. The teacher has no "
            f"{', '.join(missing)}. Pass the teacher that the student was made "
            "from, or `layers=`, a dict from the student's path to the "
            "teacher's."
        )
    return [
        Pair(path, found[path], of_teacher[place])
        for path, place in layers.items()
    ]


def check_models(student, teacher):
    """Raises a `ValueError` if one is not built, or if they are the same."""
    for name, model in (("student", student), ("teacher", teacher)):
        if not model.built or not model.variables:
            raise ValueError(
                f"`{name}` must be built. Received: {model.name!r}, which has "
                "no weights yet. Call it on a batch of data first."
            )
    if student is teacher:
        raise ValueError(
            "`student` and `teacher` must be two models. Received: "
            f"{student.name!r} as both. Make a student with "
            "`keras_linattn.linearize(teacher)`."
        )


def check_batch(x, model, name):
    """Raises a `ValueError` if a batch cannot be an input of a model.

    It compares static shapes of models with known inputs. Keras checks others.
    """
    inputs = getattr(model, "inputs", None)
    if not inputs or isinstance(x, dict):
        return
    given = list(x) if isinstance(x, (list, tuple)) else [x]
    shapes = [tuple(tensor.shape) for tensor in given]
    expected = [tuple(tensor.shape) for tensor in inputs]
    if len(given) != len(inputs) or not all(map(_fits, shapes, expected)):
        raise ValueError(
            f"The data must match the inputs of the {name}. Received: a batch "
            f"of shapes {shapes}, expected {expected}. Pass the data as the "
            f"{name}'s `fit` takes it."
        )


def _fits(given, expected):
    if len(given) != len(expected):
        # Keras adds or drops a last axis of size 1.
        longer = max(given, expected, key=len)
        return abs(len(given) - len(expected)) == 1 and longer[-1] in (1, None)
    pairs = zip(given, expected)
    return all(a == b or None in (a, b) for a, b in pairs)
