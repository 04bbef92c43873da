"""The classifiers: config, files, policies, masks, any mechanism."""

import inspect
import json

import keras
import numpy as np
import pytest
from helpers import predict
from helpers import slow_to_compile

from keras_linattn import mechanisms
from keras_linattn.models import AudioClassifier
from keras_linattn.models import TextClassifier
from keras_linattn.models import VisionTransformer

TEXT = {
    "num_classes": 3,
    "vocabulary_size": 40,
    "hidden_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_dim": 24,
    "ngram_orders": (1, 2),
    "num_buckets": 64,
    "embedding_dim": 8,
    "merge_factor": 2,
    "dropout": 0.2,
    "activation": "sigmoid",
    "mechanism": "linear_transformer",
    "sequence_length": 22,
}
HOURGLASS = {**TEXT, "num_layers": 3, "hourglass_factor": 3}
IMAGE = {
    "num_classes": 3,
    "image_shape": (8, 4, 3),
    "stem_filters": (5,),
    "patch_size": 2,
    "hidden_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_dim": 24,
    "dropout": 0.2,
    "activation": "sigmoid",
    "mechanism": "linear_transformer",
}
AUDIO = {
    "num_classes": 3,
    "strides": (4, 2),
    "kernel_sizes": (8, 2),
    "hidden_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_dim": 24,
    "dropout": 0.2,
    "activation": "sigmoid",
    "mechanism": "linear_transformer",
    "sequence_length": 150,
}
CASES = [
    (TextClassifier, TEXT),
    (VisionTransformer, IMAGE),
    (AudioClassifier, AUDIO),
]
every = pytest.mark.parametrize(("cls", "options"), CASES)
with_hourglass = pytest.mark.parametrize(
    ("cls", "options"),
    [*CASES, (TextClassifier, HOURGLASS)],
    ids=["text", "image", "audio", "hourglass"],
)


def data(cls, batch=4):
    rng = np.random.default_rng(0)
    if cls is TextClassifier:
        return rng.integers(1, 40, (batch, 11), dtype="int32")
    if cls is AudioClassifier:
        return rng.uniform(-1, 1, (batch, 83)).astype("float32")
    return rng.random((batch, 8, 4, 3), dtype="float32")


@pytest.mark.parametrize(
    ("cls", "options"), [(TextClassifier, HOURGLASS), *CASES[1:]]
)
def test_config_is_the_constructor(cls, options):
    options = {**options, "remat": True}
    model = cls(**options)
    config = model.get_config()
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in ("dtype", "kwargs"):
            assert config[name] == options[name], name
            assert options[name] != parameter.default, f"{name} is default"
    assert cls.from_config(config).get_config() == config


BIDIRECTIONAL = [
    name
    for name in mechanisms.available()
    if mechanisms.get(name).traits.bidirectional
]


@pytest.mark.parametrize(
    ("cls", "options", "mechanism"),
    [
        # The models take turns: none knows more of a mechanism than its name.
        pytest.param(*CASES[number % len(CASES)], name, id=name)
        for number, name in enumerate(BIDIRECTIONAL)
    ],
)
def test_saves_and_loads_with_any_mechanism(cls, options, mechanism, tmp_path):
    model = cls(**{**options, "mechanism": mechanism})
    x = data(cls)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is cls
    np.testing.assert_array_equal(predict(model, x), predict(loaded, x))
    assert predict(model, x).shape == (4, 3)


@pytest.mark.parametrize(
    ("cls", "options"),
    [*CASES, pytest.param(TextClassifier, HOURGLASS, marks=slow_to_compile)],
)
def test_learns_by_heart(cls, options):
    model = cls(**{**options, "activation": "softmax", "dropout": 0.0})
    x, labels = data(cls, batch=6), np.arange(6) % 3
    optimizer = keras.optimizers.Adam(0.01)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    losses = model.fit(x, labels, epochs=40, verbose=0).history["loss"]
    assert losses[-1] < 0.1 < losses[0]


@with_hourglass
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_policies(cls, options, dtype, tmp_path):
    model = cls(**options, dtype=dtype)
    output = predict(model, data(cls))
    assert output.dtype == np.float32
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(output, predict(loaded, data(cls)))
    assert loaded.get_config() == model.get_config()


@every
@pytest.mark.filterwarnings("ignore:.*does not have a `quantize`")
def test_quantized_reloads(cls, options, tmp_path):
    model = cls(**options)
    exact = predict(model, data(cls))
    model.quantize("int8")
    output = predict(model, data(cls))
    assert 0 < np.abs(output - exact).max() < 0.05
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(output, predict(loaded, data(cls)))


@every
def test_lora_reloads(cls, options, tmp_path):
    model = cls(**options)
    attention = model.get_layer("encoder_0")._self_attention_layer
    before = len(model.trainable_variables)
    attention.query_dense.enable_lora(2)
    attention.value_dense.enable_lora(2)
    assert len(model.trainable_variables) == before + 2
    for dense in (attention.query_dense, attention.value_dense):
        dense.lora_kernel_b.assign(np.full(dense.lora_kernel_b.shape, 0.1))
    output = predict(model, data(cls))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(output, predict(loaded, data(cls)), atol=1e-5)


@with_hourglass
def test_shared_mechanism_is_one_object(cls, options, tmp_path):
    shared = mechanisms.Linformer(projection_dim=3, sequence_length=16)
    model = cls(**{**options, "num_layers": 2, "mechanism": shared})
    assert sum("projection" in w.path for w in shared.weights) == 2
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.count_params() == model.count_params()
    np.testing.assert_array_equal(
        predict(model, data(cls)), predict(loaded, data(cls))
    )


@every
def test_refuses(cls, options):
    with pytest.raises(ValueError, match="`num_heads` must be a positive"):
        cls(**{**options, "num_heads": 0})
    with pytest.raises(ValueError, match="Unknown mechanism 'quadratic'"):
        cls(**{**options, "mechanism": "quadratic"})


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_text_padding_changes_nothing_and_length_is_free(factor):
    options = {**TEXT, "num_layers": 2, "hourglass_factor": factor}
    model = TextClassifier(**options)
    x = data(TextClassifier)
    for more in (1, 2, 5, 9):  # within a merged token, and past it
        padded = np.pad(x, [(0, 0), (0, more)])
        np.testing.assert_allclose(
            predict(model, padded), predict(model, x), atol=1e-5
        )
    assert model.input_shape == (None, None)
    assert [x.name for x in model.inputs] == ["tokens"]
    nothing = predict(model, np.zeros((1, 6), "int32"))
    assert np.isfinite(nothing).all()


def test_text_hourglass_attends_at_the_shorter_length():
    model = TextClassifier(**HOURGLASS)
    tokens = np.ones((1, 23), "int32")  # merged to 12, and to 4
    lengths = []
    for number in range(3):
        block = model.get_layer(f"encoder_{number}").output
        found = predict(keras.Model(model.inputs, block), tokens)
        lengths.append(found.shape[1])
    assert lengths == [4, 4, 12]


def test_text_hourglass_of_one_is_none():
    without = TextClassifier(**TEXT)
    config = without.get_config()
    del config["hourglass_factor"]  # as in a file of before
    names = [layer.name for layer in TextClassifier.from_config(config).layers]
    assert names == [layer.name for layer in without.layers]
    assert not any("hourglass" in name for name in names)


def test_text_refuses_an_hourglass():
    with pytest.raises(ValueError, match="hourglass_factor=0"):
        TextClassifier(**{**HOURGLASS, "hourglass_factor": 0})
    with pytest.raises(ValueError, match="num_layers=1, hourglass_factor=3"):
        TextClassifier(**{**HOURGLASS, "num_layers": 1})


def test_vision_refuses_images_that_do_not_fit():
    with pytest.raises(ValueError, match="multiples of the patch size"):
        VisionTransformer(num_classes=3, image_shape=(9, 8, 1), patch_size=2)
    with pytest.raises(ValueError, match="multiples of the patch size"):
        VisionTransformer(  # 5 x 4 after the stem
            3, image_shape=(10, 8, 1), patch_size=2, stem_filters=(4,)
        )


# --- Arguments


@every
def test_arguments_may_be_numpy_numbers(cls, options):
    given = {
        name: np.int64(value) if type(value) is int else value
        for name, value in options.items()
    }
    config = cls(**given, name="model").get_config()
    assert config == cls(**options, name="model").get_config()
    json.dumps(config)


@every
def test_clones(cls, options):
    model = cls(**options)
    same = keras.models.clone_model(model)
    same.set_weights(model.get_weights())
    np.testing.assert_array_equal(
        predict(same, data(cls)), predict(model, data(cls))
    )


@keras.saving.register_keras_serializable("tests")
class Wide(VisionTransformer):
    """A subclass with arguments of its own."""

    def __init__(self, width, **kwargs):
        super().__init__(3, hidden_dim=4 * width, num_heads=width, **kwargs)
        self.width = width

    def get_config(self):
        config = super().get_config()
        own = ("num_classes", "hidden_dim", "num_heads")
        config = {k: v for k, v in config.items() if k not in own}
        return {**config, "width": self.width}


def test_subclasses_reload(tmp_path):
    model = Wide(2, image_shape=(8, 4, 3), num_layers=1)
    assert model.num_heads == 2 and model.activation == "softmax"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    x = data(VisionTransformer)
    np.testing.assert_array_equal(predict(loaded, x), predict(model, x))


# --- Sizes that mechanisms ask for


ON_GRIDS = [n for n in mechanisms.available() if mechanisms.get(n).traits.grid]
GRID = {**IMAGE, "image_shape": (8, 12, 3)}  # of 2 x 3 patches


def mechanism_in(model, block="encoder_0"):
    return model.get_layer(block).mechanism


@pytest.mark.parametrize("name", ON_GRIDS)
def test_vision_passes_its_grid(name):
    model = VisionTransformer(**{**GRID, "mechanism": name})
    assert model.get_config()["mechanism"] == name
    own = mechanisms.get(name, grid=(2, 3))
    expected = VisionTransformer(**{**GRID, "mechanism": own})
    expected.set_weights(model.get_weights())
    x = np.random.default_rng(0).random((2, 8, 12, 3), dtype="float32")
    np.testing.assert_allclose(
        predict(model, x), predict(expected, x), atol=1e-6
    )
    assert mechanism_in(model).grid == (2, 3)


@pytest.mark.parametrize("name", ON_GRIDS)
def test_vision_with_a_mechanism_on_a_sequence(name):
    for mechanism in ({"name": name, "grid": None}, mechanisms.get(name)):
        model = VisionTransformer(**{**GRID, "mechanism": mechanism})
        assert mechanism_in(model).grid is None
    if hasattr(mechanism, "num_landmarks"):  # 5 do not make a square
        mechanism = {"name": name, "num_landmarks": 5}
        model = VisionTransformer(**{**GRID, "mechanism": mechanism})
        assert mechanism_in(model).grid is None


def test_vision_takes_a_class():
    options = {**GRID, "num_layers": 2, "mechanism": mechanisms.Focused}
    model = VisionTransformer(**options)
    first, second = (mechanism_in(model, f"encoder_{i}") for i in (0, 1))
    assert first is not second
    assert first.grid == second.grid == (2, 3)
    config = model.get_config()
    assert config["mechanism"] == "focused"
    assert VisionTransformer.from_config(config).get_config() == config


@pytest.mark.parametrize("name", ["linformer", "cosformer"])
def test_models_pass_the_longest_length(name):
    def lengths(cls, options):
        model = cls(**{**options, "mechanism": name})
        blocks = [x for x in model.layers if x.name.startswith("encoder_")]
        return [block.mechanism.sequence_length for block in blocks]

    assert lengths(VisionTransformer, GRID) == [6]
    assert lengths(TextClassifier, {**TEXT, "sequence_length": 23}) == [12]
    long = {**HOURGLASS, "sequence_length": 23}
    assert lengths(TextClassifier, long) == [4, 4, 12]
    assert lengths(AudioClassifier, {**AUDIO, "sequence_length": 83}) == [11]
    for cls, options in ((TextClassifier, HOURGLASS), (AudioClassifier, AUDIO)):
        with pytest.raises(ValueError, match="'sequence_length': ..."):
            lengths(cls, {**options, "sequence_length": None})
        with pytest.raises(ValueError, match="sequence_length=0"):
            lengths(cls, {**options, "sequence_length": 0})


@with_hourglass
def test_remat_reaches_every_block(cls, options):
    model = cls(**options, remat=True)
    blocks = [x for x in model.layers if x.name.startswith("encoder_")]
    assert blocks and all(block.remat for block in blocks)


# --- Waveforms


def test_audio_padding_changes_nothing_and_length_is_free():
    model = AudioClassifier(**{**AUDIO, "num_layers": 2})
    x = data(AudioClassifier)
    x[:, :9] = x[:, 40:49] = 0  # silence, which is not padding
    for more in (1, 4, 6, 61):  # within a window, a frame, and past it
        padded = np.pad(x, [(0, 0), (0, more)])
        np.testing.assert_allclose(
            predict(model, padded), predict(model, x), atol=1e-5
        )
    assert model.input_shape == (None, None)
    assert [x.name for x in model.inputs] == ["waveforms"]
    assert model.total_stride == 8


def test_audio_of_many_lengths_in_one_batch():
    model = AudioClassifier(**AUDIO)
    x, sizes = data(AudioClassifier), (83, 40, 7, 1)
    batch = np.where(np.arange(83) < np.array(sizes)[:, None], x, 0)
    outputs = predict(model, batch)
    for row, size, output in zip(x, sizes, outputs):
        alone = predict(model, row[None, :size])
        np.testing.assert_allclose(alone[0], output, atol=1e-5)


def test_audio_silence_counts_and_nothing_is_finite():
    model = AudioClassifier(**AUDIO)
    x = data(AudioClassifier)
    interrupted = np.insert(x, [40] * 24, 0, axis=1)
    assert np.abs(predict(model, interrupted) - predict(model, x)).max() > 1e-5
    assert np.isfinite(predict(model, np.zeros((1, 20), "float32"))).all()


def test_audio_takes_a_channel():
    model = AudioClassifier(**AUDIO)
    x = data(AudioClassifier)
    same = AudioClassifier.from_config(model.get_config())
    same.set_weights(model.get_weights())
    np.testing.assert_allclose(
        predict(model, x[..., None]), predict(same, x), atol=1e-6
    )


def test_audio_refuses():
    with pytest.raises(ValueError, match="one entry for each convolution"):
        AudioClassifier(**{**AUDIO, "strides": (4,)})
    with pytest.raises(ValueError, match="one entry for each convolution"):
        AudioClassifier(3, strides=(), kernel_sizes=())
    with pytest.raises(
        ValueError, match="multiple of `strides`.*kernel_size=7"
    ):
        AudioClassifier(3, strides=(4,), kernel_sizes=(7,))
    with pytest.raises(ValueError, match="positive integer.*strides=0"):
        AudioClassifier(3, strides=(0,), kernel_sizes=(4,))
