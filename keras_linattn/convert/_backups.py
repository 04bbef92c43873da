"""Lets a stage of training continue after an interrupted run.

`keras.callbacks.BackupAndRestore` is not used: it would save the teacher too,
and it restores LoRA's two factors as zeros, whose gradients stay 0.
"""

import os
import pathlib

import keras
import numpy as np
from keras import ops


class Backup(keras.callbacks.Callback):
    """Saves the trained variables and the optimizer after each epoch.

    Args:
        path: `pathlib.Path` of an .npz file.
        variables: the model's variables that training changes.
    """

    def __init__(self, path, variables):
        super().__init__()
        self.path = path
        self.variables = variables

    def on_epoch_end(self, epoch, logs=None):
        optimizer = self.model.optimizer  # under JAX, this fills the variables
        arrays = {
            str(place): _to_numpy(variable)
            for place, variable in enumerate(self.variables)
        }
        arrays |= {
            f"optimizer_{place}": _to_numpy(variable)
            for place, variable in enumerate(optimizer.variables)
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        with open(unfinished, "wb") as file:
            np.savez(file, epoch=epoch + 1, **arrays)
        os.replace(unfinished, self.path)  # atomic: never half a file


def fit(model, variables, backup_path, epochs, callbacks, **options):
    """`model.fit`, from the epoch at which an earlier run ended.

    Args:
        model: compiled `keras.Model`.
        variables: list of its variables that training changes.
        backup_path: path of the backup, or `None` to save nothing.
        epochs: int.
        callbacks: list of callbacks, or `None`.
        **options: of `fit`.

    Returns:
        The `History` of this run's epochs.
    """
    start, callbacks = 0, list(callbacks or ())
    if backup_path is not None:
        path = pathlib.Path(backup_path)
        if path.is_file():
            start = _restore(model, variables, path)
        callbacks.append(Backup(path, variables))
    if start >= epochs:
        history = keras.callbacks.History()
        history.on_train_begin()  # of no epoch
        return history
    return model.fit(
        epochs=epochs, initial_epoch=start, callbacks=callbacks, **options
    )


def _restore(model, variables, path):
    """Sets the variables; returns the number of finished epochs."""
    model.optimizer.build(model.trainable_variables)
    with np.load(path) as arrays:
        targets = {str(place): v for place, v in enumerate(variables)}
        targets |= {
            f"optimizer_{place}": v
            for place, v in enumerate(model.optimizer.variables)
        }
        if {"epoch", *targets} != set(arrays) or any(
            arrays[name].shape != tuple(variable.shape)
            for name, variable in targets.items()
        ):
            raise ValueError(
                "The backup must come from a run with the same student and "
                f"options. Received: {path}, with other weights. Delete it, or "
                "pass another `backup_dir`."
            )
        for name, variable in targets.items():
            variable.assign(arrays[name])
        return int(arrays["epoch"])


def _to_numpy(variable):
    if variable.dtype == "bfloat16":  # which .npz files cannot store
        return ops.convert_to_numpy(ops.cast(variable.value, "float32"))
    return ops.convert_to_numpy(variable.value)
