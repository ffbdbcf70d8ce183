"""The packages that are Lightning: `lightning`, and `pytorch_lightning`, a copy of it whose classes are other ones.

Both are accepted. A check by class that named those of one package alone would let the other's pass, so every such
check in this package goes through `of_both`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import lightning as L
from lightning.pytorch.callbacks import Callback

T = TypeVar("T")

_OLDEST = (2, 6)
"""The oldest version of the copy whose training loop is known here."""

_COPIES = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}


def _copy() -> ModuleType | None:
    """Return the package `pytorch_lightning`; None if it is not installed, is too old, or cannot be imported."""
    try:
        package = importlib.import_module("pytorch_lightning")
        major, minor, *_ = str(package.__version__).split(".")
        return package if (int(major), int(minor)) >= _OLDEST else None
    except Exception:  # whatever a broken installation raises; nobody can use it then
        return None


COPY = _copy()
"""The package `pytorch_lightning`; None if it cannot be used."""


def of_both(kind: type[T]) -> tuple[type[T], ...]:
    """Return a class of `lightning` and the class of the same name in the copy, if there is one.

    Args:
        kind: a class that `lightning` defines.

    Example:
        >>> from lightning.pytorch.callbacks import EarlyStopping
        >>> of_both(EarlyStopping)[0] is EarlyStopping
        True
    """
    original = next(name for name in _COPIES if kind.__module__.startswith(f"{name}."))
    if COPY is None:
        return (kind,)
    try:
        file = importlib.import_module(kind.__module__.replace(original, _COPIES[original], 1))
    except ImportError:  # of another version
        return (kind,)
    copied = getattr(file, kind.__name__, None)
    return (kind,) if copied is None else (kind, copied)


LIGHTNING_MODULES = of_both(L.LightningModule)
"""The classes `LightningModule` of both packages."""

TRAINERS = of_both(L.Trainer)
"""The classes `Trainer` of both packages."""

DATA_MODULES = of_both(L.LightningDataModule)
"""The classes `LightningDataModule` of both packages."""

if TYPE_CHECKING:
    CallbackOfBoth = Callback
else:
    CallbackOfBoth = type("CallbackOfBoth", of_both(Callback), {"__doc__": "A callback of both packages."})


def base_of(module: L.LightningModule) -> type[L.LightningModule]:
    """Return the class `LightningModule` that a module is made of."""
    return next(base for base in LIGHTNING_MODULES if isinstance(module, base))


def trainer_of(module: L.LightningModule) -> type[L.Trainer]:
    """Return the class `Trainer` of the package whose `LightningModule` a module is."""
    return TRAINERS[LIGHTNING_MODULES.index(base_of(module))]


def package_problems(trainer: object, module: object) -> list[str]:
    """Return why a Trainer or module of a version of Lightning that is not known here cannot be certified.

    Args:
        trainer: that calls the hooks of a callback.
        module: that it trains.
    """
    if isinstance(trainer, TRAINERS) and isinstance(module, LIGHTNING_MODULES):
        return []
    kind = type(module) if isinstance(trainer, TRAINERS) else type(trainer)
    return [
        f"Expected a Trainer and a module of `lightning` or of `pytorch_lightning` {_OLDEST[0]}.{_OLDEST[1]} or later, "
        f"but got `{kind.__module__}.{kind.__qualname__}`, whose training loop is not known. Update that package, or "
        "import `lightning.pytorch` in its place."
    ]
