"""The collection: a module, its data, what an adversary may do to them, and what is expected to come of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import lightning as L
from torch import Tensor

from agt_lightning import BoundedAdversary
from tests.trust.harness import Case


@dataclass(frozen=True)
class Threat:
    """An adversary, and how the table calls it."""

    name: str
    adversary: BoundedAdversary


MOVED = Threat("features", BoundedAdversary(n=1, epsilon=1e-3))
FLIPPED = Threat("flips", BoundedAdversary(n=1, nu=1, q=0))
SHIFTED = Threat("labels", BoundedAdversary(n=1, nu=1e-2))


def among(*numbers: int) -> Threat:
    """Flips of labels that are read as numbers, to any of these."""
    return Threat(f"flips to {numbers[0]}..{numbers[-1]}", BoundedAdversary(n=1, nu=1, q=0, target_classes=numbers))


FAR = Threat("labels by 1", BoundedAdversary(n=1, nu=1.0))


def outputs_of(path: str) -> Threat:
    return Threat(f"at {path}", BoundedAdversary(n=1, epsilon=1e-3, at=path))


@dataclass(frozen=True)
class Refusal:
    """Why a training is refused.

    Args:
        cause: the reason, as the table groups it.
        fragment: pattern of the message, ignoring case.
        located: whether the message names file and line of the module.
        impossible: whether no bound could say anything, whoever wrote it; otherwise a rule is missing.
        late: whether it shows after the first step alone, in which nothing is carried over yet.
    """

    cause: str
    fragment: str
    located: bool = True
    impossible: bool = True
    late: bool = False


@dataclass(frozen=True)
class Wild:
    """One module as somebody wrote it.

    Args:
        name: of the class.
        family: the file it is in.
        module: makes it.
        rows: its data.
        threats: adversaries that make sense for it.
        refused: threats that are refused.
        changes: of the case, such as options of the Trainer.
        quick: whether it is in the subset that runs with every change.
    """

    name: str
    family: str
    module: Callable[[], L.LightningModule]
    rows: Mapping[str, Tensor]
    threats: tuple[Threat, ...]
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    changes: Mapping[str, object] = field(default_factory=dict)
    quick: bool = False

    def case(self, threat: Threat) -> Case:
        """Return the training under one threat: three steps of four samples."""
        case = Case(
            self.module,
            threat.adversary,
            self.rows,
            form=lambda rows, epoch, index: tuple(rows.values()),
            features=tuple(name for name in self.rows if name.startswith("x")),
            labels=tuple(name for name in self.rows if name.startswith("y")),
            options={"max_epochs": 1},
        )
        return replace(case, **self.changes)


COLLECTION: dict[str, Wild] = {}
"""All modules by name, in the order in which they are defined."""


def wild(
    rows: Mapping[str, Tensor],
    *threats: Threat,
    refused: Refusal | Mapping[Threat, Refusal] | None = None,
    quick: bool = False,
    options: Mapping[str, object] | None = None,
    **changes: object,
) -> Callable[[type], type]:
    """Enter a class of modules that is made without arguments.

    Args:
        rows: its data.
        threats: adversaries that make sense for it.
        refused: why it is refused under all of them, or under some.
        quick: whether it is in the quick subset.
        options: of the Trainer.
        changes: other fields of the case.
    """

    def enter(module: type) -> type:
        if isinstance(refused, Refusal):
            reasons = {threat.name: refused for threat in threats}
        else:
            reasons = {threat.name: reason for threat, reason in (refused or {}).items()}
        if options:
            changes["options"] = {"max_epochs": 1, **options}
        family = module.__module__.rpartition(".")[2]
        known = COLLECTION.get(module.__name__)
        if known is not None:  # doctests import files once more
            assert known.family == family, f"two modules are called {module.__name__}"
            return module
        COLLECTION[module.__name__] = Wild(module.__name__, family, module, rows, threats, reasons, changes, quick)
        return module

    return enter


def cells(*, quick: bool = False) -> Sequence[tuple[Wild, Threat]]:
    """Return every module with every adversary that makes sense for it, or those of the quick subset."""
    chosen = [case for case in COLLECTION.values() if case.quick or not quick]
    return [(case, threat) for case in chosen for threat in case.threats]
