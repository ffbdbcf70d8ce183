"""The mixin that gives a LightningModule methods for its own bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakSet

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from agt_lightning.bounds import ParameterBounds
from agt_lightning.certificates import Certification, CertifiedModel
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.lightning.callback import CertifiedTraining

if TYPE_CHECKING:
    _Base = L.LightningModule
else:
    _Base = object


_OWN: WeakSet[CertifiedTraining] = WeakSet()
"""Callbacks that came from `configure_certification`; a later `fit` replaces them by new ones."""


class CertifiedModule(_Base):
    """A mixin for a LightningModule, listed before it among the bases, that adds methods for its bounds.

    A `CertifiedTraining` callback keeps the bounds: pass one to the Trainer, or return one from
    `configure_certification` and pass none.

    Example:
        >>> class Classifier(CertifiedModule, L.LightningModule):
        ...     def configure_certification(self):
        ...         return CertifiedTraining(BoundedAdversary(n=5, epsilon=0.1))
        >>> from agt_lightning import BoundedAdversary
        >>> len(Classifier().configure_callbacks())
        1
    """

    def configure_certification(self) -> CertifiedTraining | None:
        """Return the callback that certifies this module; None, unless overridden, if the Trainer has one."""
        return None

    def certified_objective(self, batch: object) -> Tensor | None:
        """Return the scalar loss to certify, on a batch as `training_step` gets it; None means `training_step` itself.

        Override it if `training_step` cannot be recorded. It must have the same gradient as the loss that
        `training_step` returns; every step checks that.
        """
        return None

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Return the module's own callbacks and the certifying one.

        Raises:
            UncertifiableError: if the Trainer has another `CertifiedTraining`, which Lightning would drop.
        """
        inherited = super().configure_callbacks()
        callbacks = list(inherited) if isinstance(inherited, Sequence) else [inherited]
        certified = self.configure_certification()
        if certified is None:
            return callbacks
        _require_alone(certified, self)
        _OWN.add(certified)
        return [*callbacks, certified]

    @property
    def certified_training(self) -> CertifiedTraining:
        """The callback of this module's Trainer that keeps its bounds.

        Raises:
            RuntimeError: if the module has no Trainer, or its Trainer no such callback.
        """
        trainer = getattr(self, "_trainer", None)
        callbacks = [] if trainer is None else trainer.callbacks
        certified = next((callback for callback in callbacks if isinstance(callback, CertifiedTraining)), None)
        if certified is None:
            raise RuntimeError(
                "Expected a certified training, but there was none. Pass `CertifiedTraining(adversary)` to the "
                "Trainer, or return it from `configure_certification`."
            )
        return certified

    @property
    def parameter_bounds(self) -> ParameterBounds:
        """Bounds on all parameters after the last step."""
        return self.certified_training.bounds

    def bound_forward(
        self, x: Tensor, epsilon: float = 0.0, p: float = math.inf, *, output: str | int | None = None
    ) -> Interval:
        """Return bounds on the outputs; see `CertifiedModel.bound_forward`.

        Args:
            x: inputs, (batch, ...).
            epsilon: radius of the ball around each input, in the inputs' units.
            p: norm of the ball, 1, 2 or infinity.
            output: key, attribute or position of the outputs if `forward` returns several tensors.
        """
        return self._certified_model(output).bound_forward(x, epsilon, p)

    def margins(
        self,
        x: Tensor,
        target: Tensor,
        epsilon: float = 0.0,
        *,
        threshold: float | None = None,
        output: str | int | None = None,
    ) -> Interval:
        """Return bounds on differences of outputs; see `CertifiedModel.margins`.

        Args:
            x: inputs, (batch, ...).
            target: class of each sample, integers of shape (batch,).
            epsilon: radius of the ℓ∞ ball around each input.
            threshold: between the two classes of one output that is no logit.
            output: key, attribute or position of the outputs if `forward` returns several tensors.
        """
        return self._certified_model(output).margins(x, target, epsilon, threshold=threshold)

    def certify(
        self,
        x: Tensor,
        epsilon: float = 0.0,
        *,
        threshold: float | None = None,
        output: str | int | None = None,
    ) -> Certification:
        """Return predictions and whether they can change; see `CertifiedModel.certify`.

        Args:
            x: inputs, (batch, ...).
            epsilon: radius of the ℓ∞ ball around each input.
            threshold: between the two classes of outputs that are no logits.
            output: key, attribute or position of the outputs if `forward` returns several tensors.
        """
        return self._certified_model(output).certify(x, epsilon, threshold=threshold)

    def _certified_model(self, output: str | int | None) -> CertifiedModel:
        return self.certified_training.certified_model(self, output=output)


def _require_alone(certified: CertifiedTraining, module: L.LightningModule) -> None:
    trainer = getattr(module, "_trainer", None)
    callbacks = [] if trainer is None else trainer.callbacks
    others = [other for other in callbacks if isinstance(other, CertifiedTraining) and other not in _OWN]
    if any(other is not certified for other in others):
        raise UncertifiableError(
            [
                "The Trainer has a `CertifiedTraining`, and `configure_certification` returns another, by which "
                "Lightning replaces it. Use one of the two."
            ]
        )
