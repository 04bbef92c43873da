"""Distillation: trains a converted model to match its teacher."""

import inspect
import os
import pathlib
from typing import Any

import keras

from keras_linattn.convert import _backups
from keras_linattn.convert._finetuning import Distillation
from keras_linattn.convert._finetuning import Divergence
from keras_linattn.convert._pairs import pair_layers
from keras_linattn.convert._trainable import enable_lora
from keras_linattn.convert._trainable import lora_variables
from keras_linattn.convert._trainable import merge_lora
from keras_linattn.convert._trainable import only_trainable
from keras_linattn.convert._trainable import projections
from keras_linattn.convert._trainable import separate
from keras_linattn.convert._transfer import AttentionTransfer
from keras_linattn.convert._transfer import feature_map_variables
from keras_linattn.convert._transfer import with_feature_maps


def distill(
    student: keras.Model,
    teacher: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    layers: dict[str, str] | None = None,
    transfer_epochs: int = 1,
    transfer_loss: str = "outputs",
    transfer_optimizer: str | keras.Optimizer | None = None,
    epochs: int = 1,
    optimizer: str | keras.Optimizer | None = None,
    loss: Any = None,
    metrics: Any = None,
    weighted_metrics: Any = None,
    teacher_weight: float = 0.5,
    teacher_loss: Any = None,
    temperature: float = 1.0,
    from_logits: bool | None = None,
    lora_rank: int | None = 8,
    lora_alpha: float | None = None,
    backup_dir: str | os.PathLike | None = None,
    callbacks: list | None = None,
    **fit_options: Any,
) -> dict[str, keras.callbacks.History]:
    """Trains a converted model to match the model that it was made from.

    1. **Attention transfer** trains the mechanisms' weights only (the feature
       maps of `hedgehog` or `hybrid_window`). Each attention layer gets the
       inputs of the teacher's layer and learns to return its outputs. One pass
       over the data trains all layers. No labels are needed.
    2. **Fine-tuning** trains the whole student on the task's loss, the
       teacher's outputs, or both. By default only the mechanisms' weights and
       adapters of low rank (LoRA) on the attention layers' projections are
       trained. The adapters are merged into the kernels at the end.

    Both stages call Keras' `fit`. Data, callbacks, progress bars and mixed
    precision work as they do there. The student is changed in place; the
    teacher is not changed.

    Args:
        student: built `keras.Model`, such as `linearize(teacher)`.
        teacher: built `keras.Model` with softmax attention.
        x: data, as `fit` takes it: arrays, a `keras.utils.PyDataset`, a
            `tf.data.Dataset`, a torch `DataLoader`. A Python generator must
            not end in the first stage.
        y: labels, as `fit` takes them. Not needed with `epochs=0` or
            `teacher_weight=1`.
        sample_weight: as `fit` takes it, for the second stage.
        layers: optional dict from the path of an attention layer of the
            student to that of a layer of the teacher, for a student that has
            fewer layers or other names. Defaults to `None`: equal paths.
        transfer_epochs: int >= 0, passes over the data for attention transfer.
            Defaults to 1.
        transfer_loss: `"outputs"`, the squared error of the outputs (LoLCATs),
            or `"weights"`, the cross-entropy of the attention weights
            (Hedgehog), whose memory grows with the square of the length.
            Defaults to `"outputs"`.
        transfer_optimizer: optimizer of attention transfer. Defaults to `None`:
            Adam with a learning rate of 0.01.
        epochs: int >= 0, passes over the data for fine-tuning. Defaults to 1.
        optimizer: optimizer of fine-tuning. Defaults to `None`: Adam with
            a learning rate of 0.001.
        loss: loss of the task, as `compile` takes it. Defaults to `None`: the
            loss that the teacher is compiled with.
        metrics: metrics of fine-tuning, as `compile` takes them.
        weighted_metrics: weighted metrics of fine-tuning, as `compile` takes
            them.
        teacher_weight: float in [0, 1], the weight of `teacher_loss`; the
            task's loss has the weight `1 - teacher_weight`. Defaults to 0.5.
        teacher_loss: loss that compares the teacher's outputs with the
            student's, as `compile` takes it. Defaults to `None`: the KL
            divergence of the distributions over the last axis.
        temperature: float > 0. The logits of both models are divided by it
            before they are compared. Defaults to 1.
        from_logits: bool, whether the models' outputs are logits. Defaults to
            `None`: the `from_logits` of `loss`, `False` if it has none.
        lora_rank: int > 0, rank of the adapters, or `None` to train all
            trainable weights of the student. Defaults to 8.
        lora_alpha: float, see `keras.layers.Dense`. Defaults to `None`:
            `lora_rank`.
        backup_dir: folder in which each epoch saves the trained weights. The
            same call with a new student then continues after the last
            finished epoch. Delete the folder to start again. Defaults to
            `None`: nothing is saved.
        callbacks: list of callbacks, for both stages.
        **fit_options: further arguments of `fit`, for both stages:
            `batch_size`, `steps_per_epoch`, `validation_data`, `verbose`, ...

    Returns:
        Dict of the `keras.callbacks.History` of each stage that was run, by
        `"transfer"` and `"finetune"`.

    Raises:
        ValueError: if a model is not built, if student and teacher do not
            match, if there is no feature map to train, if the data does not
            match the models' inputs, or if an argument is out of range.

    Example:

    >>> import keras, keras_linattn, numpy as np
    >>> def model(attention):
    ...     inputs = keras.Input((None, 8))
    ...     x = attention(inputs, inputs)
    ...     x = keras.layers.GlobalAveragePooling1D()(x)
    ...     outputs = keras.layers.Dense(3, activation="softmax")(x)
    ...     return keras.Model(inputs, outputs)
    >>> teacher = model(keras.layers.MultiHeadAttention(2, 4, name="mix"))
    >>> teacher.compile(loss="sparse_categorical_crossentropy")
    >>> student = model(keras_linattn.LinearMultiHeadAttention(
    ...     2, 4, mechanism="hedgehog", name="mix"))
    >>> x, y = np.ones((4, 5, 8), "float32"), np.array([0, 1, 2, 0])
    >>> history = keras_linattn.distill(student, teacher, x, y, verbose=0)
    >>> list(history["transfer"].history)
    ['loss']

    Sources: Zhang et al., 2024, arXiv 2410.10254 (LoLCATs: transfer, then
    LoRA); Zhang et al., 2024, arXiv 2402.04347 (Hedgehog); Hinton, Vinyals,
    Dean, 2015, arXiv 1503.02531 (the teacher's outputs).
    """
    _check_options(fit_options, transfer_epochs, epochs)
    pairs = pair_layers(student, teacher, layers)
    separate(student)
    backup = pathlib.Path(backup_dir) if backup_dir is not None else None
    histories = {}
    if transfer_epochs:
        learning = with_feature_maps(pairs)
        histories["transfer"] = _transfer(
            AttentionTransfer(student, teacher, learning, transfer_loss),
            transfer_optimizer,
            backup_path=backup and backup / "transfer.npz",
            epochs=transfer_epochs,
            callbacks=callbacks,
            x=x,
            y=y,
            **fit_options,
        )
    if epochs:
        model = Distillation(
            student,
            teacher,
            teacher_weight,
            _teacher_loss(teacher_loss, temperature, from_logits, loss, teacher)
            if teacher_weight
            else None,
        )
        loss = _task_loss(loss, teacher) if teacher_weight < 1 else None
        model.compile(
            _optimizer(optimizer, 1e-3),
            loss,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
        )
        histories["finetune"] = _finetune(
            model,
            pairs,
            (lora_rank, lora_alpha),
            backup_path=backup and backup / "finetune.npz",
            epochs=epochs,
            callbacks=callbacks,
            x=x,
            y=y,
            sample_weight=sample_weight,
            **fit_options,
        )
    return histories


def _transfer(model, optimizer, **options):
    """Attention transfer: trains the student's mechanisms only."""
    variables = feature_map_variables(model.get_pairs())
    model.compile(_optimizer(optimizer, 1e-2))
    with only_trainable(model, variables):
        return _backups.fit(model, variables, **options)


def _finetune(model, pairs, lora, **options):
    rank, alpha = lora
    student = model.student
    kept = [v for v in student.variables if not v.trainable]
    if rank is None:
        chosen = student.trainable_variables
        with only_trainable(model, chosen):
            return _backups.fit(model, chosen + kept, **options)
    layers = [x for pair in pairs for x in projections(pair.student)]
    layers = list({id(layer): layer for layer in layers}.values())
    if not layers:
        raise ValueError(
            "LoRA needs projections that have `enable_lora`. Received: a "
            "student whose attention layers have no such projection. Pass "
            "`lora_rank=None`."
        )
    added = enable_lora(layers, rank, alpha)
    try:
        chosen = lora_variables(layers) + feature_map_variables(pairs)
        with only_trainable(model, chosen):
            return _backups.fit(model, chosen, **options)
    finally:
        merge_lora(added)


def _check_options(options, transfer_epochs, epochs):
    names = set(inspect.signature(keras.Model.fit).parameters)
    unknown = sorted(set(options) - names | set(options) & {"initial_epoch"})
    if unknown:
        raise ValueError(
            "Further arguments must be those of `keras.Model.fit`, without "
            f"`initial_epoch`. Received: {', '.join(unknown)}."
        )
    for name, value in (
        ("transfer_epochs", transfer_epochs),
        ("epochs", epochs),
    ):
        if not isinstance(value, int) or value < 0:
            raise ValueError(
                f"`{name}` must be an integer >= 0. Received: {name}={value!r}."
            )


def _optimizer(optimizer, learning_rate):
    if optimizer is None:
        return keras.optimizers.Adam(learning_rate)
    return keras.optimizers.get(optimizer)


def _given_loss(loss, teacher):
    """The loss, by default the one that the teacher is compiled with."""
    return getattr(teacher, "loss", None) if loss is None else loss


def _task_loss(loss, teacher):
    loss = _given_loss(loss, teacher)
    if loss is None:
        raise ValueError(
            "Fine-tuning needs the task's loss. Received: loss=None, and the "
            "teacher is not compiled with one. Pass `loss=`, or "
            "`teacher_weight=1` to train on the teacher's outputs only."
        )
    return loss


def _teacher_loss(identifier, temperature, from_logits, loss, teacher):
    if identifier is not None:
        return keras.losses.get(identifier)
    if from_logits is None:
        loss = _given_loss(loss, teacher)
        if loss is None:
            raise ValueError(
                "Without a `loss`, `from_logits` must say whether the models' "
                "outputs are logits. Received: from_logits=None. Pass `True` "
                "or `False`."
            )
        from_logits = getattr(loss, "from_logits", False)
    return Divergence(temperature, from_logits)
