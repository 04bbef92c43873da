"""`layout_map` finds the weights by their paths; no device is needed."""

import keras
import pytest

import keras_linattn
from keras_linattn import mechanisms
from keras_linattn import models
from keras_linattn.distribution import SequenceParallel
from keras_linattn.distribution import layout_map

pytestmark = pytest.mark.once


def mesh(*shape, names=("batch", "model")):
    places = [f"cpu:{i}" for i in range(shape[0] * shape[1])]
    return keras.distribution.DeviceMesh(shape, names, places)


def axes_of(model, layouts):
    """Where each variable is split, by its path; the axes can be divided."""
    found = {}
    for variable in model.variables:
        layout = layouts[variable.path]  # raises if two patterns match
        if layout is not None:
            (found[variable.path],) = (
                i for i, name in enumerate(layout.axes) if name == "model"
            )
            assert found[variable.path] < len(variable.shape), variable.path
    return found


def named(key, **arguments):
    if mechanisms.get(key).traits.needs_length:
        arguments["sequence_length"] = 8
    cls = type(mechanisms.get({"name": key, **arguments}))
    return cls(name=f"my_own_{key}", **arguments)


@pytest.mark.parametrize("key", mechanisms.available())
def test_a_mechanism_with_a_name_of_its_own(key):
    mechanism = named(key)
    layer = keras_linattn.LinearSelfAttention(
        4,
        4,
        mechanism=mechanism,
        causal=not mechanism.traits.bidirectional,
        use_gate=True,
        name="renamed",
    )
    layer.build((1, 8, 16))
    found = axes_of(layer, layout_map(mesh(1, 4)))
    wanted = {
        f"renamed/{name}/{weight}": axis
        for name in ("query", "key", "value", "gate")
        for weight, axis in (("kernel", 1), ("bias", 0))
    }
    wanted["renamed/attention_output/kernel"] = 0
    wanted |= {
        v.path: mechanism.head_axes[v.path.rpartition("/")[2]]
        for v in mechanism.variables
        if mechanism.head_axes is not None
    }
    # Both lack the weights that all heads share.
    wanted = {path: axis for path, axis in wanted.items() if axis is not None}
    assert found == wanted
    for variable in mechanism.variables:
        axis = found.get(variable.path)
        assert axis is None or variable.shape[axis] == 4, variable.path


def test_blocks_in_your_own_model():
    block = keras_linattn.LinearTransformerDecoder(
        32,
        4,
        mechanism="gated_delta",
        attention_options={"kernel_size": 3},
        name="my_block",
    )
    x = keras.Input((8, 16))
    y = keras.layers.Dense(16, name="query_of_mine")(x)
    y = keras.layers.Dense(16, name="kernel")(block(y))
    found = axes_of(keras.Model(x, y), layout_map(mesh(1, 4)))
    assert found["my_block/self_attention/query/kernel"] == 1
    assert found["my_block/feedforward_output_dense/kernel"] == 0
    assert found["my_block/self_attention/gated_delta/log_rate"] == 0
    convolution = "my_block/self_attention/key_heads/convolution/kernel"
    assert found[convolution] == 1
    assert not {"query_of_mine/kernel", "kernel/kernel"} & found.keys()


@pytest.mark.parametrize("split_vocabulary", [False, True])
def test_a_model_of_ours(split_vocabulary):
    model = models.CausalLM(
        64,
        hidden_dim=16,
        num_layers=2,
        num_heads=4,
        mechanism=["mamba2", "local"],
        use_feedforward_gate=True,
    )
    found = axes_of(model, layout_map(mesh(1, 4), "model", split_vocabulary))
    assert found["decoder_1/feedforward_gate_dense/kernel"] == 1
    assert found["embedding/embeddings"] == (0 if split_vocabulary else 1)
    assert ("logits/kernel" in found) == split_vocabulary


@pytest.mark.parametrize("family", ["GPT2", "Bert"])
def test_a_converted_model_of_kerashub(family):
    keras_hub = pytest.importorskip("keras_hub")
    sizes = {"vocabulary_size": 32, "num_layers": 1, "num_heads": 2}
    sizes |= {"hidden_dim": 8, "intermediate_dim": 16}
    backbone = getattr(keras_hub.models, f"{family}Backbone")
    model = backbone(**sizes, max_sequence_length=8)
    model = keras_linattn.linearize(model, mechanism="hedgehog")
    found = axes_of(model, layout_map(mesh(1, 2)))
    ends = {path.rpartition("/")[2] for path in found}
    assert {"query_map", "key_map", "kernel", "bias", "embeddings"} <= ends
    kernels = [v for v in model.variables if "query/kernel" in v.path]
    assert kernels and all(found[v.path] == 1 for v in kernels)


def test_your_own_path_comes_first():
    layouts = layout_map(mesh(1, 4))
    path = "decoder_0/self_attention/query/kernel"
    assert layouts[path].axes == (None, "model")
    layouts[path] = (None, None)
    assert layouts[path].axes == (None, None)


def test_wrong_meshes_are_refused():
    other = mesh(1, 2, names=("batch", "heads"))
    with pytest.raises(ValueError, match="model_dim_name='model' for a mesh"):
        layout_map(other)
    assert layout_map(other, "heads")["query/kernel"].axes == (None, "heads")
    with pytest.raises(ValueError, match=r"without \['sequence'\]"):
        SequenceParallel(other)


def test_heads_that_do_not_divide_are_refused():
    parallel = keras.distribution.ModelParallel(
        layout_map=layout_map(mesh(1, 4)), auto_shard_dataset=False
    )
    layer = keras_linattn.LinearSelfAttention(6, 4, name="six")
    grouped = keras_linattn.LinearSelfAttention(
        4, 4, num_key_value_heads=2, name="grouped"
    )
    with parallel.scope():
        with pytest.raises(ValueError, match=r"\[6\] heads for 4 devices"):
            layer.build((1, 8, 16))
        with pytest.raises(ValueError, match=r"\[2, 4\] heads.*'grouped'"):
            grouped.build((1, 8, 16))
