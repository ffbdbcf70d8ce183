"""Certified robustness to data poisoning for PyTorch Lightning.

While a model trains, each parameter has an interval that contains its value in every run an adversary could have caused
(Abstract Gradient Training). Certified predictions, accuracy and loss follow from these intervals.
"""

from agt_lightning.adversaries import BoundedAdversary, UnboundedAdversary
from agt_lightning.bounds import ParameterBounds
from agt_lightning.certificates import Certification, CertifiedModel
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.errors import BoundsMismatchError, CaptureError, UncertifiableError, UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.lightning import AbstractGradientStrategy, CertifiedModule, CertifiedTraining
from agt_lightning.rules import register_rule

__all__ = [
    "AbstractGradientEngine",
    "AbstractGradientStrategy",
    "BoundedAdversary",
    "BoundsMismatchError",
    "CaptureError",
    "Certification",
    "CertifiedModel",
    "CertifiedModule",
    "CertifiedTraining",
    "Interval",
    "ParameterBounds",
    "UnboundedAdversary",
    "UncertifiableError",
    "UnsoundBoundError",
    "register_rule",
]
__version__ = "0.2.0.dev0"
