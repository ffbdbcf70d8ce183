"""A captured graph joined with the rules that bound it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture import Call, Graph
from agt_lightning.capture.batch_statistics import BY_BATCH
from agt_lightning.capture.recurrent import RECURRENT
from agt_lightning.capture.totals import OVER_ROOT_OF_MEAN, OVER_TOTAL
from agt_lightning.propagation.composites import CompositeCalls, composites
from agt_lightning.rounding import Floats
from agt_lightning.rules import Rule, RuleTable, Site
from agt_lightning.rules.base import ElementwiseRule, name_of
from agt_lightning.rules.batch_share import BatchShare
from agt_lightning.rules.batch_statistics import BatchRows, BatchStatistics
from agt_lightning.rules.discrete import DISCRETE, DiscreteFunction
from agt_lightning.rules.normalization import BATCH_STATISTICS
from agt_lightning.rules.rounded import Rounded
from agt_lightning.rules.roundings import UNSTATED
from agt_lightning.rules.selection import Selection
from agt_lightning.rules.shape import Reshape

_WAYS_OUT = {
    "aten._native_batch_norm_legit_functional": (
        "is batch normalization in training mode that moves its running statistics more than once in a step, or by a "
        "factor that is no constant. Use one layer for each place, and `eval()` for passes beside the loss; or "
        "`GroupNorm`; or keep that layer in `eval()` during training, where it uses its running statistics"
    ),
    "aten.native_batch_norm": BATCH_STATISTICS,
    **dict.fromkeys(
        ("agt_lightning.over_root_of_mean", "agt_lightning.over_total"),
        "divides the losses of all samples by one number of the batch, which is not covered here. Write the loss as "
        "`per_sample_loss.mean()`",
    ),
}


@dataclass(frozen=True)
class Program:
    """A graph in which every call on samples has a rule.

    Args:
        graph: the captured graph.
        sites: for each call with a rule, what is known of its inputs.
        rules: for each call with a rule, that rule.
        trainable: names of values that depend on a trainable parameter.
        samples: names of values whose axis 0 counts samples.
        problems: why this graph cannot be certified, each with its way out.
        shared: for each call without samples that has a rule which takes it, that rule; used where rounding counts.
            Without rounding, such a call is run as it is.
        troubled: names of the calls with problems.
        floats: which runs the rules are for; None for rules in real arithmetic that do not cover any rounding.
        mixing: names of the calls by which each sample reaches all others: normalizations by statistics of the batch,
            and losses over a number of it.
    """

    graph: Graph
    sites: Mapping[str, Site]
    rules: Mapping[str, Rule]
    trainable: frozenset[str]
    samples: frozenset[str]
    problems: tuple[str, ...]
    shared: Mapping[str, Rule] = field(default_factory=dict)
    troubled: frozenset[str] = frozenset()
    floats: Floats | None = None
    mixing: frozenset[str] = frozenset()

    @classmethod
    def build(
        cls,
        graph: Graph,
        table: RuleTable,
        *,
        samples: frozenset[str],
        trainable: frozenset[str],
        reduced: frozenset[str] = frozenset(),
        mixes: bool = False,
    ) -> Program:
        """Look up a rule for each call and collect the problems.

        Args:
            graph: the captured graph.
            table: the rules to use.
            samples: names of values whose axis 0 counts samples.
            trainable: names of values that depend on a trainable parameter.
            reduced: values after the reduction over samples, which need no rule.
            mixes: whether calls may normalize by statistics of the batch; whoever propagates must then pass all its
                samples at once, and clean and poisoned ones side by side.
        """
        if mixes:
            shares = dict.fromkeys((OVER_ROOT_OF_MEAN, OVER_TOTAL), BatchShare())
            table = {**table, BY_BATCH: BatchStatistics(), **shares}
        sites: dict[str, Site] = {}
        rules: dict[str, Rule] = {}
        shared: dict[str, Rule] = {}
        problems: list[str] = []
        misplaced: set[str] = set()  # values whose samples are no longer on axis 0, and what is computed of them
        troubled: set[str] = set()
        for call in graph.calls:
            if call.name in reduced:
                continue
            if call.name not in samples:
                rule = _rule(call, table)
                site = _site(graph, call, samples, trainable)
                problems += _shared_problems(site, rule, trainable)
                taken = call.name in trainable or rule is not None and rule.takes_constants(site)
                if rule is not None and taken and call.dtype.is_floating_point:
                    sites[call.name], shared[call.name] = site, rule
                continue
            rule = _rule(call, table)
            if rule is None:
                problems.append(_unknown(call))
                troubled.add(call.name)
                continue
            sites[call.name] = site = _site(graph, call, samples, trainable)
            rules[call.name] = rule
            if misplaced.intersection(call.inputs):
                misplaced.add(call.name)
                troubled.add(call.name)
                continue
            problem = _of_whole_batch(site) or rule.problem(site)
            if problem is not None:
                problems.append(problem)
                troubled.add(call.name)
                misplaced.update([call.name] if isinstance(rule, Selection | Reshape) else [])
        mixing = frozenset(name for name, rule in rules.items() if isinstance(rule, BatchStatistics | BatchShare))
        return cls(graph, sites, rules, trainable, samples, tuple(problems), shared, frozenset(troubled), mixing=mixing)

    def uses(self, name: str) -> int:
        """Return how many gradients are added up for a value: one for each place where a call on samples reads it."""
        return self._uses[name]

    @cached_property
    def _uses(self) -> Counter[str]:
        return Counter(name for call in self.graph.calls if call.name in self.rules for name in call.inputs)

    @cached_property
    def composites(self) -> Mapping[str, CompositeCalls]:
        """Functions of one number that take several calls, by the name of the last one."""
        moving = self.samples & self.trainable & self.rules.keys()
        return composites(self.graph, moving)

    @property
    def mixed_by(self) -> str | None:
        """What mixes samples, with its place, for messages; None if nothing does."""
        call = next((call for call in self.graph.calls if call.name in self.mixing), None)
        if call is None:
            return None
        kind = "batch normalization in training mode" if call.op is BY_BATCH else "a loss over a number of the batch"
        return f"{kind} (at {call.source})"

    @property
    def unmixed(self) -> str:
        """A way out of what mixes samples, for messages."""
        if any(call.op is BY_BATCH for call in self.graph.calls if call.name in self.mixing):
            return "use `GroupNorm`, or keep that layer in `eval()` during training, where it uses running statistics"
        return "write the loss as a mean of per-sample terms, `per_sample_loss.mean()`"

    def among(self, name: str, rows: BatchRows) -> Rule:
        """Return the rule of a call that mixes samples, for the rows of both passes."""
        rule = self.rules[name]
        if isinstance(rule, Rounded):
            assert isinstance(rule.rule, BatchStatistics | BatchShare)
            return replace(rule, rule=replace(rule.rule, rows=rows))
        assert isinstance(rule, BatchStatistics | BatchShare)
        return replace(rule, rows=rows)

    def arithmetic(self, name: str, own: torch.dtype) -> Arithmetic:
        """Return the roundings of a call; those of bounds in type ``own`` alone if its rule does not cover any."""
        rule = self.rules[name]
        return rule.arithmetic(self.sites[name]) if isinstance(rule, Rounded) else Arithmetic(None, own)

    @property
    def unstated(self) -> tuple[str, ...]:
        """Names of the operations whose rules state no roundings, so that their bounds are widened to be safe."""
        silent = {
            name_of(self.sites[call].call)
            for call, rule in self.exact.rules.items()
            if rule.at(self.sites[call]).roundings(self.sites[call]) is UNSTATED
        }
        return tuple(sorted(silent))

    @property
    def exact(self) -> Program:
        """The same program with rules in real arithmetic that cover no rounding."""

        def plain(rules: Mapping[str, Rule]) -> dict[str, Rule]:
            return {call: rule.rule if isinstance(rule, Rounded) else rule for call, rule in rules.items()}

        return replace(self, rules=plain(self.rules), shared=plain(self.shared), floats=None)

    def with_rounding(self, own: torch.dtype, floats: Floats) -> Program:
        """Return the same program with rules that cover rounding.

        Args:
            own: floating point type in which bounds are computed.
            floats: whether the program runs in its own types, or in real arithmetic.
        """

        def rounded(rules: Mapping[str, Rule]) -> dict[str, Rule]:
            return {call: Rounded(rule, own, floats) for call, rule in rules.items()}

        exact = self.exact
        return replace(self, rules=rounded(exact.rules), shared=rounded(exact.shared), floats=floats)


def _rule(call: Call, table: RuleTable) -> Rule | None:
    rule = table.get(call.op)
    discrete = not call.dtype.is_floating_point and call.op in DISCRETE
    return DiscreteFunction(rule) if discrete else rule


def _site(graph: Graph, call: Call, samples: frozenset[str], trainable: frozenset[str]) -> Site:
    names = call.inputs
    producers = [graph.producer(name) for name in names]
    return Site(
        call=call,
        shapes=tuple(graph.shapes[name] for name in names),
        samples=tuple(name in samples for name in names),
        trainable=tuple(name in trainable for name in names),
        kinds=tuple(graph.types[name] for name in names if name in graph.types and name in trainable),
        types=tuple(
            graph.types[name] if producer is None else producer.dtype
            for name, producer in zip(names, producers, strict=True)
            if producer is not None or name in graph.types
        ),
    )


def _shared_problems(site: Site, rule: Rule | None, trainable: frozenset[str]) -> list[str]:
    """Refuse calls without samples that are random, and those on trainable parameters without bounds."""
    call = site.call
    if is_random(call):
        return [f"`{name_of(call)}` at {call.source} draws random numbers. Draw them once, outside `training_step`."]
    if call.op in RECURRENT:
        return [_unknown(call)]
    if call.name in trainable and (rule is None or not rule.takes_parameters(site)):
        return [
            f"`{name_of(call)}` at {call.source} changes a parameter before it meets the data; there is no rule for "
            "that. Change it by calls that act element by element or move elements, let data meet the parameter as it "
            "is, such as `x + table.weight` for an embedding of positions, or call `module.double()` before training "
            "for a change of type; otherwise train the changed parameter directly."
        ]
    problem = rule.problem(site) if call.name in trainable and isinstance(rule, ElementwiseRule) else None
    return [] if problem is None else [problem]


def _of_whole_batch(site: Site) -> str | None:
    """Refuse calls on a number that was computed from all samples: it has no row for each of them."""
    if not any(samples and not shape for samples, shape in zip(site.samples, site.shapes, strict=True)):
        return None
    return (
        f"`{name_of(site.call)}` at {site.call.source} takes a number that all samples determine. Add such "
        "numbers, or multiply them by constants; anything else has no bounds."
    )


def is_random(call: Call) -> bool:
    """Return whether a call draws random numbers; recurrent layers and attention do so with dropout alone.

    Attention that is given its mask draws none.
    """
    dropout = call.arguments.get("dropout", call.arguments.get("dropout_p"))
    given = call.arguments.get("dropout_mask") is not None
    return torch.Tag.nondeterministic_seeded in call.op.tags and dropout != 0 and not given


def _unknown(call: Call) -> str:
    way_out = _WAYS_OUT.get(name_of(call), BATCH_STATISTICS if call.arguments.get("training") else None)
    if call.op in RECURRENT:
        return (
            f"`{name_of(call)}` at {call.source} has a setting that is not covered. Use `batch_first=True`, "
            "`dropout` between layers on a CPU alone, no `proj_size`, no packed sequences, and no state of your own "
            "before the first step."
        )
    if way_out is not None:
        return f"`{name_of(call)}` at {call.source} {way_out}."
    if is_random(call):
        return f"`{name_of(call)}` at {call.source} draws random numbers, which the bounds cannot share. Remove it."
    return (
        f"`{call.op}` at {call.source} has no bound rule. Replace that layer, or add a rule with "
        "`agt_lightning.rules.register_rule`."
    )
