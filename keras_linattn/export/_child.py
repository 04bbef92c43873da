"""Runs `_convert` as a second process, under TensorFlow.

Keras' exporter fails under torch, so a torch model is saved as `.keras`, and
the second process loads and exports it.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile

import keras


def export_in_child(model, path, arguments, say):
    """Writes `model` to the new folder `path`, beside which a file is left.

    `arguments` are more command-line arguments of `_convert`; `say` is called
    with each line that the process prints, when it prints it.
    """
    archive = path.with_name("model.keras")
    model.save(archive)
    command = [sys.executable, "-m", "keras_linattn.export._convert"]
    command += [str(archive), str(path), *arguments]
    command += ["--import", *_modules_of_custom_objects(archive)]
    # A file, since a pipe that nobody reads fills up and stops the process.
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
        ) as child:
            for line in child.stdout:
                say(line.removesuffix("\n"))
        errors.seek(0)
        said = errors.read().decode("utf-8", errors="replace")
    if child.returncode:
        raise RuntimeError(
            "Under the torch backend the export runs in a second process "
            "under TensorFlow, where the model must load. "
            f"Received: exit status {child.returncode}, and the errors below. "
            "If a class or function could not be located, move it from the "
            "script or notebook to a module and decorate it with "
            "`@keras.saving.register_keras_serializable()`. Or save the model "
            "as `.keras`, and load and export it under "
            f"KERAS_BACKEND=tensorflow yourself.\n\n{said}"
        )


def _modules_of_custom_objects(archive):
    """The modules that register what the `.keras` file `archive` names."""
    with zipfile.ZipFile(archive) as file:
        config = file.read("config.json").decode("utf-8")
    modules = {
        registered.__module__
        for name, registered in keras.saving.get_custom_objects().items()
        if json.dumps(name) in config
    }
    return sorted(modules - {"__main__"})


def _environment():
    return {
        "TF_CPP_MIN_LOG_LEVEL": "2",  # its errors, not its chatter
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        # TensorFlow would take all the memory of a GPU that torch is using.
        "CUDA_VISIBLE_DEVICES": "-1",
        # What this process can import, the child can import.
        "PYTHONPATH": os.pathsep.join(map(str, sys.path)),
    }
