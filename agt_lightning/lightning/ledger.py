"""What a certified training notes about itself, step by step, for its certificate; checkpoints keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from agt_lightning.certificates.acceptance import Acceptance, dated
from agt_lightning.engine import AbstractGradientEngine

_BATCHES, _ACCEPTANCE = "batches", "acceptance"

_EMPTY = sha256(b"agt_lightning training batches").hexdigest()
"""Before the first step."""


@dataclass(frozen=True)
class TrainedBatches:
    """Content and order of the training batches, as one chain of digests.

    After each step the chain is the SHA-256 of itself and the digests of the step's micro-batches in their order, those
    of several processes one after the other.

    Args:
        chain: after the last step.
        first: number of the first step that is in it, from 1 on.
        steps: number of steps that are in it.
        samples: smallest and largest number of samples of a step; None before the first step.
    """

    chain: str = _EMPTY
    first: int = 1
    steps: int = 0
    samples: tuple[int, int] | None = None

    def after(self, digests: Sequence[str], samples: int) -> TrainedBatches:
        """Return the chain after one more step.

        Args:
            digests: from `content_digest`, one of each micro-batch, and one of its sources if n counts these.
            samples: of the step.

        Example:
            >>> TrainedBatches().after(["00"], 4).after(["01"], 2).samples
            (2, 4)
        """
        chain = sha256(bytes.fromhex(self.chain) + b"".join(map(bytes.fromhex, digests))).hexdigest()
        least, most = self.samples or (samples, samples)
        return TrainedBatches(chain, self.first, self.steps + 1, (min(least, samples), max(most, samples)))

    @classmethod
    def of(cls, engine: AbstractGradientEngine) -> TrainedBatches:
        """Return what an engine has noted; of steps that an earlier version made, there is nothing."""
        noted = engine.noted.get(_BATCHES)
        if noted is None:
            return cls(first=engine.steps + 1)
        return cls(**{**noted, "samples": None if noted["samples"] is None else tuple(noted["samples"])})

    def note(self, engine: AbstractGradientEngine) -> None:
        """Let an engine keep this, in its checkpoints too."""
        engine.noted[_BATCHES] = asdict(self)

    def plain(self) -> dict[str, Any]:
        """Return what a certificate states."""
        return {"sha256_chain": self.chain, "first_step": self.first, "steps": self.steps}


def open_ledger(engine: AbstractGradientEngine, chosen: Sequence[Acceptance]) -> None:
    """Note what a training starts or goes on with.

    Args:
        engine: with the bounds that the training goes on from.
        chosen: criteria for its results; those that were there before keep their date.
    """
    TrainedBatches.of(engine).note(engine)
    engine.noted[_ACCEPTANCE] = dated(chosen, acceptance_of(engine), engine.steps)


def acceptance_of(engine: AbstractGradientEngine) -> Sequence[Mapping[str, Any]]:
    """Return the criteria of a training, with the number of steps after which each was set."""
    noted: Sequence[Mapping[str, Any]] = engine.noted.get(_ACCEPTANCE, [])
    return noted
