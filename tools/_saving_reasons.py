"""Why a cell of the saving matrix is refused: the reasons that are known."""

import dataclasses
import re

GREEN = "green"
UNEXPLAINED = "unexplained: "
BROKEN_OFF = "The whole process was broken off."


class DifferentOutputs(Exception):
    """The model came back, and computes something else."""


@dataclasses.dataclass(frozen=True)
class Reason:
    """One reason.

    Args:
        key: str, what the table calls it.
        forms: tuple of str, the formats.
        backends: tuple of str, saved under.
        error: str, a regular expression that the error must match.
        why: str, for the reader.
        way_out: str, for the reader.
    """

    key: str
    forms: tuple
    backends: tuple
    error: str
    why: str
    way_out: str


OTHER_BACKEND = (
    "Save `.keras`, load it with `KERAS_BACKEND=tensorflow`, export there."
)
REASONS = (
    Reason(
        "adapters",
        ("config", "clone"),
        ("tensorflow", "jax", "torch"),
        r"`set_weights\(weights\)`.*weight list of length",
        "A config says nothing of LoRA adapters: the copy has fewer weights.",
        "Call `enable_lora` on the copy's layers before `set_weights`; or save "
        "`.keras`, which stores the sum of kernel and adapters.",
    ),
    Reason(
        "under TensorFlow",
        ("onnx",),
        ("jax", "torch"),
        r"written under the TensorFlow backend",
        "`export_onnx` converts TensorFlow's graph, where sizes stay free.",
        OTHER_BACKEND,
    ),
    Reason(
        "bfloat16 (ONNX Runtime)",
        ("onnx",),
        ("tensorflow",),
        r"tensor\(bfloat16\)|bound to different types",
        "ONNX Runtime lacks operations in bfloat16, such as `Where`.",
        "Export a float32 or mixed_float16 model.",
    ),
    Reason(
        "ravel (torch)",
        ("openvino",),
        ("torch",),
        r"aten::ravel",
        "The converter does not know `ravel`, which Keras calls here.",
        OTHER_BACKEND,
    ),
    Reason(
        "adapters (torch)",
        ("openvino",),
        ("torch",),
        r"requires grad as a constant",
        "torch's tracer refuses the sum of kernel and LoRA adapters.",
        "Save `.keras`, which stores that sum as the kernel, load, export.",
    ),
    Reason(
        "XlaCallModule",
        ("openvino",),
        ("jax",),
        r"operations: XlaCallModule",
        "OpenVINO cannot read what JAX exports, a call of XLA.",
        OTHER_BACKEND,
    ),
    Reason(
        "no such operation",
        ("openvino",),
        ("tensorflow",),
        r"No conversion rule found for operations",
        "OpenVINO has no form of an operation of TensorFlow's: `TensorList` of "
        "the loop over chunks, `MatrixDiagV3`.",
        "Export to ONNX, which ONNX Runtime runs.",
    ),
    Reason(
        "rank (OpenVINO)",
        ("openvino",),
        ("tensorflow",),
        r"is_axis_valid",
        "OpenVINO loses the rank of a tensor in Keras' int8 layers.",
        "Export a float32 model, and quantize it with OpenVINO's tools.",
    ),
    Reason(
        "wrong numbers",
        ("openvino",),
        ("tensorflow", "torch"),
        r"DifferentOutputs",
        "OpenVINO runs the model, and gives other outputs (bfloat16 from "
        "torch, int8 from TensorFlow).",
        "Export a float32 model, and let OpenVINO choose its precision.",
    ),
    Reason(
        "bfloat16 (OpenVINO)",
        ("openvino",),
        ("tensorflow",),
        r"Element not suppo",
        "OpenVINO has no broadcast in bfloat16.",
        "Export a float32 model, and let OpenVINO choose its precision.",
    ),
    Reason(
        "traced length",
        ("openvino",),
        ("torch",),
        r"\[CPU\] (MatMul|Add) node",
        "torch's trace has the length of its sample for a fixed number: the "
        "file loads, and fails at another length.",
        "Save `.keras`, load it under TensorFlow, export to ONNX.",
    ),
    Reason(
        "trace differs",
        ("openvino",),
        ("torch",),
        r"TracingCheckError",
        "torch traces a quantized model in two ways, and refuses it.",
        "Export a float32 model, and quantize it with OpenVINO's tools.",
    ),
    Reason(
        "not from JAX",
        ("litert",),
        ("jax",),
        r"LiteRT export requires TensorFlow or PyTorch",
        "Keras exports LiteRT under TensorFlow and torch alone.",
        OTHER_BACKEND,
    ),
    Reason(
        "litert-torch",
        ("litert",),
        ("torch",),
        r"`litert-torch`",
        "It needs the package litert-torch, not installed here: pip would "
        "replace the CPU build of torch by one with CUDA.",
        OTHER_BACKEND,
    ),
    Reason(
        "Flex",
        ("litert",),
        ("tensorflow",),
        r"Flex delegate",
        "Operations that LiteRT has not built in: the loop over chunks, half "
        "precision.",
        "Run it in an interpreter with the Flex delegate (Select TF ops).",
    ),
    Reason(
        "squeeze (LiteRT)",
        ("litert",),
        ("tensorflow",),
        r"squeeze_dims",
        "LiteRT's converter refuses a `squeeze` of Keras' int8 `EinsumDense`.",
        "Export a float32 model, and quantize it with LiteRT's tools.",
    ),
    Reason(
        "crash",
        ("litert", "openvino"),
        ("tensorflow", "torch"),
        re.escape(BROKEN_OFF),
        "The runtime ends the whole process while it loads or runs the file.",
        "Export a SavedModel, or to ONNX, which ONNX Runtime runs.",
    ),
)


def key_of(form, backend, outcome):
    """`GREEN`, or the key of the reason that explains an error.

    Args:
        form: str, the format.
        backend: str, saved under.
        outcome: str, what the worker noted.

    Returns:
        str, which starts with `UNEXPLAINED` if no reason fits.
    """
    if outcome == GREEN:
        return GREEN
    for reason in REASONS:
        if form in reason.forms and backend in reason.backends:
            if re.search(reason.error, outcome):
                return reason.key
    return UNEXPLAINED + outcome


def plain(error):
    """The error in one line, without colours and without its middle."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", f"{type(error).__name__}: {error}")
    text = " ".join(text.split())
    return text if len(text) <= 2000 else f"{text[:1000]} ... {text[-1000:]}"
