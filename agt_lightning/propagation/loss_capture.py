"""How the losses of a training are captured: recorded, joined with rules, cut where nothing can be poisoned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from agt_lightning.capture import Graph, LossRoles, analyze, flatten
from agt_lightning.capture.batch import Rebuild
from agt_lightning.capture.counted_labels import ignored_labels, with_counted_labels
from agt_lightning.capture.entries import Entry, entries
from agt_lightning.capture.export import record
from agt_lightning.capture.moves import is_elementwise
from agt_lightning.capture.opaque import guarded
from agt_lightning.capture.replica import replica
from agt_lightning.capture.roles import NamedRoles
from agt_lightning.capture.shared_layers import counted_statistics
from agt_lightning.capture.source import as_forward
from agt_lightning.errors import CaptureError
from agt_lightning.propagation.evaluated import Moves, Prelude, cut, outputs_of, place_problems, trained
from agt_lightning.propagation.objective import BoundedObjective, Loss, canonical_names
from agt_lightning.propagation.program import Program
from agt_lightning.propagation.shared_terms import SharedTerms, size_problems
from agt_lightning.rules import RuleTable


@dataclass(frozen=True)
class LossCapture:
    """The settings with which the losses of a training are captured.

    Args:
        table: rules by overload.
        named: the batch entries whose roles the user names; None if there are none.
        whole_samples: whether an adversary replaces whole samples, with their numbers and strings.
        labels_are_fixed: whether no adversary changes a label, so that a loss may leave out some of them.
        moves: what can be poisoned, so that the rest needs no rules before it meets trained parameters; None means
            anything.
        mixes: whether batches may be normalized by their own statistics, see `Program.build`.

    Example:
        >>> from agt_lightning.rules import RULES
        >>> loss = lambda module, batch: nn.functional.mse_loss(module(batch[0]), batch[1])
        >>> bounded = LossCapture(RULES).of(nn.Linear(2, 1), loss, (torch.randn(8, 2), torch.randn(8, 1)))
        >>> bounded.problems, sorted(bounded.parameters.values())
        ((), ['bias', 'weight'])
    """

    table: RuleTable
    named: NamedRoles | None = None
    whole_samples: bool = False
    labels_are_fixed: bool = False
    moves: Moves | None = None
    mixes: bool = False

    def of(self, module: nn.Module, loss: Loss, batch: object) -> BoundedObjective:
        """Capture a loss for batches of this kind.

        A single sample can lose its axis to `.squeeze()`. The code for two samples is the same code, so a batch of one
        that leads to problems is recorded with its sample twice; it must not compute with the number of samples.

        Args:
            module: owner of the parameters that ``loss`` uses.
            loss: maps a module and a batch to a scalar.
            batch: an example of the structure and shapes.

        Raises:
            CaptureError: if the code cannot be recorded.
        """
        bounded = self.once(module, loss, batch)
        if not bounded.problems or bounded.size(batch) != 1:
            return bounded
        twice = self.once(module, loss, _doubled(batch))
        if _numbers(bounded.graph) == _numbers(twice.graph):
            return twice
        return replace(twice, objective=_with_problems(twice.objective, _COMPUTES_WITH_SIZE))

    def once(self, module: nn.Module, loss: Loss, batch: object) -> BoundedObjective:
        """Capture a loss on a batch as it is, on a replica of the module; arguments and errors as for `of`."""
        return _Captured(self, module, loss, batch).bounded()


@dataclass(frozen=True)
class _Captured:
    """One capture of a loss.

    Args:
        settings: of the capture.
        module: owner of the parameters.
        loss: maps a module and a batch to a scalar.
        batch: an example.
    """

    settings: LossCapture
    module: nn.Module
    loss: Loss
    batch: object

    def bounded(self) -> BoundedObjective:
        """Return the loss joined with rules, behind what is evaluated as it is."""
        objective, program = self._joined(self.graph, self.settings.named)
        types = {name: self.leaves[position].dtype for name, position in self.graph.leaves.items()}
        moves, prelude = self.settings.moves, None
        if moves is not None and moves.at is not None:
            objective = self._poisoned_at(moves.at, objective, program)
            types |= {name: self.graph.types[name] for name in objective.features}
        if moves is not None and not (moves.at is not None and objective.problems):
            objective, program, prelude = self._behind_prelude(moves, objective, program)
        if objective.penalties and (self.settings.whole_samples or moves is not None and moves.samples):
            objective = _with_problems(objective, _CLIPPED_PENALTY)
        read = {value: self.names[target] for value, target in program.graph.parameters.items()}
        return BoundedObjective(objective, program, read, types, prelude)

    @cached_property
    def leaves(self) -> list[Tensor]:
        """The tensors of the batch."""
        return list(flatten(self.batch)[0])

    @cached_property
    def names(self) -> dict[str, str]:
        """Canonical names of parameters, see `canonical_names`."""
        return canonical_names(self.module)

    @cached_property
    def graph(self) -> Graph:
        """The loss as it was recorded.

        Raises:
            CaptureError: if it cannot be.
        """
        try:
            graph = self._recorded(self.leaves)
        except CaptureError as error:
            raise CaptureError(f"{error}{counted_statistics(self.module)}") from error
        if not self.settings.labels_are_fixed:
            return graph
        holding = frozenset(position for position, leaf in enumerate(self.leaves) if ignored_labels(leaf))
        return with_counted_labels(graph, holding)

    @cached_property
    def size(self) -> int:
        """Number of samples."""
        return _batch_size([self.leaves[position] for position in self.graph.leaves.values()])

    def _recorded(self, leaves: Sequence[Tensor]) -> Graph:
        rebuild = guarded(flatten(self.batch)[1], whole_samples=self.settings.whole_samples)
        return record(partial(_replicated, self.module, self.loss, rebuild), leaves)

    def _recorded_with_one_more(self) -> Graph:
        """Record the loss on the first sample once more, at the end."""
        size = self.size
        return self._recorded(
            [torch.cat([leaf, leaf[:1]]) if leaf.shape[:1] == (size,) else leaf for leaf in self.leaves]
        )

    def _joined(self, graph: Graph, named: NamedRoles | None) -> tuple[LossRoles, Program]:
        trainable = {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        listed = entries(self.batch)
        roles = analyze(graph, self.size, lambda target: self.names[target] in trainable, listed, named)
        return _joined(roles, self.settings.table, listed, mixes=self.settings.mixes)

    def _poisoned_at(self, path: str, objective: LossRoles, program: Program) -> LossRoles:
        """Return the roles of the loss in which the outputs of a submodule are the features."""
        problems = place_problems(
            objective, path, self.module, self.size, program.troubled, self._recorded_with_one_more
        )
        return _poisoned_at(objective, path, self.settings.named, problems)

    def _behind_prelude(
        self, moves: Moves, whole: LossRoles, program: Program
    ) -> tuple[LossRoles, Program, Prelude | None]:
        """Cut off what comes before anything that can be poisoned or is trained, if it needs to be evaluated."""
        outputs = frozenset(whole.features) if moves.at is not None else frozenset[str]()
        front = cut(program, trained(whole) | moves.leaves(whole), outputs)
        if front is None:
            return whole, program, None
        rest, prelude = front
        objective, program = self._joined(rest, None)
        objective = replace(objective, entries=whole.entries, names=whole.names)
        return _with_problems(objective, *whole.entries.problems), program, prelude


_COMPUTES_WITH_SIZE = (
    "A batch of one sample is recorded with its sample twice, but `training_step` then computes with other numbers, "
    "such as `len(x)`. Take `.mean()` over the samples, or leave out such batches (`drop_last=True`)."
)

_CLIPPED_PENALTY = (
    "The loss has a penalty of parameters alone, which an adversary that replaces samples leaves without bounds: the "
    "gradient of each sample is clipped, and the penalty is none. Use the optimizer's `weight_decay` instead."
)


def _joined(
    objective: LossRoles, table: RuleTable, listed: Sequence[Entry], *, mixes: bool
) -> tuple[LossRoles, Program]:
    """Return the roles of a captured loss, with all problems of its terms, and its program."""
    # A penalty could be a loss of samples of another number, which would count as constants.
    shared = SharedTerms.of(objective) if objective.problems or objective.penalties else SharedTerms()
    of_other_size = size_problems(objective, shared, listed)
    objective = replace(objective, problems=tuple(of_other_size)) if of_other_size else objective
    left_out = shared.calls if objective.problems else frozenset[str]()
    program = Program.build(
        objective.graph,
        table,
        samples=objective.samples,
        trainable=objective.trainable,
        reduced=objective.reduced | left_out,
        mixes=mixes,
    )
    return objective, program


def _poisoned_at(objective: LossRoles, path: str, named: NamedRoles | None, problems: Sequence[str]) -> LossRoles:
    """Return the roles of a loss in which the outputs of a submodule are the features, with problems of the place."""
    problems = list(problems)
    if named is not None and named.features is not None:
        problems.append("Both `features` and `at` say what `epsilon` moves. Give one of them.")
    outputs = tuple(sorted(outputs_of(objective.graph, path)))
    of_batch = {objective.names[leaf]: f"before the outputs of {path}" for leaf in objective.features}
    entries = replace(
        objective.entries,
        features=outputs,
        unmoved={**of_batch, **objective.entries.unmoved},
        feature_doubts=(),
        problems=(*objective.entries.problems, *problems),
    )
    names = {**objective.names, **dict.fromkeys(outputs, f"outputs of {path}")}
    return replace(objective, entries=entries, names=names, problems=(*objective.problems, *problems))


def _with_problems(objective: LossRoles, *problems: str) -> LossRoles:
    return replace(objective, problems=(*objective.problems, *problems))


def _replicated(module: nn.Module, loss: Loss, rebuild: Rebuild) -> tuple[nn.Module, Callable[..., Tensor]]:
    """Return a new replica of a module, and its loss as a function of the tensors of a batch."""
    twin, traced = replica(module), as_forward(loss)
    return twin, lambda tensors: traced(twin, rebuild(tensors))


def _batch_size(leaves: Sequence[Tensor]) -> int:
    """The leading size that most batch entries of the loss share."""
    sizes = Counter(leaf.shape[0] for leaf in leaves if leaf.ndim > 0)
    return sizes.most_common(1)[0][0] if sizes else 0


def _numbers(graph: Graph) -> Counter[object]:
    """Return the numbers that the calls of a graph compute with, besides shapes and places, each as often as it is."""
    numbers: Counter[object] = Counter(
        (call.op, name, value)
        for call in graph.calls
        for name, value in call.arguments.items()
        if isinstance(value, float) or (isinstance(value, int) and (is_elementwise(call) or name == "fill_value"))
    )
    return numbers + Counter(value.item() for value in graph.constants.values() if value.numel() == 1)


def _doubled(batch: object) -> object:
    """Return the batch with its single sample twice."""
    leaves, rebuild = flatten(batch)
    return rebuild([torch.cat([leaf, leaf]) if leaf.ndim and leaf.shape[0] == 1 else leaf for leaf in leaves])
