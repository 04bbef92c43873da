"""Export for serving."""

from keras_linattn.export.saved_model import (
    export_saved_model as export_saved_model,
)
