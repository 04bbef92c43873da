"""Makes what the page docs/browser.md runs on the reader's machine.

    python -m tools.site.browser out/text_classification/model.keras

writes docs/browser/model.onnx from the model that the example trains. Needs the
TensorFlow backend and `pip install onnx tf2onnx`. The site brings ONNX Runtime
Web along, which `npm pack` fetches once into .data.
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
    whole = keras.Model(model.inputs, outputs)
    whole(keras.ops.ones((1, 8), "int32"))  # Keras exports what was called
    return whole


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


def replace_erfc(graph):
    """Writes erfc(x), of TensorFlow's gelu, as 1 - erf(x): ONNX has no erfc."""
    import numpy as np
    from onnx import helper
    from onnx import numpy_helper

    one = numpy_helper.from_array(np.ones((), "float32"), "erfc/one")
    graph.initializer.append(one)
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type == "Erfc":
            (source,), (target,) = node.input, node.output
            erf = f"{target}/erf"
            node.CopyFrom(helper.make_node("Erf", [source], [erf]))
            difference = helper.make_node("Sub", [one.name, erf], [target])
            graph.node.insert(index + 1, difference)


def export(model, path):
    import onnx
    from tf2onnx import optimizer

    # tf2onnx 1.17 merges two reshapes and reads the shape of the wrong one.
    optimizer._optimizers.pop("remove_back_to_back", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with_contributions(model).export(str(path), format="onnx", verbose=False)
    file = onnx.load(path)
    replace_erfc(file.graph)
    shrink(file.graph)
    onnx.checker.check_model(file)
    onnx.save(file, path)


def main(model):
    import keras

    import keras_linattn  # noqa: F401  (registers the layers)

    path = ROOT / "docs" / "browser" / "model.onnx"
    export(keras.saving.load_model(model), path)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
