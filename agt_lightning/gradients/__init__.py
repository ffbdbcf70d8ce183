"""Per-sample gradient bounds in factored form: never a tensor of size batch x parameters.

Axis letters: ``b`` samples, ``t`` positions (tokens, pixels) at which one weight is used, ``o`` outputs, ``k`` inputs.
"""

from agt_lightning.gradients.base import FactoredGradient, Factors, Piece
from agt_lightning.gradients.composite import Stacked, Summed, stack
from agt_lightning.gradients.convolution import PatchProduct
from agt_lightning.gradients.deferred import Deferred
from agt_lightning.gradients.differences import Differences, Tile
from agt_lightning.gradients.division import divisible_axis, slice_of
from agt_lightning.gradients.elementwise import Elementwise
from agt_lightning.gradients.gathered import gathered
from agt_lightning.gradients.outer_differences import OuterDifferences
from agt_lightning.gradients.outer_product import OuterProduct
from agt_lightning.gradients.shares import divided
from agt_lightning.gradients.subtraction import differences_between

__all__ = [
    "Deferred",
    "Differences",
    "Elementwise",
    "FactoredGradient",
    "Factors",
    "OuterDifferences",
    "OuterProduct",
    "PatchProduct",
    "Piece",
    "Stacked",
    "Summed",
    "Tile",
    "differences_between",
    "divided",
    "divisible_axis",
    "gathered",
    "slice_of",
    "stack",
]
