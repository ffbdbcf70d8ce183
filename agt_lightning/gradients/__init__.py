"""Per-sample gradient bounds in factored form: never a tensor of size batch x parameters.

Axis letters: ``b`` samples, ``t`` positions (tokens, pixels) at which one weight is used, ``o`` outputs, ``k`` inputs.
"""

from agt_lightning.gradients.all_gather import all_gathered
from agt_lightning.gradients.base import FactoredGradient, Factors, Leaf, common_value, samples_last
from agt_lightning.gradients.buffers import Buffers
from agt_lightning.gradients.collected import CollectedGradients
from agt_lightning.gradients.composite import Stacked, Summed, merged, stack
from agt_lightning.gradients.convolution import PatchProduct
from agt_lightning.gradients.deferred import Deferred
from agt_lightning.gradients.elementwise import Elementwise
from agt_lightning.gradients.outer_product import OuterProduct
from agt_lightning.gradients.partition import divisible_axis, partitioned, slice_of
from agt_lightning.gradients.pulled_back import PulledBack
from agt_lightning.gradients.rows import RowGradient

__all__ = [
    "Buffers",
    "CollectedGradients",
    "Deferred",
    "Elementwise",
    "FactoredGradient",
    "Factors",
    "Leaf",
    "OuterProduct",
    "PatchProduct",
    "PulledBack",
    "RowGradient",
    "Stacked",
    "Summed",
    "all_gathered",
    "common_value",
    "divisible_axis",
    "merged",
    "partitioned",
    "samples_last",
    "slice_of",
    "stack",
]
