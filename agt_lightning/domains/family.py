"""All domains of one training, kept side by side and helping each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import Adversary
from agt_lightning.aggregation import Aggregation
from agt_lightning.distributed import SINGLE_PROCESS, ProcessGroup
from agt_lightning.domains.ball import BallDomain
from agt_lightning.domains.base import Domain, DomainLostError, OptimizerStep, Step, TrainingSetup
from agt_lightning.domains.box import BoxDomain, BoxStep
from agt_lightning.domains.influence import InfluenceDomain
from agt_lightning.errors import BoundsMismatchError, UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.propagation import Method
from agt_lightning.propagation.passes import ValueBounds

Choice = Literal["auto"] | Sequence[str]
"""Names of domains, or ``"auto"`` for all that apply."""

NAMES = ("box", "ball", "influence")


class DomainFamily:
    """The domains that are in use, and why the others are not.

    Args:
        choice: names of domains, of which each must apply; or ``"auto"`` for those that do.
        module: at its initial parameters.
        adversary: the threat model.
        memory_budget: bytes for temporary tensors.
        dtype: floating point type of the bounds' computation.
        method: how the box propagates bounds forward.
        aggregation: how the box turns per-sample bounds into bounds of their sum.
        processes: all that train together; they keep the same domains.

    Raises:
        ValueError: if a name is unknown, repeated, or none is given.

    Attributes:
        in_use: domains by name.
        excluded: reason by name of a domain that ``"auto"`` does not use.
    """

    def __init__(
        self,
        choice: Choice,
        module: nn.Module,
        adversary: Adversary,
        memory_budget: int,
        dtype: torch.dtype,
        method: Method = "ibp",
        aggregation: Aggregation = "exact",
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        names = domain_names(choice)
        self.processes = processes
        self.automatic = choice == "auto"
        self.in_use: dict[str, Domain[Any]] = {}
        if "box" in names:
            self.in_use["box"] = BoxDomain(module, memory_budget, dtype, method, aggregation)
        if "ball" in names:
            self.in_use["ball"] = BallDomain(module, dtype)
        if "influence" in names:
            self.in_use["influence"] = InfluenceDomain(module, adversary)
        self.excluded: dict[str, str] = {}

    @property
    def box_domain(self) -> BoxDomain | None:
        """The box, if it is in use."""
        domain = self.in_use.get("box")
        return domain if isinstance(domain, BoxDomain) else None

    @property
    def others(self) -> dict[str, Domain[Any]]:
        """All domains in use but the box."""
        return {name: domain for name, domain in self.in_use.items() if name != "box"}

    def problems(self, setup: TrainingSetup) -> list[str]:
        """Why the chosen domains do not apply; with ``"auto"`` only if none does, else they are left out."""
        with self.processes.collective_errors():
            own = {name: domain.problems(setup) for name, domain in self.in_use.items()}
        found = {name: self.processes.union(problems) for name, problems in own.items()}
        failing = {name: problems for name, problems in found.items() if problems}
        if not self.automatic:
            return [problem for problems in failing.values() for problem in problems]
        if len(failing) == len(found):
            return next(iter(failing.values()), [])
        for name, problems in failing.items():
            self._leave_out(name, " ".join(problems))
        return []

    def bound_step(self, step: Step) -> dict[str, object]:
        """What each domain in use needs for the coming update, by name."""
        data: dict[str, object] = {}
        known: list[ValueBounds] = []
        if self.box_domain is not None:
            with self.processes.collective_errors():
                for domain in self.others.values():
                    known = domain.bound_values(step) or known
            box_step = self.box_domain.bound_step(step, known)
            data["box"], known = box_step, list(box_step.values)
        for name, domain in self.others.items():
            try:
                data[name] = domain.bound_step(step, known)
            except DomainLostError as error:
                self._lose(name, error)
        return data

    def update(self, data: Mapping[str, object], optimizer_step: OptimizerStep) -> None:
        """Move every set, and cut the box to what the others allow."""
        if self.box_domain is not None:
            box_step = data["box"]
            assert isinstance(box_step, BoxStep)
            self.box_domain.update(box_step, optimizer_step)
        for name, domain in self.others.items():
            try:
                domain.update(data[name], optimizer_step)
            except DomainLostError as error:
                self._lose(name, error)
        if self.box_domain is None:
            return
        for domain in self.others.values():
            allowed = domain.box()
            if allowed is not None:
                self.box_domain.tighten(allowed)

    def cheap_box(self) -> dict[str, Interval]:
        """Bounds on the parameters by name, the tightest that domains keep at every step; empty if none does."""
        if self.box_domain is not None:
            return self.box_domain.intervals
        return _intersection([domain.box() or {} for domain in self.in_use.values()])

    def box(self) -> dict[str, Interval]:
        """The same, with bounds that take more work where no domain keeps any."""
        return self.cheap_box() or _intersection([domain.exact_box() for domain in self.in_use.values()])

    def record(self) -> dict[str, object]:
        """What a certificate says of the domains: those in use, and why the others are not."""
        used = {name: domain.record() for name, domain in self.in_use.items()}
        return {"in_use": used, "left_out": dict(self.excluded)}

    def fingerprint_tensors(self) -> Iterator[Tensor]:
        """Tensors that are the same in all processes exactly if all sets are."""
        for domain in self.in_use.values():
            yield from domain.fingerprint_tensors()

    def state(self) -> dict[str, Any]:
        """State of each domain in use, by name."""
        return {name: domain.state() for name, domain in self.in_use.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with exactly the domains of a checkpoint.

        Raises:
            BoundsMismatchError: if the checkpoint lacks a domain that was asked for.
        """
        missing = [name for name in self.in_use if name not in state]
        if missing and not self.automatic:
            raise BoundsMismatchError(
                f"Expected the domains {', '.join(self.in_use)} in the checkpoint, but {', '.join(missing)} is not "
                "there. Resume with the `domains` of the interrupted training."
            )
        for name in missing:
            self._leave_out(name, "It was not in use before the training was resumed.")
        for name, domain in self.in_use.items():
            domain.restore(state[name])

    def _lose(self, name: str, error: DomainLostError) -> None:
        """A domain that stops to apply is left out with ``"auto"`` while another one remains; else training ends."""
        if not self.automatic or len(self.in_use) == 1:
            raise UncertifiableError([f"The domain `{name}` is lost: {error}"])
        self._leave_out(name, str(error))

    def _leave_out(self, name: str, reason: str) -> None:
        del self.in_use[name]
        self.excluded[name] = reason


def domain_names(choice: Choice) -> tuple[str, ...]:
    """The names that a choice stands for.

    Raises:
        ValueError: if a name is unknown, repeated, or none is given.

    Example:
        >>> domain_names("auto"), domain_names(["ball"])
        (('box', 'ball', 'influence'), ('ball',))
    """
    if choice == "auto":
        return NAMES
    names = (choice,) if isinstance(choice, str) else tuple(choice)
    if not names or len(set(names)) < len(names) or not set(names) <= set(NAMES):
        raise ValueError(f"Expected `domains` to be 'auto' or distinct names out of {NAMES}, but got {choice!r}.")
    return names


def _intersection(boxes: Sequence[Mapping[str, Interval]]) -> dict[str, Interval]:
    """What all of these bounds allow, by name."""
    bounds: dict[str, Interval] = {}
    for box in boxes:
        for name, interval in box.items():
            bounds[name] = bounds[name].intersect(interval) if name in bounds else interval
    return bounds
