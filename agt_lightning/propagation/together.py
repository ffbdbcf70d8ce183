"""Clean and poisoned pass side by side, for programs that normalize by statistics of the batch.

Such a call takes the clean bounds of all samples together with the poisoned ones of those that can be poisoned, since
one poisoned sample moves the statistics for all (docs/theory.md, section 16). All other calls treat samples alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from agt_lightning.capture import Call
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.propagation.ibp import bounded_value, parameter_gradients, pass_back, split_seeds
from agt_lightning.propagation.program import Program
from agt_lightning.propagation.running_statistics import StatisticsUpdate, running_of, statistics_update
from agt_lightning.rules import Value
from agt_lightning.rules.base import located
from agt_lightning.rules.batch_statistics import BatchRows
from agt_lightning.rules.values import as_interval, select


@dataclass
class _Pass:
    """One of the passes, which fills with bounds by value name.

    Args:
        values: of the forward pass.
        gradients: with respect to values whose calls are still to be passed.
        parameters: summands of the gradient of each parameter.
    """

    values: dict[str, Value]
    gradients: dict[str, Interval] = field(default_factory=dict)
    parameters: dict[str, list[FactoredGradient]] = field(default_factory=dict)


class Together:
    """Both passes over one batch.

    Args:
        program: a program without problems.
        clean: its inputs on the data as it is, by value name.
        poisoned: the inputs of poisonable samples under the adversary; None if nothing can be poisoned.
        rows: the samples of both.
        touched: names of the values that the adversary can change where it changes their sample.
        skip: names of values to leave out.
        dtype: floating point type to compute in.

    Attributes:
        clean: bounds on all values by name, for samples as they are.
        poisoned: the same for poisoned ones; None if there are none.
    """

    def __init__(
        self,
        program: Program,
        clean: Mapping[str, Value],
        poisoned: Mapping[str, Value] | None,
        rows: BatchRows,
        touched: frozenset[str],
        skip: frozenset[str],
        dtype: torch.dtype,
    ) -> None:
        self.program, self.rows, self.dtype = program, rows, dtype
        self._passes = [_Pass(dict(clean))] + ([] if poisoned is None else [_Pass(dict(poisoned))])
        for call in program.graph.calls:
            if call.name in skip:
                continue
            if call.name in program.mixing:
                self._mix(call, moved=call.name in touched)
                continue
            for each in self._passes[: 2 if call.name in touched else 1]:
                value = bounded_value(program, call, each.values, dtype)
                if value is not None:
                    each.values[call.name] = value
            self._keep(call.name, moved=call.name in touched)

    @property
    def values(self) -> list[dict[str, Value]]:
        """Bounds on all values by name: for samples as they are, and for poisoned ones if there are any."""
        return [each.values for each in self._passes]

    def gradients(self, seeds: Sequence[Mapping[str, Interval]]) -> list[dict[str, FactoredGradient]]:
        """Bound the gradient of the whole loss, sample by sample, by name of the parameter's value, in each pass.

        Args:
            seeds: gradient of the loss with respect to some values, for each pass.
        """
        for each, given in zip(self._passes, seeds, strict=True):
            each.gradients, each.parameters = split_seeds(self.program, given)
        for call in reversed(self.program.graph.calls):
            found = [each.gradients.pop(call.name, None) for each in self._passes]
            gradients = [gradient for gradient in found if gradient is not None]
            if not gradients or call.name not in self.program.trainable:
                continue
            if call.name in self.program.mixing:
                self._mix_back(call, gradients)
                continue
            for each, gradient in zip(self._passes, gradients, strict=True):
                pass_back(self.program, call, gradient, each.values, each.gradients, each.parameters)
        return [parameter_gradients(self.program, each.values, each.parameters) for each in self._passes]

    def statistics(self) -> tuple[StatisticsUpdate, ...]:
        """Bound how the batch moves running statistics, in the order of the calls that keep them."""
        program, calls = self.program, {call.name: call for call in self.program.graph.calls}
        return tuple(
            statistics_update(program, name, running, self._operands(calls[name], self._passes), self.rows)
            for name, running in running_of(program).items()
        )

    def _operands(self, call: Call, passes: Sequence[_Pass]) -> list[Value]:
        """Return the inputs of a call that mixes samples, with the rows of all passes where they have samples."""
        return [
            Interval.cat([as_interval(each.values[name]) for each in passes]) if samples else passes[0].values[name]
            for name, samples in zip(call.inputs, self.program.sites[call.name].samples, strict=True)
        ]

    def _mix(self, call: Call, *, moved: bool) -> None:
        """Bound a call that mixes samples; in both passes, unless the adversary cannot change it."""
        passes = self._passes if moved else self._passes[:1]
        rule, site = self.program.among(call.name, self.rows), self.program.sites[call.name]
        try:
            result = as_interval(rule.forward(site, self._operands(call, passes)))
        except (UnsoundBoundError, UncertifiableError) as error:
            raise located(error, call) from error
        for each, part in zip(passes, self._parts(result.to(dtype=self.dtype)), strict=False):
            each.values[call.name] = part
        self._keep(call.name, moved=moved)

    def _mix_back(self, call: Call, gradients: Sequence[Interval]) -> None:
        """Pass the gradients of such a call on to its inputs and parameters."""
        program, site = self.program, self.program.sites[call.name]
        rule, operands = program.among(call.name, self.rows), self._operands(call, self._passes)
        gradient = Interval.cat(gradients)
        try:
            for position, name in enumerate(call.inputs):
                if position and site.trainable[position]:
                    factors = rule.parameter_gradient(site, position, gradient, operands)
                    for each, terms in zip(self._passes, self._shares(factors), strict=True):
                        each.parameters.setdefault(name, []).append(terms)
            if not site.trainable[0]:
                return
            towards = rule.backward(site, gradient, operands, gradient)[0]
        except (UnsoundBoundError, UncertifiableError) as error:
            raise located(error, call) from error
        assert towards is not None
        name = call.inputs[0]
        uses = program.uses(name)
        share = rule.share(site, towards, uses) if uses > 1 else towards
        for each, part in zip(self._passes, self._parts(share), strict=True):
            each.gradients[name] = each.gradients[name] + part if name in each.gradients else part

    def _parts(self, rows: Interval) -> list[Interval]:
        return [rows[: self.rows.samples], rows[self.rows.samples :]][: len(self._passes)]

    def _shares(self, gradient: FactoredGradient) -> list[FactoredGradient]:
        """Return the gradient of the samples of each pass."""
        starts = [slice(None, self.rows.samples), slice(self.rows.samples, None)][: len(self._passes)]
        return [gradient.with_leaves([leaf[rows] for leaf in gradient.leaves]) for rows in starts]

    def _keep(self, name: str, *, moved: bool) -> None:
        """Take over for poisoned samples what the adversary cannot change."""
        if moved or len(self._passes) == 1 or name not in self._passes[0].values:
            return
        value = self._passes[0].values[name]
        chosen = select(value, self.rows.poisonable) if name in self.program.samples else value
        self._passes[1].values[name] = chosen
