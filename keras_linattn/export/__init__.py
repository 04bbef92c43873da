"""Export for serving."""

from keras_linattn.export.saved_model import (
    export_saved_model as export_saved_model,
)
from keras_linattn.export.serving import serving_directory as serving_directory
