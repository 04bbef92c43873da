"""Published linear-attention mechanisms, one file each, and their registry."""

from keras_linattn.mechanisms._base import Mechanism as Mechanism
from keras_linattn.mechanisms._base import Traits as Traits
from keras_linattn.mechanisms._registry import available as available
from keras_linattn.mechanisms._registry import get as get
from keras_linattn.mechanisms._registry import name_of as name_of
from keras_linattn.mechanisms._registry import register as register
from keras_linattn.mechanisms.linear_transformer import (
    LinearTransformer as LinearTransformer,
)
from keras_linattn.mechanisms.linformer import Linformer as Linformer
from keras_linattn.mechanisms.modified_linformer import (
    ModifiedLinformer as ModifiedLinformer,
)
from keras_linattn.mechanisms.softmax import Softmax as Softmax
