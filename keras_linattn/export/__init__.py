"""Export for serving, and to ONNX."""

from keras_linattn.export._onnx import export_onnx as export_onnx
from keras_linattn.export.saved_model import (
    export_saved_model as export_saved_model,
)
from keras_linattn.export.serving import serving_directory as serving_directory
