"""Makes what the page docs/browser.md runs on the reader's machine.

    python -m tools.site.browser out/quickstart/model.keras

writes docs/browser/model.onnx from the model that tools/quickstart.sh trains,
and prints its accuracy on the whole test texts. Needs the TensorFlow backend
and the extra `onnx`. The site brings ONNX Runtime Web along, which `npm pack`
fetches once into .data.
"""

import pathlib
import shutil
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).parents[2]
RUNTIME = "onnxruntime-web@1.30.0"
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs")
FILES += ("ort-wasm-simd-threaded.wasm",)


def fetch_runtime(folder):
    """Copies ONNX Runtime Web to `folder`; says whether it could be had."""
    cache = ROOT / ".data" / RUNTIME
    if not cache.is_dir():
        npm = shutil.which("npm")
        if npm is None:
            print("No npm: the page that runs a model is left empty.")
            return False
        part = cache.with_name(f"{RUNTIME}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        subprocess.run(
            [npm, "pack", "--silent", "--pack-destination", part, RUNTIME],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (archive,) = part.glob("*.tgz")
        with tarfile.open(archive) as packed:
            for name in FILES:
                member = packed.extractfile(f"package/dist/{name}")
                (part / name).write_bytes(member.read())
        archive.unlink()
        part.rename(cache)
    shutil.copytree(cache, folder, dirs_exist_ok=True)
    return True


def with_contributions(model):
    """Adds a second output: what each token adds to the logit of each class.

    The logits are a dense layer of the mean over the tokens, so they are a sum
    over the tokens. This costs no more than the logits themselves.
    """
    import keras

    tokens = model.get_layer("final_norm").output
    classes = model.get_layer("classes")
    shares = keras.layers.Dense(classes.units, use_bias=False, name="shares")
    outputs = {"contributions": shares(tokens), "probabilities": model.output}
    shares.kernel.assign(classes.kernel)
    return keras.Model(model.inputs, outputs)


def shrink(graph, smallest=10_000):
    """Stores large weights as float16; they are used as float32."""
    import numpy as np
    from onnx import TensorProto
    from onnx import helper
    from onnx import numpy_helper

    for weight in graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.dtype == np.float32 and array.size >= smallest:
            name, half = weight.name, f"{weight.name}/half"
            weight.CopyFrom(
                numpy_helper.from_array(array.astype("float16"), half)
            )
            graph.node.insert(
                0,
                helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT),
            )


def export(model, path):
    import onnx

    from keras_linattn.export import export_onnx

    export_onnx(with_contributions(model), path, overwrite=True)
    file = onnx.load(path)
    shrink(file.graph)
    onnx.checker.check_model(file)
    onnx.save(file, path)


def accuracy(path):
    """The part of the whole test texts that the file classifies right."""
    import numpy as np
    import onnxruntime

    sys.path.insert(0, str(ROOT / "examples"))
    import data

    _, (texts, labels), _ = data.load_texts("r8")
    session = onnxruntime.InferenceSession(path)
    right = 0
    for text, label in zip(texts, labels):
        tokens = np.frombuffer(text, "uint8").astype("int32")[None] + 1
        (answer,) = session.run(["probabilities"], {"tokens": tokens})
        right += answer.argmax() == label
    return right / len(texts)


def main(model):
    import keras

    import keras_linattn  # noqa: F401  (registers the layers)

    path = ROOT / "docs" / "browser" / "model.onnx"
    export(keras.saving.load_model(model), path)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    print(f"Accuracy on the test texts: {accuracy(path):.1%}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
