"""The runs of a training that one of its adversaries could have caused, bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from agt_lightning.adversaries import Adversary
from agt_lightning.distributed import ProcessGroup
from agt_lightning.domains import DomainFamily, ParameterSet
from agt_lightning.domains.head import HeadBounds
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.objective import BoundedObjective

WITH = "With the adversary"
"""Beginning of a sentence that is about some adversaries of a training, before their names."""


class BoundedRuns:
    """All runs that one adversary could have caused in a training; the training's engine moves their bounds.

    Args:
        module: at its initial parameters.
        adversary: the threat model.
        name: of the adversary among those of the training; empty if it is the only one.
        config: how bounds are computed.
        processes: the group that trains together.

    Attributes:
        domains: the domains in use; each keeps a set of parameters that contains those of all these runs.
        earlier_phases: settings of the steps that the training went on from, for certificates and checkpoints.
    """

    def __init__(
        self, module: nn.Module, adversary: Adversary, name: str, config: CertificationConfig, processes: ProcessGroup
    ) -> None:
        self.module = module
        self.adversary = adversary
        self.name = name
        self.config = config
        self.domains = DomainFamily(module, adversary, config, processes)
        self.earlier_phases: tuple[Mapping[str, Any], ...] = ()

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Say in errors of the body which adversary they are about, if the training has several."""
        try:
            yield
        except UncertifiableError as error:
            raise UncertifiableError([self._named(problem) for problem in error.problems]) from error
        except UnsoundBoundError as error:
            raise UnsoundBoundError(self._named(str(error))) from error

    def _named(self, text: str) -> str:
        return f"{WITH} `{self.name}`: {text}" if self.name else text

    @property
    def box(self) -> dict[str, Interval]:
        """The tightest bounds of all domains on the parameters, by name, in the type of the computation.

        If no domain in use keeps a box at every step, they can take a replay of the whole training.
        """
        return self.domains.box()

    @property
    def running_statistics(self) -> dict[str, Interval]:
        """Bounds on running statistics of batch normalization that training has moved, by name of the buffer."""
        return self.domains.running_statistics()

    @property
    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Sets of parameters that certificates can use beside the box, by name of their domain."""
        return self.domains.parameter_sets()

    @property
    def cheap_sets(self) -> dict[str, ParameterSet]:
        """The same without costly ones, unless such a domain alone is in use: for bounds while training goes on."""
        alone = len(self.domains.in_use) == 1
        return {name: each for name, each in self.parameter_sets.items() if alone or not each.costly}

    def head_bounds(self, bounded: BoundedObjective, sets: Mapping[str, ParameterSet]) -> dict[str, HeadBounds]:
        """Return bounds on the trained layers of a captured loss, by name of the domain.

        Args:
            bounded: the captured loss.
            sets: `parameter_sets`, or some of them.
        """
        dtype = self.config.dtype
        bounds = {
            name: parameters.head_bounds(bounded.program.graph, bounded.parameters, self.module, dtype)
            for name, parameters in sets.items()
        }
        return {name: head for name, head in bounds.items() if head is not None}


def by_adversary(
    runs: Sequence[BoundedRuns], sentences: Callable[[BoundedRuns], Sequence[str]], begin: str = WITH
) -> list[str]:
    """Return sentences about the runs of each adversary, once; those that are not about all say about which.

    Args:
        runs: those of each adversary of a training.
        sentences: about the runs of one.
        begin: what stands before the names of the adversaries.
    """
    about: dict[str, list[str]] = {}
    for each in runs:
        for sentence in dict.fromkeys(sentences(each)):
            about.setdefault(sentence, []).append(f"`{each.name}`")
    return [
        sentence if len(names) == len(runs) else f"{begin} {', '.join(names)}: {sentence}"
        for sentence, names in about.items()
    ]
