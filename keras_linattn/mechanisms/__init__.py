"""Published linear-attention mechanisms, one file each, and their registry."""

from keras_linattn.mechanisms._base import Mechanism as Mechanism
from keras_linattn.mechanisms._kernel import KernelMechanism as KernelMechanism
from keras_linattn.mechanisms._recurrent import (
    RecurrentMechanism as RecurrentMechanism,
)
from keras_linattn.mechanisms._registry import available as available
from keras_linattn.mechanisms._registry import get as get
from keras_linattn.mechanisms._registry import name_of as name_of
from keras_linattn.mechanisms._registry import register as register
from keras_linattn.mechanisms._registry import (
    with_input_sizes as with_input_sizes,
)
from keras_linattn.mechanisms._traits import Traits as Traits
from keras_linattn.mechanisms.agent import Agent as Agent
from keras_linattn.mechanisms.cosformer import CosFormer as CosFormer
from keras_linattn.mechanisms.delta_rule import DeltaRule as DeltaRule
from keras_linattn.mechanisms.focused import Focused as Focused
from keras_linattn.mechanisms.gated_delta import GatedDelta as GatedDelta
from keras_linattn.mechanisms.gated_linear import GatedLinear as GatedLinear
from keras_linattn.mechanisms.hedgehog import Hedgehog as Hedgehog
from keras_linattn.mechanisms.hybrid_window import HybridWindow as HybridWindow
from keras_linattn.mechanisms.imhsa import (
    InteractiveMultiHead as InteractiveMultiHead,
)
from keras_linattn.mechanisms.kda import KDA as KDA
from keras_linattn.mechanisms.lara import LinearRandomized as LinearRandomized
from keras_linattn.mechanisms.linear_transformer import (
    LinearTransformer as LinearTransformer,
)
from keras_linattn.mechanisms.linformer import Linformer as Linformer
from keras_linattn.mechanisms.local import Local as Local
from keras_linattn.mechanisms.mala import MagnitudeAware as MagnitudeAware
from keras_linattn.mechanisms.mamba2 import Mamba2 as Mamba2
from keras_linattn.mechanisms.modified_linformer import (
    ModifiedLinformer as ModifiedLinformer,
)
from keras_linattn.mechanisms.nystromformer import (
    Nystromformer as Nystromformer,
)
from keras_linattn.mechanisms.performer import Performer as Performer
from keras_linattn.mechanisms.polaformer import PolaFormer as PolaFormer
from keras_linattn.mechanisms.rala import RankAugmented as RankAugmented
from keras_linattn.mechanisms.retention import Retention as Retention
from keras_linattn.mechanisms.softmax import Softmax as Softmax
from keras_linattn.mechanisms.taylor import Taylor as Taylor
from keras_linattn.mechanisms.xca import XCA as XCA
