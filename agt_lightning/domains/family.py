"""The domains of one training, kept side by side, so that each can use the bounds of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.base import counts_sources
from agt_lightning.aggregation.mean_clipping import MeanClipping
from agt_lightning.distributed import SINGLE_PROCESS, ProcessGroup
from agt_lightning.domains.adjoint import AdjointDomain
from agt_lightning.domains.ball import BallDomain
from agt_lightning.domains.base import Domain, DomainLostError, OptimizerStep, ParameterSet, Step, TrainingSetup
from agt_lightning.domains.box import BoxDomain
from agt_lightning.domains.influence import InfluenceDomain
from agt_lightning.errors import BoundsMismatchError, UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.propagation.config import CertificationConfig, DomainChoice
from agt_lightning.propagation.passes import ValueBounds

DOMAINS: Mapping[str, type[Domain[Any]]] = {
    kind.name: kind for kind in (BoxDomain, BallDomain, AdjointDomain, InfluenceDomain)
}
"""The built-in domains by name, in the order in which a step goes through them."""


class DomainFamily:
    """The domains in use, and the reasons why others are not.

    A domain is lost if it raises `DomainLostError` in a step. With ``"auto"`` it is then excluded if another domain
    remains; otherwise `UncertifiableError` is raised.

    Args:
        module: at its initial parameters.
        adversary: the threat model.
        config: its ``domains`` are names or classes of domains, all of which must apply; or ``"auto"`` for all built-in
            ones that apply.
        processes: the group that trains together; all its processes keep the same domains.

    Raises:
        ValueError: if a domain is unknown or repeated, or none is given.

    Attributes:
        in_use: domains by name.
        excluded: reasons why ``"auto"`` does not use a domain, by its name.
    """

    def __init__(
        self,
        module: nn.Module,
        adversary: Adversary,
        config: CertificationConfig,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.processes = processes
        self.automatic = config.domains == "auto"
        self.in_use: dict[str, Domain[Any]] = {
            name: kind.build(module, adversary, config) for name, kind in chosen_domains(config.domains).items()
        }
        self.excluded: dict[str, str] = {}
        for domain in self.in_use.values():
            domain.join(self.in_use)

    # --- one step ------------------------------------------------------------------------------------------------

    def problems(self, setup: TrainingSetup) -> list[str]:
        """Return why the chosen domains do not apply, each reason with its way out; empty if training can go on.

        With ``"auto"``, domains that do not apply are excluded if another one does; otherwise the reasons of the first
        are returned.
        """
        with self.processes.collective_errors():
            local = {name: _problems(name, domain, setup) for name, domain in self.in_use.items()}
        united = {name: self.processes.union(problems) for name, problems in local.items()}
        failing = {name: problems for name, problems in united.items() if problems}
        if not self.automatic:
            return [problem for problems in failing.values() for problem in problems]
        if len(failing) == len(self.in_use):
            return next(iter(failing.values()), [])
        for name, problems in failing.items():
            self._exclude(name, " ".join(problems))
        return []

    def bound_step(self, step: Step) -> dict[str, object]:
        """Return the data that each domain in use needs for the coming update, by name.

        Each domain is given the bounds of one other on layer outputs: of the last one whose `Domain.bound_step` made
        some in this step (`Domain.found_values`), or else of the first one that had some before
        (`Domain.bound_values`).

        Raises:
            UncertifiableError: if a domain is lost and ``"auto"`` cannot go on without it.
        """
        with self.processes.collective_errors():
            supplied = {name: domain.bound_values(step) for name, domain in self.in_use.items() if self._helps(name)}
        data: dict[str, object] = {}
        for name, domain in list(self.in_use.items()):
            others: list[ValueBounds] = next((bounds for key, bounds in supplied.items() if bounds and key != name), [])
            try:
                data[name] = domain.bound_step(step, others)
            except DomainLostError as error:
                self._lose(name, error)
                continue
            made = domain.found_values(data[name])
            if made:
                supplied = {name: made} | {key: bounds for key, bounds in supplied.items() if key != name}
        return data

    @property
    def follow_clipping(self) -> bool:
        """Whether every domain covers clipping of the mean gradient by its `clip`."""
        return all(domain.follows_clipping for domain in self.in_use.values())

    def gradient_bounds(self, data: Mapping[str, object]) -> dict[str, Interval]:
        """Return bounds on the applied gradient, by parameter name: the intersection over all domains."""
        return _intersection([domain.gradient_bounds(data[name]) for name, domain in self.in_use.items()])

    def clip(self, data: Mapping[str, object], clipping: MeanClipping, names: list[str]) -> dict[str, object]:
        """Return the data of a step whose mean gradient is clipped.

        Args:
            data: from `bound_step`.
            clipping: how training clips.
            names: parameters that are clipped together.
        """
        return {name: domain.clip(data[name], clipping, names) for name, domain in self.in_use.items()}

    def update(self, data: Mapping[str, object], optimizer_step: OptimizerStep) -> None:
        """Move every set by its own data, then tighten those that can be by the boxes of the others.

        Raises:
            UncertifiableError: if a domain is lost and ``"auto"`` cannot go on without it.
        """
        for name, domain in list(self.in_use.items()):
            try:
                domain.update(data[name], optimizer_step)
            except DomainLostError as error:
                self._lose(name, error)
        for name, domain in self.in_use.items():
            if domain.tightens:
                boxes = [other.box() for key, other in self.in_use.items() if key != name]
                for box in filter(None, boxes):
                    domain.tighten(box)

    def _helps(self, name: str) -> bool:
        """Whether another domain reads the value bounds of this one."""
        return any(domain.reads_value_bounds for key, domain in self.in_use.items() if key != name)

    # --- results ---------------------------------------------------------------------------------------------------

    def cheap_box(self) -> dict[str, Interval]:
        """Return the tightest interval of each parameter that some domain keeps at every step; empty if none does."""
        # A set that `update` tightens is within the boxes of all others already.
        tightest = next((domain for domain in self.in_use.values() if domain.tightens), None)
        if tightest is not None:
            return tightest.box() or {}
        return _intersection([domain.box() or {} for domain in self.in_use.values()])

    def box(self) -> dict[str, Interval]:
        """Return the tightest interval of each parameter, even if computing it takes more work than a step."""
        return self.cheap_box() or _intersection([domain.exact_box() for domain in self.in_use.values()])

    def running_statistics(self) -> dict[str, Interval]:
        """Return bounds on running statistics of batch normalization that training has moved, by name of the buffer."""
        return {name: each for domain in self.in_use.values() for name, each in domain.running_statistics().items()}

    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Return the sets that certificates can use beside the box, by name of their domain."""
        sets = {name: domain.parameter_set() for name, domain in self.in_use.items()}
        return {name: parameters for name, parameters in sets.items() if parameters is not None}

    def metrics(self) -> dict[str, float]:
        """Return the numbers that domains log after each step, by name."""
        return {key: value for domain in self.in_use.values() for key, value in domain.metrics().items()}

    def relative_size(self) -> float | None:
        """Return the smallest size of a set relative to its parameters; None if none of the sets has one."""
        sizes = [domain.relative_size() for domain in self.in_use.values()]
        return min((size for size in sizes if size is not None), default=None)

    def remarks(self) -> list[str]:
        """Return sentences for the log, without their subject: which domains are excluded, how bounds are computed."""
        excluded = [f"goes on without the domain `{name}`. {reason}" for name, reason in self.excluded.items()]
        return excluded + [remark for domain in self.in_use.values() for remark in domain.remarks()]

    def record(self) -> dict[str, object]:
        """Return what a certificate states about the domains: those in use, and the reasons why others are not."""
        used = {name: domain.record() for name, domain in self.in_use.items()}
        return {"in_use": used, "left_out": dict(self.excluded)}

    # --- checkpoints and processes ---------------------------------------------------------------------------------

    def fingerprint_tensors(self) -> Iterator[Tensor]:
        """Yield tensors that identify all sets: equal across processes if and only if the sets are."""
        for domain in self.in_use.values():
            yield from domain.fingerprint_tensors()

    def state(self) -> dict[str, Any]:
        """Return the state of each domain in use, by name."""
        return {name: domain.state() for name, domain in self.in_use.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue with the domains of a checkpoint; ``"auto"`` excludes all others.

        Raises:
            BoundsMismatchError: if the checkpoint lacks a domain that was chosen by name or class.
        """
        missing = [name for name in self.in_use if name not in state]
        if missing and not self.automatic:
            raise BoundsMismatchError(
                f"Expected the domains {', '.join(self.in_use)} in the checkpoint, but {', '.join(missing)} is not "
                "there. Resume with the `domains` of the interrupted training."
            )
        for name in missing:
            self._exclude(name, "It was not in use before the training was resumed.")
        for name, domain in self.in_use.items():
            domain.restore(state[name])

    def restart_optimizer(self) -> None:
        """Go on with a new optimizer, whose state is empty in every run.

        Raises:
            UncertifiableError: if a domain does not cover that and ``"auto"`` cannot go on without it.
        """
        for name, domain in list(self.in_use.items()):
            try:
                domain.restart_optimizer()
            except DomainLostError as error:
                self._lose(name, error)

    def _lose(self, name: str, error: DomainLostError) -> None:
        """With ``"auto"``, exclude a lost domain if another remains; otherwise raise."""
        if not self.automatic or len(self.in_use) == 1:
            raise UncertifiableError([f"The domain `{name}` is lost: {error}"])
        self._exclude(name, str(error))

    def _exclude(self, name: str, reason: str) -> None:
        del self.in_use[name]
        self.excluded[name] = reason


def _problems(name: str, domain: Domain[Any], setup: TrainingSetup) -> list[str]:
    """Return why a domain does not apply; some are not asked about sources, or where statistics couple samples."""
    program = setup.bounded.program
    if counts_sources(setup.adversary) and not domain.covers_sources:
        return [
            f"The domain `{name}` does not cover adversaries that own sources: its sums choose samples one by one. Use "
            '`domains=["box"]`, or count samples, by an `n` at least as large as the samples of these sources.'
        ]
    if not program.mixing or domain.covers_batch_statistics:
        return domain.problems(setup)
    return [
        f"The domain `{name}` does not cover {program.mixed_by}, where one sample reaches the gradients of all others. "
        f'Use `domains=["box"]`, or {program.unmixed}.'
    ]


def chosen_domains(choice: DomainChoice) -> dict[str, type[Domain[Any]]]:
    """Return the chosen domains by name, in the order in which a step goes through them.

    Args:
        choice: names or classes of domains, or ``"auto"`` for all built-in ones but those that must be named.

    Raises:
        ValueError: if a name is unknown, a domain is repeated, or none is given.

    Example:
        >>> list(chosen_domains(["ball", "box"]))
        ['box', 'ball']
    """
    if choice == "auto":
        return {name: kind for name, kind in DOMAINS.items() if kind.automatic}
    entries = [choice] if isinstance(choice, str) else list(choice)
    classes = [DOMAINS.get(entry) if isinstance(entry, str) else entry for entry in entries]
    kinds = [kind for kind in classes if isinstance(kind, type) and issubclass(kind, Domain)]
    names = [kind.name for kind in kinds]
    if not entries or len(kinds) < len(entries) or len(set(names)) < len(names):
        raise ValueError(
            f"Expected `domains` to be 'auto' or distinct names out of {tuple(DOMAINS)} or subclasses of `Domain`, but "
            f"got {choice!r}."
        )
    order = [*DOMAINS, *names]
    return {kind.name: kind for kind in sorted(kinds, key=lambda kind: order.index(kind.name))}


def _intersection(boxes: list[Mapping[str, Interval]]) -> dict[str, Interval]:
    """Return the intersection of boxes, by parameter name; a parameter may be missing in some of them."""
    intersection: dict[str, Interval] = {}
    for box in boxes:
        for name, interval in box.items():
            intersection[name] = intersection[name].intersect(interval) if name in intersection else interval
    return intersection
