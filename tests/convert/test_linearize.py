"""Functional, Sequential and other models after conversion."""

import keras
import numpy as np
import pytest

import keras_linattn
from keras_linattn import convert
from keras_linattn import mechanisms
from keras_linattn import models


@keras.saving.register_keras_serializable("tests_convert")
class Block(keras.layers.Layer):
    """A block as users write it: attention made by the constructor."""

    def __init__(self, heads, dim, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.dim = heads, dim
        self.attention = keras.layers.MultiHeadAttention(heads, dim)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return x + self.attention(x, x, use_causal_mask=True)

    def get_config(self):
        own = {"heads": self.heads, "dim": self.dim}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tests_convert")
class Subclassed(keras.Model):
    """A model whose first call makes the weights."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = keras.layers.MultiHeadAttention(2, 8)
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(x + self.attention(x, x))


def mixed_model():
    """Self, cross and grouped attention, a nested model, a block."""
    x = keras.Input((7, 16), name="x")
    other = keras.Input((5, 12), name="other")
    attention = keras.layers.MultiHeadAttention
    y = attention(2, 8, dropout=0.1, name="first")(x, x)
    y = attention(2, 8, use_gate=True, name="cross")(y, other)
    grouped = keras.layers.GroupQueryAttention(8, 4, 2, name="grouped")
    y = grouped(y, y, use_causal_mask=True)
    inner = keras.Input((7, 16))
    windowed = attention(2, 8, sliding_window=3, name="windowed")
    y = keras.Model(inner, windowed(inner, inner), name="inner")(y)
    y = Block(2, 8, name="block")(keras.ops.tanh(y))
    return keras.Model([x, other], y)


def inputs():
    rng = np.random.default_rng(0)
    shapes = ((3, 7, 16), (3, 5, 12))
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def test_softmax_is_the_original_and_files_hold_the_rest(tmp_path):
    model, x = mixed_model(), inputs()
    expected = model.predict(x, verbose=0)
    same = keras_linattn.linearize(model, "softmax")
    found = same.predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    linear = keras_linattn.linearize(model)
    output = linear.predict(x, verbose=0)
    linear.save(tmp_path / "linear.keras")
    loaded = keras.saving.load_model(tmp_path / "linear.keras")
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), output, rtol=1e-6, atol=1e-6
    )
    rows = convert.report(loaded).rows
    names = [row["becomes"] for row in rows]
    assert sorted(names) == ["hedgehog"] * 4 + ["local"]
    # Cross-attention gets no window.
    rows = convert.report(keras_linattn.linearize(model, window=2)).rows
    names = {row["layer"]: row["becomes"] for row in rows}
    assert names["cross"] == "hedgehog" and names["first"] == "hybrid_window"


@pytest.mark.once
@pytest.mark.parametrize(
    "layers, chosen",
    [
        ("first", {"first"}),
        (["inner", -1], {"inner/windowed", "block/attention"}),
        (2, {"grouped"}),
        (lambda layer: layer.name == "cross", {"cross"}),
    ],
)
def test_layers_choose(layers, chosen):
    model = mixed_model()
    rows = convert.report(model, layers=layers).rows
    stay = [r for r in rows if r["becomes"].startswith("softmax")]
    assert len(rows) - len(stay) == len(chosen)
    linear = keras_linattn.linearize(model, "linear_transformer", layers)
    kinds = {layer.name: type(layer).__name__ for layer in linear.layers}
    if chosen == {"first"}:
        assert kinds["first"] == "LinearMultiHeadAttention"
        assert kinds["cross"] == "MultiHeadAttention"


@pytest.mark.once
@pytest.mark.parametrize(
    "make",
    [
        lambda: models.TextClassifier(
            3, hidden_dim=16, num_layers=2, num_heads=2, mechanism="softmax"
        ),
        lambda: models.CausalLM(
            30, hidden_dim=16, num_layers=2, num_heads=2, mechanism="softmax"
        ),
    ],
)
def test_models_of_this_package(make):
    model = make()
    x = np.random.default_rng(0).integers(1, 29, (2, 12))
    expected = model.predict(x, verbose=0)
    same = keras_linattn.linearize(model, "softmax")
    np.testing.assert_array_equal(same.predict(x, verbose=0), expected)
    linear = keras_linattn.linearize(model, layers=0, window=4)
    assert type(linear) is type(model)
    assert [m if m == "softmax" else m["name"] for m in linear.mechanism] == [
        "hybrid_window",
        "softmax",
    ]


class OwnAttention(keras.layers.MultiHeadAttention):
    pass


class UnknownAttention(keras.layers.Layer):
    def call(self, x):
        return x


@pytest.mark.once
def test_attention_of_unknown_classes_is_named():
    x = keras.Input((6, 16))
    y = keras.layers.MultiHeadAttention(2, 4, name="known")(x, x)
    y = keras.layers.Attention(name="of_keras")([y, y])
    model = keras.Model(x, UnknownAttention(name="own")(y))
    said = "of_keras (Attention), own (UnknownAttention)"
    with pytest.warns(UserWarning) as found:
        linear = keras_linattn.linearize(model)
    assert len(found) == 1 and said in str(found[0].message)
    keras_linattn.linearize(model, layers="known")  # no warning
    for one in (model, linear):
        rows = convert.report(one).rows
        assert [row["becomes"] for row in rows] == [
            "hedgehog",
            "stays: unknown class",
            "stays: unknown class",
        ]
    model = keras.Model(x, keras.layers.Attention(name="of_keras")([x, x]))
    with pytest.raises(ValueError, match="Of other classes: of_keras"):
        keras_linattn.linearize(model)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_what_is_quantized_inside_comes_back(tmp_path):
    """A subclassed model; its constructor makes layers without quantization."""
    model, (x, _) = Subclassed(), inputs()
    model(x)
    linear = keras_linattn.linearize(model)
    linear.quantize("int4")
    for _ in range(2):
        output = linear.predict(x, verbose=0)
        linear.save(tmp_path / "linear.keras")
        linear = keras.saving.load_model(tmp_path / "linear.keras")
        assert linear.head.quantization_mode == "int4"
        found = linear.predict(x, verbose=0)
        np.testing.assert_array_equal(found, output)


@pytest.mark.once
def test_one_error_names_all_that_cannot_be_converted():
    x, mask = keras.Input((6, 16)), keras.Input((6, 6))
    attention = keras.layers.MultiHeadAttention
    y = attention(2, 4, name="masked")(x, x, attention_mask=mask)
    y = attention(2, 4, name="fine")(y, y)
    y = OwnAttention(2, 4, name="own")(y, y)
    model = keras.Model([x, mask], y)
    with pytest.raises(ValueError, match="cannot be converted") as error:
        keras_linattn.linearize(model)
    text = str(error.value)
    assert "- masked: `attention_mask` must not depend" in text
    assert "- own: Only attention layers of known" in text
    assert "- fine" not in text
    becomes = {r["layer"]: r["becomes"] for r in convert.report(model).rows}
    assert becomes["own"] == "error: unknown class"
    assert keras_linattn.linearize(model, layers="fine")


@pytest.mark.once
@pytest.mark.parametrize(
    "model, message",
    [
        (keras.layers.Dense(2), "takes a `keras.Model`"),
        (keras.Sequential([keras.layers.Dense(2)]), "needs a built model"),
        (
            keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]),
            "must have softmax attention",
        ),
    ],
)
def test_wrong_models(model, message):
    with pytest.raises((TypeError, ValueError), match=message):
        keras_linattn.linearize(model)


@pytest.mark.once
def test_wrong_arguments():
    model = mixed_model()
    for layers in ("nobody", 9, []):
        with pytest.raises(ValueError, match="The model has: 0: first"):
            keras_linattn.linearize(model, layers=layers)
    with pytest.raises(ValueError, match="`window` needs"):
        keras_linattn.linearize(model, "linear_transformer", window=4)


@pytest.mark.once
def test_report_prints_a_table():
    text = str(convert.report(mixed_model(), layers="first", length=100))
    assert text.count("softmax (stays)") == 4
    assert "For one sequence of 100 positions" in text


@pytest.mark.once
def test_report_says_what_linearize_does():
    x = keras.Input((None, 8))
    y = keras.layers.MultiHeadAttention(2, 4, sliding_window=3, name="near")(
        x, x
    )
    y = keras.layers.MultiHeadAttention(2, 4, name="far")(y, y)
    y = keras_linattn.LinearSelfAttention(2, 4, name="linear")(y)
    model = keras.Model(x, y)
    becomes = [row["becomes"] for row in convert.report(model).rows]
    assert becomes == ["local", "hedgehog", "modified_linformer"]
    linear = keras_linattn.linearize(model)
    found = [type(linear.get_layer(n).mechanism) for n in ("near", "far")]
    assert found == [mechanisms.Local, mechanisms.Hedgehog]
