"""Certified robustness to data poisoning for PyTorch Lightning.

While a model trains, each parameter has an interval that contains its value in every run an adversary could have caused
(Abstract Gradient Training). Certified predictions, accuracy and loss follow from these intervals.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agt_lightning.adversaries import BoundedAdversary, UnboundedAdversary
    from agt_lightning.bounds import ParameterBounds
    from agt_lightning.certificates import Acceptance, Budget, Certification, CertifiedModel, budget
    from agt_lightning.engine import AbstractGradientEngine
    from agt_lightning.errors import BoundsMismatchError, CaptureError, UncertifiableError, UnsoundBoundError
    from agt_lightning.interval import Interval
    from agt_lightning.lightning import AbstractGradientStrategy, CertifiedModule, CertifiedTraining
    from agt_lightning.rules import register_rule

__all__ = [
    "AbstractGradientEngine",
    "AbstractGradientStrategy",
    "Acceptance",
    "BoundedAdversary",
    "BoundsMismatchError",
    "Budget",
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
    "budget",
    "register_rule",
]
__version__ = "0.2.0.dev0"

_HOMES = (
    "agt_lightning.lightning",  # first, since it registers strategies with Lightning
    "agt_lightning.adversaries",
    "agt_lightning.bounds",
    "agt_lightning.certificates",
    "agt_lightning.engine",
    "agt_lightning.errors",
    "agt_lightning.interval",
    "agt_lightning.rules",
)
"""Where the public names are."""


def __getattr__(name: str) -> object:
    """Import everything public when the first name is asked for: ``agt --help`` needs neither torch nor Lightning."""
    if not name.startswith("_"):
        for home in _HOMES:
            found = import_module(home)
            globals().update({public: getattr(found, public) for public in __all__ if hasattr(found, public)})
    if name in globals():
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return all names, those that are not imported yet among them."""
    return sorted({*globals(), *__all__})
