"""Child process: models on 4 virtual devices beside one, printed as JSON.

    python several.py MODEL/MODE ...

Prints for each how far losses and gradients of three steps are from those of
one device, what is sent, and the memory of a device. Each step starts from the
weights that one device had: a small rounding grows from step to step, in plain
data parallelism, too.

    python several.py memory MODEL/MODE

compiles the step only, and prints a device's peak memory over that of one
device, for sequences of `LENGTH`, an environment variable.

    python several.py files MODEL/MODE ...

first saves the model under the first mode, and loads it under the others.

    python several.py mechanisms NAME ...

compares each mechanism that can be split by its length, without a model.

With the environment variable `FLOAT64` all is computed in that type.
"""

import json
import os
import sys
import tempfile

os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
)
sys.modules["tensorflow"] = None  # Keras imports it to save: 2 s for nothing.

import jax  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras.src import backend  # noqa: E402

if "FLOAT64" in os.environ:  # no rounding that could be mistaken for a fault
    jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    # Keras' normalisation computes in `result_type(dtype, "float32")`, which
    # is float32 for float64 under JAX.
    keras_result = backend.result_type
    backend.result_type = lambda *dtypes: (
        "float64" if "float64" in dtypes else keras_result(*dtypes)
    )

import keras_linattn  # noqa: E402
from keras_linattn import mechanisms  # noqa: E402
from keras_linattn.core.devices import current_split  # noqa: E402
from keras_linattn.distribution import SequenceParallel  # noqa: E402
from keras_linattn.distribution import layout_map  # noqa: E402
from keras_linattn.mechanisms._devices import attend_on_devices  # noqa: E402
from tools._collectives import collectives  # noqa: E402

LENGTH, BATCH, FEATURES = int(os.environ.get("LENGTH", 32)), 4, 16
MIXED = {
    "mechanism": ["gated_delta", {"name": "local", "window": 5}],
    "attention_options": {"kernel_size": 3, "qk_norm": True, "use_gate": True},
    "use_feedforward_gate": True,
}


def mesh(shape, *names):
    return keras.distribution.DeviceMesh(shape, names)


def tensor_parallel(shape):
    layouts = layout_map(mesh(shape, "batch", "model"))
    return keras.distribution.ModelParallel(layout_map=layouts)


def all_three():
    three = mesh((1, 2, 2), "batch", "sequence", "model")
    return SequenceParallel(three, layout_map(three))


CONFIGS = {"local": {"name": "local", "window": 4}}
MODES = {
    "one": lambda: None,
    "data": keras.distribution.DataParallel,
    "tensor": lambda: tensor_parallel((1, 4)),
    "data-tensor": lambda: tensor_parallel((2, 2)),
    "sequence": lambda: SequenceParallel(mesh((1, 4), "batch", "sequence")),
    "data-sequence": lambda: SequenceParallel(
        mesh((2, 2), "batch", "sequence")
    ),
    "sequence-tensor": all_three,
}


def make_model(kind):
    sizes = {"hidden_dim": FEATURES, "num_layers": 2, "num_heads": 4}
    if kind.startswith("text"):
        sizes = {**sizes, "num_classes": 3, "num_buckets": 32, "dropout": 0.0}
        if ":" in kind:
            sizes["mechanism"] = kind.partition(":")[2]
        return keras_linattn.models.TextClassifier(merge_factor=2, **sizes)
    options = MIXED if kind in ("mixed", "packed") else {"mechanism": kind}
    if kind == "packed":
        options = {**options, "packed": True}
    return keras_linattn.models.CausalLM(**sizes, **options)


def data(kind):
    rng = np.random.default_rng(0)
    x = rng.integers(1, 200, (BATCH, LENGTH)).astype("int32")
    x[0, LENGTH * 5 // 8 :] = 0  # padding, whole pieces of it
    if kind.startswith("text"):
        return x, np.arange(BATCH) % 3
    y = rng.integers(1, 200, (BATCH, LENGTH)).astype("int32") * (x > 0)
    if kind == "packed":
        return [x, segment_ids(rng) * (x > 0)], y
    return x, y


def segment_ids(rng):
    """Documents of 1 to a third of the length; padding behind some."""
    ids = np.zeros((BATCH, LENGTH), "int32")
    for row in ids:
        end, document = 0, 0
        while end < LENGTH:
            document += 1
            start, end = end, end + rng.integers(1, LENGTH // 3)
            row[start : end - rng.integers(0, 3) // 2] = document
    return ids


def compiled_step(model, kind, arrays):
    """The gradients of a training step, compiled, and its weights."""

    def loss(weights, others, x, y):
        outputs, _ = model.stateless_call(weights, others, x, training=True)
        losses = keras.losses.sparse_categorical_crossentropy(
            y, outputs, from_logits=not kind.startswith("text")
        )
        return keras.ops.sum(losses * keras.ops.cast(y > 0, "float32")) / 64

    weights = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    layouts = [w.sharding for w in weights]
    step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, layouts))
    step = step.lower(weights, others, *arrays).compile()
    return step, weights, others


def peak(kind, mode):
    """Bytes that a device needs for a training step, as compiled."""
    keras.distribution.set_distribution(MODES[mode]())
    arrays = distributed(data(kind))
    step, *_ = compiled_step(make_model(kind), kind, arrays)
    memory = step.memory_analysis()
    return (
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
    )


def distributed(arrays):
    distribution = keras.distribution.distribution()
    if distribution is None:
        return arrays
    return jax.tree.map(
        lambda x: jax.device_put(
            x, distribution.get_data_layout(x.shape).backend_layout
        ),
        arrays,
    )


def run(kind, mode, starts=None):
    """Losses, gradients and first weights of all steps; the compiled step.

    Args:
        kind: str, see `make_model`.
        mode: str, in `MODES`.
        starts: list of lists, weights to start the steps from. Defaults to
            `None`: those after the step before.
    """
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.distribution.set_distribution(MODES[mode]())
    model = make_model(kind)
    arrays = distributed(data(kind))
    step, weights, others = compiled_step(model, kind, arrays)
    losses, gradients, used = [], [], []
    for number in range(3):
        if starts is not None:
            weights = [
                jax.device_put(value, w.sharding)
                for value, w in zip(starts[number], weights)
            ]
        used.append([np.asarray(w) for w in weights])
        loss, found = step(weights, others, *arrays)
        losses.append(float(loss))
        gradients.append([np.asarray(g) for g in found])
        weights = [
            jax.device_put(w - 0.1 * g, w.sharding)
            for w, g in zip(weights, found)
        ]
    return losses, gradients, used, step


def farthest(found, wanted):
    """The largest difference, relative to the largest number if above 1."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max(
        float(np.abs(np.asarray(a) - b).max() / max(1, np.abs(b).max()))
        for a, b in pairs
    )


# Across borders, with them, of one position; a whole piece; padding.
DOCUMENTS = np.array(
    [
        [1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 3, 3, 3],
        [0, 1, 1, 1, 2, 2, 2, 2, 3, 2, 2, 2, 2, 5, 0, 0],
    ]
)


def compare_mechanisms(name):
    """How far outputs and gradients in pieces are from those of the whole.

    Each row one document, with padding, and several in a row.
    """
    mechanism = mechanisms.get(CONFIGS.get(name, name))
    rng = np.random.default_rng(0)
    heads = [rng.normal(size=(2, 2, 16, 4)).astype("float32") for _ in range(4)]
    mask = np.arange(16) < np.array([[16], [9]])
    options = {}
    if mechanism.traits.gated:
        options["inputs"] = rng.normal(size=(2, 16, 6)).astype("float32")
    mechanism(*heads[:3], causal=mechanism.traits.forms[-1], **options)
    far = 0
    for causal in mechanism.traits.forms:
        options["causal"] = causal
        masks = {"key_mask": mask, "query_mask": mask}
        pieces, whole = both_ways(mechanism, {**options, **masks}, mask)
        far = max(far, farthest(pieces(*heads), whole(*heads)))
        packed = {**options, "segment_ids": DOCUMENTS}
        pieces, whole = both_ways(mechanism, packed, DOCUMENTS > 0)
        found = pieces(*heads)
        far = max(far, farthest(found, whole(*heads)))
        check_nan(pieces, heads, found, causal)
    return far


def both_ways(mechanism, options, mask):
    """Gradients and output of a mechanism in pieces, and of the whole."""

    def loss(split, *heads):
        output = attend_on_devices(mechanism, heads[:3], split, **options)
        # The layers hide what hidden queries see.
        output = keras.ops.where(mask[:, None, :, None], output, 0.0)
        return keras.ops.sum(output * heads[3]), output

    function = jax.jit(
        jax.grad(loss, (1, 2, 3), has_aux=True), static_argnums=0
    )

    def in_pieces(*heads):
        with keras.distribution.distribution().scope():
            return function(current_split(), *heads)

    return in_pieces, lambda *heads: function(None, *heads)


def check_nan(function, heads, clean, causal):
    """NaN in one document reaches that document, in other pieces too."""
    query, key, value, cotangent = heads
    value = value.copy()
    value[0, :, 5, 1] = np.nan  # of document 2, from 3 to 11
    gradients, output = function(query, key, value, cotangent)
    output = np.asarray(output)
    own = DOCUMENTS[0] == 2
    np.testing.assert_array_equal(output[1], clean[1][1])
    np.testing.assert_array_equal(output[0, :, ~own], clean[1][0, :, ~own])
    for found, wanted in zip(gradients, clean[0]):
        np.testing.assert_array_equal(found[0, :, ~own], wanted[0, :, ~own])
    reached = np.arange(16) >= 5 if causal else own
    window = np.arange(16) < 9  # of `local`
    assert np.isnan(output[0, :, own & reached & window]).any(-1).all()
    if causal:
        before = own & ~reached
        np.testing.assert_array_equal(
            output[0, :, before], clean[1][0, :, before]
        )


def check_files(kind, modes):
    """A file saved under one layout loads under any other, optimizer too."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.keras"
        keras.distribution.set_distribution(MODES[modes[0]]())
        model = make_model(kind)
        model.compile("adam")
        model.optimizer.build(model.trainable_variables)
        for number, variable in enumerate(model.optimizer.variables[2:]):
            variable.assign(keras.ops.full(variable.shape, number))
        model.save(path)
        saved = [np.asarray(v) for v in all_variables(model)]
        for mode in (*modes[1:], "one"):
            distribution = MODES[mode]()
            keras.distribution.set_distribution(distribution)
            loaded = keras.saving.load_model(path)
            for variable, value in zip(
                all_variables(loaded), saved, strict=True
            ):
                np.testing.assert_array_equal(variable, value)
            if distribution is not None:
                assert_laid_out(loaded, distribution)


def all_variables(model):
    return model.variables + model.optimizer.variables


def assert_laid_out(model, distribution):
    for variable in model.variables:
        layout = distribution.get_variable_layout(variable).backend_layout
        own = variable.value.sharding
        assert own.is_equivalent_to(layout, variable.ndim), variable.path


def main(names):
    wanted, report = {}, {}
    if names[0] == "files":
        names = names[1:]
        kind = names[0].partition("/")[0]
        check_files(kind, [name.rpartition("/")[2] for name in names])
    if names[0] == "mechanisms":
        keras.distribution.set_distribution(MODES["sequence"]())
        report = {name: compare_mechanisms(name) for name in names[1:]}
        names = []
    elif names[0] == "memory":
        kind, _, mode = names[1].rpartition("/")
        report, names = peak(kind, mode) / peak(kind, "one"), []
    for name in names:
        kind, _, mode = name.rpartition("/")
        if kind not in wanted:
            wanted[kind] = run(kind, "one")
        one = wanted[kind][3].memory_analysis()
        losses, gradients, _, step = run(kind, mode, wanted[kind][2])
        own = step.memory_analysis()
        report[name] = {
            "loss": farthest(losses, wanted[kind][0]),
            "gradients": farthest(gradients, wanted[kind][1]),
            "sent": [list(c) for c in collectives(step.as_text(), 4)],
            "temporary": own.temp_size_in_bytes / one.temp_size_in_bytes,
            "weights": own.argument_size_in_bytes / one.argument_size_in_bytes,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
