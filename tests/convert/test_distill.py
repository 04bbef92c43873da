"""Distillation: what is trained, what is said of wrong use, how it goes on."""

import keras
import numpy as np
import pytest
from helpers import numpy
from helpers import predict
from helpers import random
from helpers import slow_to_compile
from keras import ops

import keras_linattn
from keras_linattn.convert import attention_errors
from keras_linattn.convert import distill
from keras_linattn.convert._finetuning import Divergence

MHA = keras.layers.MultiHeadAttention
LINEAR = keras_linattn.LinearMultiHeadAttention
HEDGEHOG = {"mechanism": "hedgehog"}
WINDOW = {"mechanism": {"name": "hybrid_window", "window": 2}}
IDS = np.random.default_rng(0).integers(1, 9, (12, 6)).astype("int32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LABELS = (IDS > 4).astype("int32")


def make(
    layer,
    names=("first", "second"),
    head=2,
    mask_zero=False,
    num_heads=2,
    **options,
):
    """A causal model of token ids whose positions get a label each."""
    inputs = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(9, 8, mask_zero=mask_zero, name="embed")(inputs)
    for name in names:
        attention = layer(num_heads, 4, name=name, **options)
        mixed = attention(x, x, use_causal_mask=True)
        x = keras.layers.Add(name=f"add_{name}")([x, mixed])
    logits = keras.layers.Dense(head, name="head")(x)
    return keras.Model(inputs, logits)


def teacher_and_student(mask_zero=False, **options):
    teacher = make(MHA, mask_zero=mask_zero)
    for layer in teacher.layers:  # attention that is not almost uniform
        layer.set_weights([2 * w for w in layer.get_weights()])
    teacher.compile(loss=LOSS)
    student = make(LINEAR, mask_zero=mask_zero, **(options or HEDGEHOG))
    values = {v.path: v for v in teacher.variables}
    for variable in student.variables:
        if variable.path in values:
            variable.assign(values[variable.path])
    return teacher, student


def weights(model):
    return {v.path: ops.convert_to_numpy(v.value) for v in model.variables}


def changed(before, model):
    after = weights(model)
    assert after.keys() == before.keys()
    return {x for x in before if not np.array_equal(before[x], after[x])}


@pytest.mark.parametrize(
    ("loss", "mask_zero"),
    [("outputs", True), pytest.param("weights", False, marks=slow_to_compile)],
)
def test_transfer_trains_the_feature_maps_only(loss, mask_zero):
    teacher, student = teacher_and_student(mask_zero)
    ids = np.where(np.arange(6) < 5, IDS, 0) if mask_zero else IDS
    errors = [attention_errors(student, teacher, ids, loss=loss, verbose=0)]
    before, of_teacher = weights(student), weights(teacher)
    history = distill(
        student,
        teacher,
        ids,
        transfer_epochs=6,
        transfer_loss=loss,
        transfer_optimizer=keras.optimizers.Adam(0.05),
        epochs=0,
        batch_size=4,
        verbose=0,
    )
    losses = history["transfer"].history["loss"]
    assert len(losses) == 6 and losses[-1] < 0.9 * losses[0]
    errors.append(attention_errors(student, teacher, ids, loss=loss, verbose=0))
    assert list(errors[0]) == ["first", "second"]
    for path in errors[0]:
        assert 0 < errors[1][path] < errors[0][path] < 1
    maps = {x for x in before if x.endswith("_map")}
    assert len(maps) == 4 and changed(before, student) == maps
    assert not changed(of_teacher, teacher)
    assert all(v.trainable for v in student.weights + teacher.weights)
    assert not any("call" in vars(x) for x in teacher.layers)


def test_an_exact_student_has_no_error():
    teacher, student = teacher_and_student(mask_zero=True, mechanism="softmax")
    ids = np.where(np.arange(6) < 4, IDS, 0)
    for loss in ("outputs", "weights"):
        errors = attention_errors(student, teacher, ids, loss=loss, verbose=0)
        assert max(errors.values()) < 1e-6
    with pytest.raises(ValueError, match="mechanism with weights.*`Softmax`"):
        distill(student, teacher, ids, epochs=0)


@pytest.mark.parametrize("rank", [1, pytest.param(None, marks=slow_to_compile)])
def test_fine_tuning_trains_adapters_or_all(rank, tmp_path):
    teacher, student = teacher_and_student(**WINDOW)
    before, of_teacher = weights(student), weights(teacher)
    history = distill(
        student,
        teacher,
        IDS,
        LABELS,
        transfer_epochs=0,
        epochs=2,
        optimizer=keras.optimizers.Adam(0.002),
        weighted_metrics=["accuracy"],
        lora_rank=rank,
        verbose=0,
    )["finetune"].history
    assert history["loss"][1] < history["loss"][0] and history["accuracy"]
    attention = {x for x in before if x.startswith(("first/", "second/"))}
    adapted = {x for x in attention if not x.endswith("bias")}
    assert changed(before, student) >= adapted
    if rank is not None:
        assert changed(before, student) == adapted
        kernel = before["second/value/kernel"].reshape(8, -1)
        change = weights(student)["second/value/kernel"].reshape(8, -1) - kernel
        assert np.linalg.matrix_rank(change, tol=1e-6) <= 4  # 1 for (D, H)
    assert not changed(of_teacher, teacher)
    # An ordinary model again, which comes back as it is.
    assert all(v.trainable for v in student.weights + teacher.weights)
    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    assert not loaded.get_layer("first")._query_dense.lora_enabled
    np.testing.assert_allclose(
        predict(loaded, IDS), predict(student, IDS), atol=1e-6
    )


@slow_to_compile
def test_the_teacher_alone_is_enough_without_labels():
    teacher, student = teacher_and_student()
    options = {"teacher_weight": 1.0, "temperature": 2.0, "lora_rank": None}
    student.get_layer("head").set_weights(make(MHA).layers[-1].get_weights())
    history = distill(
        student,
        teacher,
        IDS,
        transfer_epochs=0,
        epochs=8,
        optimizer=keras.optimizers.Adam(0.02),
        verbose=0,
        **options,
    )["finetune"].history["loss"]
    assert 0 < history[-1] < 0.5 * history[0]


def test_divergence_is_that_of_the_probabilities():
    logits = random(3, 5, seed=1), random(3, 5, seed=2)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits)
    expected = np.sum(p * np.log(p / q), axis=-1).mean()
    for scale, from_logits, outputs in (
        (1.0, True, logits),
        (3.0, True, [3 * x for x in logits]),
        (1.0, False, (p, q)),
    ):
        found = Divergence(scale, from_logits)(*outputs)
        np.testing.assert_allclose(numpy(found), scale**2 * expected, rtol=1e-4)


class Interrupted(keras.callbacks.Callback):
    """Stops the process, in a way, in the epoch that it is told."""

    def __init__(self, model_name, epoch):
        super().__init__()
        self.place = model_name, epoch

    def on_epoch_begin(self, epoch, logs=None):
        if (self.model.name, epoch) == self.place:
            raise KeyboardInterrupt


@slow_to_compile
@pytest.mark.parametrize(
    "rank", [1, pytest.param(None, marks=pytest.mark.once)]
)
def test_an_interrupted_run_goes_on(rank, tmp_path):
    options = {"transfer_epochs": 2, "epochs": 2, "lora_rank": rank}
    options |= {"verbose": 0, "shuffle": False, "batch_size": 4}

    def run(*places, backup=None):
        """The student's weights after runs that are interrupted there."""
        for place in (*places, None):
            keras.utils.set_random_seed(1)
            teacher, student = teacher_and_student()
            stop = [Interrupted(*place)] if place else []
            try:
                last = distill(
                    student,
                    teacher,
                    IDS,
                    LABELS,
                    callbacks=stop,
                    backup_dir=backup,
                    **options,
                )
            except KeyboardInterrupt:
                assert place and all(v.trainable for v in student.weights)
        return [ops.convert_to_numpy(v) for v in student.weights], last

    places = ("attention_transfer", 1), ("distillation", 1)
    expected, _ = run()
    backup = tmp_path / "backup"
    found, last = run(*places, backup=backup)
    assert last["transfer"].epoch == [] and last["finetune"].epoch == [1]
    for pair in zip(found, expected, strict=True):
        np.testing.assert_allclose(*pair, atol=2e-6)
    assert run(backup=backup)[1]["finetune"].epoch == []
    options["transfer_loss"] = "outputs"
    if rank:
        options["lora_rank"] = 2
        with pytest.raises(ValueError, match="backup must come from a run"):
            run(backup=backup)


@slow_to_compile
@pytest.mark.parametrize(
    "kind",
    [
        "dataset",
        *(
            pytest.param(x, marks=pytest.mark.once)
            for x in ("tf.data", "torch")
        ),
    ],
)
def test_data_as_fit_takes_it(kind):
    teacher, student = teacher_and_student()
    batches = [(IDS[i : i + 4], LABELS[i : i + 4]) for i in (0, 4, 8)]
    if kind == "dataset":

        class Batches(keras.utils.PyDataset):
            def __len__(self):
                return 3

            def __getitem__(self, index):
                return batches[index]

        data = Batches()
    elif kind == "tf.data":
        tf = pytest.importorskip("tensorflow")
        data = tf.data.Dataset.from_tensor_slices((IDS, LABELS)).batch(4)
    else:
        torch = pytest.importorskip("torch")
        pairs = torch.utils.data.TensorDataset(
            torch.from_numpy(IDS), torch.from_numpy(LABELS)
        )
        data = torch.utils.data.DataLoader(pairs, batch_size=4)
    histories = distill(student, teacher, data, shuffle=False, verbose=0)
    for history in histories.values():
        assert history.params["steps"] == 3
        assert np.isfinite(history.history["loss"]).all()


@slow_to_compile
def test_half_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        teacher, student = teacher_and_student()
    finally:
        keras.config.set_dtype_policy(before)
    histories = distill(student, teacher, IDS, LABELS, verbose=0)
    assert all(np.isfinite(x.history["loss"]).all() for x in histories.values())
    assert {v.dtype for v in student.weights} == {"float32"}


@pytest.mark.once
def test_a_student_with_fewer_layers():
    teacher, _ = teacher_and_student()
    student = make(LINEAR, names=("only",), **HEDGEHOG)
    before = weights(student)
    distill(
        student,
        teacher,
        IDS,
        layers={"only": "second"},
        epochs=0,
        verbose=0,
    )
    maps = {x for x in before if x.endswith("_map")}
    assert changed(before, student) == maps


@pytest.mark.once
def test_models_of_this_package_compare_heads():
    teacher = keras_linattn.models.CausalLM(
        hidden_dim=8, num_layers=2, num_heads=2, mechanism="softmax"
    )
    student = keras_linattn.linearize(teacher)
    for loss in ("outputs", "weights"):
        history = distill(
            student, teacher, IDS, epochs=0, transfer_loss=loss, verbose=0
        )
        assert 0 < history["transfer"].history["loss"][0] < 1


# --- Wrong use


def refused(match, student=None, teacher=None, x=IDS, y=LABELS, **options):
    default = teacher_and_student()
    student, teacher = student or default[1], teacher or default[0]
    with pytest.raises(ValueError, match=match):
        distill(student, teacher, x, y, verbose=0, **options)
    assert all(v.trainable for v in student.weights + teacher.weights)


@pytest.mark.once
def test_models_that_do_not_match_are_refused():
    teacher, student = teacher_and_student()
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    refused("`student` must be built", student=unbuilt)
    refused("`teacher` must be built", teacher=unbuilt)
    refused("must be two models", student=student, teacher=student)
    refused("must have attention layers with a mechanism", student=teacher)
    other = make(MHA, names=("other",))
    refused("teacher has no first, second", teacher=other)
    refused("teacher has no other", layers={"first": "other"})
    refused("Received: other. It has first, second", layers={"other": "first"})
    wide = make(MHA, head=3)
    refused("outputs of the same shape", teacher=wide, loss=LOSS)
    one_head = make(MHA, num_heads=1)
    options = {"transfer_loss": "weights", "loss": LOSS}
    refused("outputs of one shape", None, one_head, **options)


@pytest.mark.once
def test_data_that_does_not_fit_is_refused():
    refused(r"data must match the inputs of the teacher", x=random(12, 6, 8, 2))
    refused("needs labels", y=None, transfer_epochs=0)
    # Found out before the first stage is trained.
    never = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: 1 / 0)
    refused("needs labels", y=None, callbacks=[never])
    refused("Compile the teacher", None, make(MHA), callbacks=[never])


@pytest.mark.once
def test_options_out_of_range_are_refused():
    refused("without `initial_epoch`. Received: initial_epoch", initial_epoch=1)
    refused("Received: learning_rate", learning_rate=0.1)
    refused("`epochs` must be an integer >= 0. Received: epochs=-1", epochs=-1)
    refused("one of outputs, weights. Received.*'heads'", transfer_loss="heads")
    quick = {"transfer_epochs": 0}
    refused("must be in .0, 1.. Received.*2", teacher_weight=2, **quick)
    refused("`temperature` must be positive", temperature=0, **quick)
    _, student = teacher_and_student()
    teacher = make(MHA)
    refused("needs the task's loss", student, teacher, teacher_weight=0)
    refused("or `from_logits`, which", student, teacher, teacher_weight=1)
    teacher, student = make(MHA, head=1), make(LINEAR, head=1, **HEDGEHOG)
    refused("One output is not a distribution", student, teacher, loss="mse")
