"""One process under one backend: saves or loads models of the matrix.

    KERAS_BACKEND=jax python tools/_saving_worker.py save JOBS FOLDER
    KERAS_BACKEND=torch python tools/_saving_worker.py load JOBS FOLDER

JOBS is a JSON file, a list of `[format, mechanism, variant]`. `save` writes
what the load phases of all backends read; what is checked in the process that
made it (a clone, an export) it checks. Each phase adds its cells, one by one,
to FOLDER/<phase>-<backend>.jsonl, as `[format, mechanism, variant, saved
under, loaded under, outcome]`.
"""

import functools
import gc
import itertools
import json
import pathlib
import sys
import warnings

import keras
import numpy as np
from _saving_formats import BACKENDS
from _saving_formats import EXPORTED
from _saving_formats import FORMATS
from _saving_formats import KEPT
from _saving_formats import is_refused
from _saving_formats import loaded_under
from _saving_formats import run_exported
from _saving_models import TOLERANCES
from _saving_models import difference
from _saving_models import model_with
from _saving_models import outputs
from _saving_reasons import BROKEN_OFF
from _saving_reasons import GREEN
from _saving_reasons import DifferentOutputs
from _saving_reasons import plain


def save(jobs, folder, begin):
    backend = keras.backend.backend()
    folder = folder / backend
    folder.mkdir(parents=True, exist_ok=True)
    for name, variant, forms in by_model(jobs):
        stem = folder / f"{name}-{variant}"
        model = functools.cache(functools.partial(made, name, variant))
        # An exporter may leave the model changed: FORMATS has them last.
        for form in (form for form in FORMATS if form in forms):
            loaded = loaded_under(form, backend)[0]
            if not begin(form, name, variant, backend, loaded):
                continue
            if is_refused(form, backend):
                outcome = refusal(form, folder / "refused")
            else:
                outcome = attempt(lambda: write(form, variant, model(), stem))
            if form in EXPORTED or outcome != GREEN:
                for loaded in loaded_under(form, backend):
                    yield form, name, variant, backend, loaded, outcome


@functools.cache
def refusal(form, stem):
    """The outcome of a format that this backend does not write."""
    layers = [
        keras.Input((None,), dtype="int32", name="tokens"),
        keras.layers.Embedding(50, 3),
    ]
    return attempt(lambda: run_exported(form, keras.Sequential(layers), stem))


def made(name, variant):
    model = model_with(name, variant)
    return model, outputs(model)


def write(form, variant, model, stem):
    model, expected = model
    if form in EXPORTED:
        check(run_exported(form, model, stem), expected, variant)
        return
    KEPT[form][0](model, stem)
    np.save(f"{stem}-{form}.npy", expected)  # from here on there is a file


def load(jobs, folder, begin):
    backend = keras.backend.backend()
    for name, variant, forms in by_model(jobs):
        for form, saved in itertools.product(forms, BACKENDS):
            stem = folder / saved / f"{name}-{variant}"
            expected = pathlib.Path(f"{stem}-{form}.npy")
            if not expected.exists():
                continue  # the save phase has said why

            def compare():
                model = KEPT[form][1](stem, name, variant)
                check(outputs(model), np.load(expected), variant)

            if begin(form, name, variant, saved, backend):
                yield form, name, variant, saved, backend, attempt(compare)


def by_model(jobs):
    """(mechanism, variant, formats) of the jobs, one for each model."""
    grouped = {}
    for form, name, variant in jobs:
        grouped.setdefault((name, variant), []).append(form)
    for (name, variant), forms in grouped.items():
        # Hundreds of models: their names and graphs would pile up.
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        yield name, variant, forms


def attempt(function):
    """`GREEN`, or the error that `function()` raised, in one line."""
    try:
        function()
    # Exporters raise anything: what they say is the cell's content.
    except Exception as error:
        return plain(error)
    return GREEN


def check(found, expected, variant):
    size = difference(found, expected)
    if size > TOLERANCES[variant]:
        raise DifferentOutputs(f"Outputs differ by {size:.1e}.")


def main():
    phase, jobs, folder = sys.argv[1:]
    warnings.simplefilter("ignore")  # of exporters; the outcome counts
    # `quantize` collects garbage for each kernel. Freezing exempts the objects
    # of imported modules, which are most of all objects.
    gc.freeze()
    jobs = json.loads(pathlib.Path(jobs).read_text())
    folder = pathlib.Path(folder)
    path = folder / f"{phase}-{keras.backend.backend()}.jsonl"
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        known = {tuple(json.loads(line)[:-1]) for line in file}

        def begin(*cell):
            """Notes what comes next; `False` if an earlier process had it."""
            now = json.dumps([*cell, BROKEN_OFF])
            path.with_suffix(".now").write_text(now, encoding="utf-8")
            return cell not in known

        for cell in {"save": save, "load": load}[phase](jobs, folder, begin):
            file.write(json.dumps(cell) + "\n")
            file.flush()  # an exporter may take the whole process with it


if __name__ == "__main__":
    main()
