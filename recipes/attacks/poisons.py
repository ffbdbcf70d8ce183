"""Poisoned batches of the adversaries."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from agt_lightning import BoundedAdversary
from recipes.attacks.task import Batch, Parameters

_STEP = 0.5  # of the ascent, in units of the radius


@dataclass(frozen=True)
class Push:
    """Move the parameters along a direction as far as one step can (appendix E.1, with the samples chosen as well).

    Every sample is moved by projected ascent on ``−⟨direction, ∇ℓ⟩``, by signs, within the adversary's box; those n
    that gain most are poisoned.

    Args:
        adversary: its features and labels move in boxes: p and q infinite.
        losses: loss of each sample, from outputs and targets.
        direction: entries for some parameters.
        iterations: steps of the ascent.
    """

    adversary: BoundedAdversary
    losses: Callable[[Tensor, Tensor], Tensor]
    direction: Parameters
    iterations: int = 5

    def __post_init__(self) -> None:
        if not (math.isinf(self.adversary.p) and math.isinf(self.adversary.q)):
            raise ValueError(f"Expected an adversary with `p=inf` and `q=inf`, but got {self.adversary}.")

    def __call__(self, module: nn.Module, batch: Batch) -> Batch:
        """Return the poisoned batch."""
        clean = [values.clone() for values in batch]
        radii = (float(self.adversary.epsilon), self.adversary.nu)
        moves = [torch.zeros_like(values) for values in batch]
        for _ in range(self.iterations):
            leaves = [move.requires_grad_() for move in moves]
            gain = self._gain(module, [c + r * m for c, r, m in zip(clean, radii, leaves, strict=True)])
            slopes = torch.autograd.grad(gain.sum(), leaves)
            moves = [(m + _STEP * s.sign()).clamp(-1, 1).detach() for m, s in zip(leaves, slopes, strict=True)]
        moved = [c + r * m for c, r, m in zip(clean, radii, moves, strict=True)]
        with torch.no_grad():
            gained = self._gain(module, moved) - self._gain(module, clean)
        chosen = gained.topk(min(self.adversary.n, len(gained))).indices
        for values, poisoned in zip(clean, moved, strict=True):
            values[chosen] = poisoned[chosen]
        return clean[0], clean[1]

    def _gain(self, module: nn.Module, batch: list[Tensor]) -> Tensor:
        """Return ``−⟨direction, ∇ℓ_i⟩`` of each sample, by one derivative along the direction."""
        values = {name: parameter.detach() for name, parameter in module.named_parameters()}
        tangent = {name: self.direction.get(name, torch.zeros_like(value)) for name, value in values.items()}

        def losses(parameters: dict[str, Tensor]) -> Tensor:
            return self.losses(functional_call(module, parameters, (batch[0],)), batch[1])

        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", ".*torch.jit.script", FutureWarning
            )  # torch warns of its own forward mode
            slope: Tensor = jvp(losses, (values,), (tangent,))[1]
        return -slope


@dataclass(frozen=True)
class Collision:
    """Replace n random samples of each batch by one target point with labels of the adversary's (appendix E.2).

    Args:
        n: number of samples.
        x: features of the target point, ``(features,)``.
        label: draws labels ``(n,)``.
        generator: of the choice of samples.
    """

    n: int
    x: Tensor
    label: Callable[[int], Tensor]
    generator: torch.Generator

    def __call__(self, module: nn.Module, batch: Batch) -> Batch:
        """Return the poisoned batch."""
        x, y = (values.clone() for values in batch)
        chosen = torch.randperm(len(x), generator=self.generator)[: self.n]
        x[chosen], y[chosen] = self.x, self.label(len(chosen))
        return x, y


@dataclass(frozen=True)
class RandomFlips:
    """Flip the labels of n random samples, the same at every step (appendix E.3).

    Args:
        n: number of samples.
        seed: of the choice.
        source: only labels of this class are flipped; None for both.
    """

    n: int
    seed: int
    source: int | None = None

    def __call__(self, module: nn.Module, batch: Batch) -> Batch:
        """Return the poisoned batch; labels are 0 or 1."""
        x, y = batch
        flippable = torch.arange(len(y)) if self.source is None else (y.flatten() == self.source).nonzero().flatten()
        order = torch.randperm(len(flippable), generator=torch.Generator().manual_seed(self.seed))
        flipped = y.clone()
        chosen = flippable[order[: self.n]]
        flipped[chosen] = 1 - flipped[chosen]
        return x, flipped
