"""Data modules of the experiments; every order of samples is fixed by a seed."""

from recipes.data.digits import Digits
from recipes.data.halfmoons import HalfMoons
from recipes.data.household import Household
from recipes.data.iris import Iris
from recipes.data.magic import Magic
from recipes.data.pneumonia import Pneumonia
from recipes.data.scans import Scans
from recipes.data.steering import Steering
from recipes.data.two_moons import TwoMoons

__all__ = ["Digits", "HalfMoons", "Household", "Iris", "Magic", "Pneumonia", "Scans", "Steering", "TwoMoons"]
