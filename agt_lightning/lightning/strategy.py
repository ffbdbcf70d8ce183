"""The strategy that certifies a training, by name or with an adversary of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.several import Adversaries
from agt_lightning.bounds import ParameterBounds
from agt_lightning.certificates import CertifiedModel
from agt_lightning.lightning.callback import CertifiedTraining
from agt_lightning.lightning.packages import COPY, of_both

if TYPE_CHECKING:
    _Base = DDPStrategy
else:
    _Base = object


class _CertifyingStrategy(_Base):
    """A mixin for the DDP strategy of a package, which adds a `CertifiedTraining` callback to its Trainer."""

    def __init__(
        self, adversary: Adversaries | None = None, *, certification: dict[str, Any] | None = None, **ddp: Any
    ) -> None:
        super().__init__(**ddp)
        self.certified = None if adversary is None else CertifiedTraining(adversary, **(certification or {}))

    @override
    def connect(self, model: L.LightningModule) -> None:
        """Add the callback to the Trainer, at the first call that gives the strategy access to it."""
        super().connect(model)
        callbacks = model.trainer.callbacks  # type: ignore[attr-defined]
        if self.certified is not None and self.certified not in callbacks:
            callbacks.insert(0, self.certified)

    @override
    def setup(self, trainer: L.Trainer) -> None:
        """Raise before a fit that nothing certifies.

        Raises:
            RuntimeError: if neither strategy nor Trainer nor module has a `CertifiedTraining`.
        """
        fits = trainer.state.fn == TrainerFn.FITTING
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if fits and not any(isinstance(callback, CertifiedTraining) for callback in callbacks):
            raise RuntimeError(
                "Expected an `adversary`, but neither strategy nor Trainer nor module has one. Use "
                "`AbstractGradientStrategy(adversary)`, or pass `CertifiedTraining(adversary)` to the Trainer."
            )
        super().setup(trainer)

    @property
    def bounds(self) -> ParameterBounds:
        """Bounds on all parameters after the last step."""
        return self._certified().bounds

    def certified_model(
        self,
        module: torch.nn.Module | None = None,
        *,
        output: str | int | None = None,
        adversary: Adversary | None = None,
    ) -> CertifiedModel:
        """Return the trained network with its bounds; see `CertifiedTraining.certified_model`."""
        return self._certified().certified_model(module, output=output, adversary=adversary)

    def _certified(self) -> CertifiedTraining:
        if self.certified is None:
            raise RuntimeError("Expected an `adversary`, but the strategy has none. Ask the callback for the bounds.")
        return self.certified


class AbstractGradientStrategy(_CertifyingStrategy, DDPStrategy):
    """A DDP strategy that adds a `CertifiedTraining` callback to its Trainer.

    By name it is ``"agt"`` or ``"agt_ddp"``; Trainer or module must then have the callback. A Trainer of
    `pytorch_lightning` knows these names too; to give it an adversary, use the callback.

    Args:
        adversary: the threat model, or several of one training. None if the Trainer or the module has a
            `CertifiedTraining`.
        certification: arguments of `CertifiedTraining`.
        **ddp: arguments of `lightning.pytorch.strategies.DDPStrategy`.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> strategy = AbstractGradientStrategy(BoundedAdversary(n=10, epsilon=0.01))
        >>> trainer = L.Trainer(strategy=strategy, accelerator="cpu", devices=1, logger=False)
    """

    strategy_name = "agt"


def _register(registry: Any, kind: type[DDPStrategy]) -> None:
    for name in ("agt", "agt_ddp"):
        if name not in registry:
            registry.register(name, kind, description="Certified training; see `agt_lightning.CertifiedTraining`.")


_register(StrategyRegistry, AbstractGradientStrategy)

if COPY is not None:
    StrategyOfCopy = type(
        "StrategyOfCopy",
        (_CertifyingStrategy, *of_both(DDPStrategy)[1:]),
        {"__module__": __name__, "__doc__": "The same for a Trainer of `pytorch_lightning`.", "strategy_name": "agt"},
    )
    _register(COPY.strategies.StrategyRegistry, StrategyOfCopy)
