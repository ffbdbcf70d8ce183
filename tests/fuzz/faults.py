"""Plausible mistakes in every part of the package, and how long the fuzzer needs to find each.

python -m tests.fuzz.faults --seed 0 --minutes 30
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
import torch

from agt_lightning import BoundedAdversary, ParameterBounds, UnboundedAdversary
from agt_lightning.adversaries import bounded, features
from agt_lightning.aggregation import bounded_descent, descent, gains, sample_clipping, top_n_sum
from agt_lightning.aggregation.mean_clipping import MeanNormClipping, MeanValueClipping
from agt_lightning.arithmetic import floating_point, products
from agt_lightning.domains import DomainFamily
from agt_lightning.domains import box as box_domain
from agt_lightning.domains.ball import radius as ball_radius
from agt_lightning.engine import bounded_runs, engine, nominal_step, probes, step_bounds
from agt_lightning.errors import AgtError, UncertifiableError
from agt_lightning.gradients import outer_product
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.optimizers import (
    AbstractAdagrad,
    AbstractAdam,
    AbstractAdamW,
    AbstractRMSprop,
    AbstractSGD,
    checked_update,
)
from agt_lightning.propagation import prefix
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.prefix import PoisonedPrefix
from agt_lightning.rules import RULES, Site
from agt_lightning.rules import convolution as convolution_rules
from agt_lightning.rules import linear as linear_rules
from agt_lightning.rules.loss import BinaryCrossEntropy, CrossEntropy
from agt_lightning.rules.values import as_interval
from tests.fuzz.blocks import BLOCKS
from tests.fuzz.check import worst_violation
from tests.fuzz.facts import FactError, checked_facts
from tests.fuzz.report import say
from tests.fuzz.runs import Poisoning
from tests.fuzz.trainings import Training, given_block, training
from tests.propagation.crown.test_planted_faults import FAULTS as CROWN_FAULTS
from tests.rules.test_planted_faults import BROKEN_RULES
from tests.rules.test_planted_faults_in_convolutions import BROKEN_RULES as BROKEN_CONVOLUTIONS
from tests.rules.test_planted_faults_in_networks import BROKEN_RULES as BROKEN_NETWORKS

Patch = Callable[[pytest.MonkeyPatch], Any]


@dataclass(frozen=True)
class Planted:
    """A mistake that is put into the package for one certification.

    Args:
        name: what is wrong.
        plant: puts it in place.
        settings: of the bounds, with it.
        operation: name of the operation that must be in the loss; None for all losses.
        concerns: whether it can matter to a training.
    """

    name: str
    plant: Patch = lambda patch: None
    settings: Mapping[str, Any] = field(default_factory=dict)
    operation: str | None = None
    concerns: Callable[[Training], bool] = lambda case: True

    def may_matter(self, case: Training, operations: list[str]) -> bool:
        """Return whether a training can show the mistake."""
        return (self.operation is None or self.operation in operations) and self.concerns(case)

    def found(self, case: Training, poisoning: Poisoning, trainings: int) -> set[str]:
        """Return how it is noticed: by a poisoned run, or by the package itself; nothing if it is not.

        Where the package's own checks stop it, it is certified again without them, to see whether runs alone show it.

        Args:
            case: the training.
            poisoning: poisoned trainings of it that do not know of bounds.
            trainings: further ones, which aim at the bounds.
        """
        with pytest.MonkeyPatch.context() as patch:
            self.plant(patch)
            bounds, stopped = _certified(case, self.settings)
            if stopped in CHECKS:
                _leave_out_checks(patch)
                bounds, _ = _certified(case, self.settings)
        noticed = {stopped} if stopped else set[str]()
        if bounds and (_outside(bounds, poisoning) or _outside(bounds, poisoning.toward(bounds, trainings))):
            noticed.add(RUN)
        return noticed


RUN, FACT, CHECKS = "poisoned run", "wrong fact", ("self-check", "refusal")
"""Ways to notice a mistake: the first two are the fuzzer's, the others the package's own."""


def _certified(case: Training, settings: Mapping[str, Any]) -> tuple[list[ParameterBounds], str]:
    """Return the bounds after each step; or none, and what stopped the training."""
    try:
        with checked_facts():
            return case.certified(**settings), ""
    except UncertifiableError:  # of a training that is certified without the mistake
        return [], "refusal"
    except AgtError:
        return [], "self-check"
    except FactError:
        return [], FACT
    except Exception:  # the mistake makes the code crash
        return [], "crash"


def _leave_out_checks(patch: pytest.MonkeyPatch) -> None:
    """Let the package go on where the clean run is outside of its bounds, in a step or in what is tried before."""
    for module in (engine, probes, step_bounds, checked_update):
        patch.setattr(module, "require_inside", lambda *given: None)


def _outside(bounds: list[ParameterBounds], poisoning: Poisoning) -> bool:
    return worst_violation(bounds, poisoning.runs) is not None


# --- rules ------------------------------------------------------------------------------------------------------------

INVISIBLE = frozenset(
    {
        "detach: gradient passes",  # what is behind `detach` alone is trained by no gradient
        "mse: sign of the label's gradient",  # labels are not trained
        "mse: interior minimum missed",  # the value of a loss is in no gradient
        "cross-entropy: flips forgotten",  # in the bounds on real arithmetic alone; see below
        "binary cross-entropy: one label",  # likewise
    }
)
"""Broken rules that change no parameter's bounds, so that only the laws of rules find them."""


class _WithoutFlips(CrossEntropy):
    """Takes labels as they are."""

    def target(self, site: Site, logits: Interval, target: Any) -> Interval:
        return super().target(
            site, logits, replace(target, flippable=False) if isinstance(target, ClassLabels) else target
        )


class _OneLabel(BinaryCrossEntropy):
    """Takes the smaller label."""

    def slope(self, site: Site, inputs: Any) -> Interval:
        return super().slope(site, [inputs[0], Interval.point(as_interval(inputs[1]).lower), *inputs[2:]])


_OWN_RULES = {
    "cross-entropy: flips forgotten in targets": (torch.ops.aten.cross_entropy_loss.default, _WithoutFlips()),
    "binary cross-entropy: one label in slopes": (
        torch.ops.aten.binary_cross_entropy_with_logits.default,
        _OneLabel(),
    ),
}

_RULES = [
    Planted(name, settings={"rules": {**RULES, op: rule}}, operation=str(op).removeprefix("aten."))
    for broken in (BROKEN_RULES, BROKEN_CONVOLUTIONS, BROKEN_NETWORKS, _OWN_RULES)
    for name, (op, rule) in broken.items()
    if name not in INVISIBLE
]


def _crown(fault: Any) -> Planted:
    return Planted(
        f"substitution: {fault.name}",
        lambda patch: patch.setattr(*fault.place, fault.broken),
        operation=str(fault.check.op).removeprefix("aten."),
        concerns=lambda case: case.engine["method"] != "ibp",
    )


# --- arithmetic -------------------------------------------------------------------------------------------------------


def _put(owner: object, name: str, value: object) -> Patch:
    return lambda patch: patch.setattr(owner, name, value)


def _of_midpoints(a: Interval, b: Interval) -> Interval:
    return Interval.point(a.center @ b.center)


def _of_like_ends(a: Interval, b: Interval) -> Interval:
    ends = torch.stack([a.lower @ b.lower, a.upper @ b.upper])
    return Interval.trusted(ends.amin(0), ends.amax(0))


def _half_radius(a: Interval, b: Interval) -> Interval:
    exact = products.product(a, b)
    return Interval.trusted(exact.center - 0.5 * exact.radius, exact.center + 0.5 * exact.radius)


def _unmoved(a: Interval, by: Any, *, nonnegative: bool = False) -> Interval:
    return Interval.trusted(a.lower, a.upper, nonnegative=a.nonnegative)


_ARITHMETIC = [
    Planted("product: midpoints alone", _put(linear_rules, "product", _of_midpoints), operation="linear.default"),
    Planted("product: like ends alone", _put(linear_rules, "product", _of_like_ends), operation="linear.default"),
    Planted("product: half of the radius", _put(linear_rules, "product", _half_radius), operation="linear.default"),
    Planted("outer product: half of the radius", _put(outer_product, "product", _half_radius)),
    Planted(
        "interval: sum of like ends for a difference",
        _put(Interval, "__sub__", lambda a, b: a + Interval.point(-b.center)),
    ),
    Planted(
        "interval: negative without exchange", _put(Interval, "__neg__", lambda a: Interval.trusted(-a.lower, -a.upper))
    ),
    Planted(
        "interval: square of the ends", _put(Interval, "square", lambda a: Interval.trusted(a.lower**2, a.upper**2))
    ),
    Planted("interval: nothing is widened", _put(Interval, "widened", _unmoved), concerns=lambda case: True),
    Planted("floats: a run does not round", _put(floating_point.Arithmetic, "run_relative", lambda self, k: 0.0)),
    Planted(
        "floats: nothing rounds",
        lambda patch: (
            patch.setattr(floating_point.Arithmetic, "run_relative", lambda self, k: 0.0),
            patch.setattr(floating_point.Arithmetic, "own_relative", lambda self, k: 0.0),
        ),
    ),
    Planted(
        "convolution: ball for the box",
        _put(convolution_rules, "intersection", lambda product, ball: ball.widened(-0.5 * ball.radius)),
        concerns=lambda case: getattr(case.adversary, "p", 0) in (1, 2),
    ),
]

# --- aggregation ------------------------------------------------------------------------------------------------------


def _descent(changed: Callable[..., Interval]) -> Patch:
    return _put(box_domain, "bounded_descent", changed)


def _one_less(clean: Any, poisoned: Any, samples: Any, n: int, budget: int) -> Interval:
    return bounded_descent(clean, poisoned, samples, max(0, n - 1), budget)


def _without_poison(clean: Any, poisoned: Any, samples: Any, n: int, budget: int) -> Interval:
    return bounded_descent(clean, None, samples, n, budget)


def _without_mirror(clean: Any, poisoned: Any, samples: Any, n: int, budget: int) -> Interval:
    full, plain = (bounded_descent(clean, each, samples, n, budget) for each in (poisoned, None))
    return Interval.trusted(plain.lower, full.upper)


def _bounded(case: Training) -> bool:
    return isinstance(case.adversary, BoundedAdversary) and case.adversary.n > 0


def _unbounded(case: Training) -> bool:
    return isinstance(case.adversary, UnboundedAdversary) and case.adversary.n > 0


def _clipped_as_point(self: Any, block: Interval) -> Interval:
    """Clip points to points by the smallest norm of the whole gradient, whatever that is (A1)."""
    factor = (self.kappa / self.square_norms.lower.sqrt()).clamp(max=1.0)
    if block.is_point:
        return Interval.point(block.lower * factor)
    return _clip(self, block)


_clip = sample_clipping.NormClipping.__call__


def _half_masked(patch: pytest.MonkeyPatch) -> None:
    kept = gains.top_n_gains
    patch.setattr(descent, "top_n_gains", lambda *given: tuple(0.5 * each for each in kept(*given)))


_AGGREGATION = [
    Planted("exact sum: n - 1 samples", _descent(_one_less), concerns=_bounded),
    Planted("exact sum: no poison", _descent(_without_poison), concerns=_bounded),
    Planted("exact sum: lower bound not mirrored", _descent(_without_mirror), concerns=_bounded),
    Planted("exact sum: half of the gains", _half_masked, concerns=_bounded),
    Planted(
        "exact sum: all poisoned for the clean sum",
        _put(
            descent,
            "sum_if_all_poisoned",
            lambda clean, poisoned, samples, budget: descent.weighted_sum(clean, samples.weights, budget),
        ),
        concerns=_bounded,
    ),
    Planted(
        "substitution of samples: n - 1",
        _put(descent, "top_n_sum", lambda found, n, *more: top_n_sum(found, max(0, n - 1), *more)),
        concerns=_unbounded,
    ),
    Planted(
        "clipping: points stay points",
        _put(sample_clipping.NormClipping, "__call__", _clipped_as_point),
        concerns=_unbounded,
    ),
    Planted(
        "clipping: half of the level",
        _put(
            sample_clipping.ValueClipping,
            "__call__",
            lambda self, block: block.mapped(lambda bound: bound.clamp(-self.kappa / 2, self.kappa / 2)),
        ),
        concerns=_unbounded,
    ),
]

# --- adversaries ------------------------------------------------------------------------------------------------------


def _adversary(change: Callable[[BoundedAdversary], BoundedAdversary], name: str) -> Patch:
    kept = getattr(BoundedAdversary, name)
    return _put(BoundedAdversary, name, lambda self, *given: kept(change(self), *given))


def _features(case: Training) -> bool:
    return _bounded(case) and bool(case.adversary.perturbs_features)


def _labels(case: Training) -> bool:
    return _bounded(case) and bool(case.adversary.perturbs_labels)


def _reachable_targets(self: ClassLabels, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(self.index, classes).bool()


_ADVERSARIES = [
    Planted(
        "features: half of ε",
        _adversary(lambda a: replace(a, epsilon=a.epsilon / 2), "poisoned_features"),
        concerns=_features,
    ),
    Planted(
        "features: Euclidean ball for the box",
        _put(bounded, "perturbed", lambda x, e, p, r: features.perturbed(x, e, 2, r)),
        concerns=lambda case: _features(case) and case.adversary.p > 2,
    ),
    Planted(
        "features: ball of ℓ1 for the Euclidean one",
        _put(bounded, "perturbed", lambda x, e, p, r: features.perturbed(x, e, 1 if p == 2 else p, r)),
        concerns=lambda case: _features(case) and case.adversary.p == 2,
    ),
    Planted(
        "labels: half of ν",
        _adversary(lambda a: a if a.q == 0 else replace(a, nu=a.nu / 2), "poisoned_labels"),
        concerns=lambda case: _labels(case) and case.adversary.q != 0,
    ),
    Planted(
        "labels: no flips of classes",
        _put(ClassLabels, "reachable", _reachable_targets),
        concerns=lambda case: _labels(case) and case.labels == "class",
    ),
    Planted(
        "labels: sources and targets exchanged",
        _adversary(
            lambda a: replace(a, source_classes=a.target_classes, target_classes=a.source_classes), "poisoned_labels"
        ),
        concerns=lambda case: _labels(case) and getattr(case.adversary, "target_classes", None) is not None,
    ),
    Planted(
        "samples: nobody can be poisoned",
        lambda patch: None,
        settings={"poisonable": lambda batch: torch.zeros(len(batch[0]), dtype=torch.bool)},
        concerns=lambda case: case.adversary.n > 0,
    ),
]

# --- propagation and domains ------------------------------------------------------------------------------------------


def _small_ball(patch: pytest.MonkeyPatch) -> None:
    kept = ball_radius.next_radius
    patch.setattr(ball_radius, "next_radius", lambda *given: 0.1 * kept(*given))


def _clean_prefix(patch: pytest.MonkeyPatch) -> None:
    def clean(self: PoisonedPrefix) -> dict[str, Any]:
        names = (self._touched & self.bounded.frozen_layers) - self.bounded.inside_frozen_layers
        return {name: self.values[name] if self.rows is None else self.values[name][self.rows] for name in names}  # type: ignore[index]

    patch.setattr(PoisonedPrefix, "moved_layers", property(clean))


def _half_weight(patch: pytest.MonkeyPatch) -> None:
    kept = BoundedObjective.sample_weight
    patch.setattr(BoundedObjective, "sample_weight", lambda self, size: kept(self, 2 * size))


_PROPAGATION = [
    Planted("frozen layers: clean for poisoned", _clean_prefix, concerns=_features),
    Planted("loss: half of the samples' weight", _half_weight),
    Planted("ball: a tenth of the radius", _small_ball, concerns=lambda case: case.engine["domains"] == "auto"),
    Planted(
        "box: a quarter of the step's bounds",
        _put(
            box_domain,
            "checked_update",
            lambda name, counterpart, group, state, box, gradient, trained: _CHECKED(
                name,
                counterpart,
                group,
                state,
                box,
                Interval.trusted(gradient.center - gradient.radius / 4, gradient.center + gradient.radius / 4),
                trained,
            ),
        ),
    ),
]
_CHECKED = box_domain.checked_update


def _norm_of_the_middle(self: MeanNormClipping, gradients: Mapping[str, Interval], *given: Any) -> dict[str, Interval]:
    norm = torch.stack([interval.center.square().sum() for interval in gradients.values()]).sum().sqrt()
    factor = (self.limit / (norm + 1e-6)).clamp(max=1.0)
    return {name: Interval.trusted(each.lower * factor, each.upper * factor) for name, each in gradients.items()}


def _norms_by_parameter(self: MeanNormClipping, gradients: Mapping[str, Interval], *given: Any) -> dict[str, Interval]:
    return {name: _NORM_BOUNDS(self, {name: each}, *given)[name] for name, each in gradients.items()}


_NORM_BOUNDS = MeanNormClipping.bounds


def _clips_by_norm(case: Training) -> bool:
    return isinstance(case.clipping, MeanNormClipping)


_CLIPPING = [
    Planted(
        "mean clipping: norm of the middle",
        _put(MeanNormClipping, "bounds", _norm_of_the_middle),
        concerns=_clips_by_norm,
    ),
    Planted(
        "mean clipping: a norm for each parameter",
        _put(MeanNormClipping, "bounds", _norms_by_parameter),
        concerns=_clips_by_norm,
    ),
    Planted(
        "mean clipping: half of the limit",
        _put(
            MeanValueClipping,
            "bounds",
            lambda self, *given: _VALUE_BOUNDS(MeanValueClipping(self.limit / 2), *given),
        ),
        concerns=lambda case: isinstance(case.clipping, MeanValueClipping),
    ),
]
_VALUE_BOUNDS = MeanValueClipping.bounds

# --- several adversaries ----------------------------------------------------------------------------------------------


def _one_state_for_all(patch: pytest.MonkeyPatch) -> None:
    families: dict[int, DomainFamily] = {}

    def made(module: Any, adversary: Any, config: Any, processes: Any) -> DomainFamily:
        return families.setdefault(id(module), DomainFamily(module, adversary, config, processes))

    patch.setattr(bounded_runs, "DomainFamily", made)


def _moves_of_the_first(patch: pytest.MonkeyPatch) -> None:
    kept = engine.AbstractGradientEngine.update

    def update(self: Any, bounds: Any, *given: Any) -> None:
        kept(self, replace(bounds, runs=bounds.runs[:1] * len(bounds.runs)), *given)

    patch.setattr(engine.AbstractGradientEngine, "update", update)


def _several(case: Training) -> bool:
    return bool(case.companions) and case.adversary.n > 0


_SEVERAL = [
    Planted("several adversaries: one state for all", _one_state_for_all, concerns=_several),
    Planted("several adversaries: moves of the first", _moves_of_the_first, concerns=_several),
    Planted(
        "several adversaries: step of the first",
        _put(nominal_step.NominalPass, "against", lambda self, step, adversary: step),
        concerns=_several,
    ),
    Planted(
        "several adversaries: frozen layers of the one before",
        _put(prefix, "same_values", lambda *given: True),
        concerns=_several,
    ),
    Planted(
        "several adversaries: results of the first",
        _put(engine, "describe", lambda adversary: type(adversary).__name__),
        concerns=_several,
    ),
]

# --- optimizers -------------------------------------------------------------------------------------------------------


def _group(owner: type, **changes: object) -> Patch:
    kept = owner.step  # type: ignore[attr-defined]
    return _put(
        owner,
        "step",
        lambda self, group, state, box, gradient, arithmetic=None: kept(
            self, {**group, **changes}, state, box, gradient, arithmetic
        ),
    )


def _state(owner: type, change: Callable[[Any], Any]) -> Patch:
    kept = owner.step  # type: ignore[attr-defined]
    return _put(
        owner,
        "step",
        lambda self, group, state, box, gradient, arithmetic=None: kept(
            self, group, change(state), box, gradient, arithmetic
        ),
    )


def _shrunk(state: Any) -> Any:
    """Take the middle of every moment for the whole of it."""
    points = {
        name: Interval.point(moment.center, nonnegative=moment.nonnegative) for name, moment in state.moments.items()
    }
    return replace(state, moments=points)


def _of(kind: type, **settings: object) -> Callable[[Training], bool]:
    return lambda case: case.optimizer is kind and all(case.settings.get(k, False) == v for k, v in settings.items())


_OPTIMIZERS = [
    Planted("SGD: no momentum", _group(AbstractSGD, momentum=0.0), concerns=_of(torch.optim.SGD, momentum=0.9)),
    Planted("SGD: no dampening", _group(AbstractSGD, dampening=0.0), concerns=_of(torch.optim.SGD, dampening=0.3)),
    Planted("SGD: no look-ahead", _group(AbstractSGD, nesterov=False), concerns=_of(torch.optim.SGD, nesterov=True)),
    Planted("SGD: no decay", _group(AbstractSGD, weight_decay=0.0), concerns=_of(torch.optim.SGD, weight_decay=0.2)),
    Planted("SGD: minimizes", _group(AbstractSGD, maximize=False), concerns=_of(torch.optim.SGD, maximize=True)),
    Planted("SGD: middle of the buffer", _state(AbstractSGD, _shrunk), concerns=_of(torch.optim.SGD, momentum=0.9)),
    Planted("Adam: middle of the moments", _state(AbstractAdam, _shrunk), concerns=_of(torch.optim.Adam)),
    Planted(
        "Adam: steps not counted",
        _state(AbstractAdam, lambda state: replace(state, step=0)),
        concerns=_of(torch.optim.Adam),
    ),
    Planted(
        "Adam: other betas", _group(AbstractAdam, betas=(0.9, 0.999)), concerns=_of(torch.optim.Adam, betas=(0.5, 0.9))
    ),
    Planted(
        "Adam: decay decoupled",
        _group(AbstractAdam, decoupled_weight_decay=True),
        concerns=_of(torch.optim.Adam, weight_decay=0.1),
    ),
    Planted(
        "AdamW: decay not decoupled",
        _group(AbstractAdamW, decoupled_weight_decay=False),
        concerns=_of(torch.optim.AdamW),
    ),
    Planted(
        "RMSprop: no momentum", _group(AbstractRMSprop, momentum=0.0), concerns=_of(torch.optim.RMSprop, momentum=0.5)
    ),
    Planted("RMSprop: middle of the state", _state(AbstractRMSprop, _shrunk), concerns=_of(torch.optim.RMSprop)),
    Planted("Adagrad: rate does not fall", _group(AbstractAdagrad, lr_decay=0.0), concerns=_of(torch.optim.Adagrad)),
    Planted("Adagrad: middle of the sum", _state(AbstractAdagrad, _shrunk), concerns=_of(torch.optim.Adagrad)),
]

FAULTS = (
    *_RULES,
    *map(_crown, CROWN_FAULTS),
    *_ARITHMETIC,
    *_AGGREGATION,
    *_ADVERSARIES,
    *_PROPAGATION,
    *_SEVERAL,
    *_CLIPPING,
    *_OPTIMIZERS,
)
"""All mistakes that are planted."""


def search(faults: Sequence[Planted], seeds: Iterator[int], minutes: float, trainings: int) -> Search:
    """Look for mistakes in one training after another, until runs have shown all of them or time is over.

    Args:
        faults: mistakes.
        seeds: of the trainings.
        minutes: after which no other is begun.
        trainings: poisoned ones for each, half of which aim at the bounds.

    Raises:
        FactError: if a training has a wrong fact without a mistake, which is a finding of its own.
    """
    result, end = Search(faults), time.monotonic() + 60 * minutes
    while result.missing and time.monotonic() < end:
        case, began = training(next(seeds)), time.monotonic()
        result.trainings += 1
        try:
            operations = case.operations()
            tried = [fault for fault in result.missing if fault.may_matter(case, operations)]
            if not tried:
                continue
            with checked_facts():
                case.certified()
        except (AgtError, ValueError):
            continue
        poisoning = Poisoning.of(case, (trainings + 1) // 2)
        result.seconds += time.monotonic() - began
        for fault in tried:
            began = time.monotonic()
            noticed = fault.found(case, poisoning, trainings // 2)
            result.add(fault, noticed, time.monotonic() - began)
    return result


@dataclass
class Search:
    """What a search has found.

    Args:
        faults: that are looked for.
        first: how each was noticed first, by its name.
        shown: names of those that a run or a wrong fact has shown, without the package's checks if they came first.
        trainings: that were drawn.
        seconds: of certifying and poisoning without mistakes.
        each: seconds of certifying with each mistake and of poisoning its bounds, by its name.
    """

    faults: Sequence[Planted]
    first: dict[str, str] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)
    trainings: int = 0
    seconds: float = 0.0
    each: Counter[str] = field(default_factory=Counter)

    @property
    def missing(self) -> list[Planted]:
        """The mistakes that the fuzzer has not shown."""
        return [fault for fault in self.faults if fault.name not in self.shown]

    def add(self, fault: Planted, noticed: set[str], seconds: float) -> None:
        """Add what one training shows of a mistake, and print what is new."""
        self.each[fault.name] += seconds
        new = {how for how in noticed if how == RUN or fault.name not in self.first}
        if not new:
            return
        self.first.setdefault(fault.name, min(noticed, key=lambda how: how == RUN))  # checks come before runs
        if new & {RUN, FACT}:
            self.shown.add(fault.name)
        hows = " and ".join(sorted(new))
        say(f"| {fault.name} | {hows} | {self.trainings} | {self.seconds + self.each[fault.name]:.0f} |")

    def summary(self) -> str:
        """Return the counts, and the names of what was missed."""
        counts = ", ".join(f"{times} by a {how}" for how, times in Counter(self.first.values()).most_common())
        lines = [
            f"{len(self.first)} of {len(self.faults)} noticed in {self.trainings} trainings: first {counts}",
            f"{len(self.shown)} shown by the fuzzer alone",
            *(f"not shown by the fuzzer: {fault.name}" for fault in self.missing if fault.name in self.first),
            *(f"not noticed: {fault.name}" for fault in self.missing if fault.name not in self.first),
        ]
        return "\n".join(lines)


def main() -> None:
    """Search for mistakes until runs have shown all of them or time is over, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--trainings", type=int, default=20)
    parser.add_argument("--names", nargs="*", help="beginnings of names of mistakes; all without it")
    parser.add_argument("--blocks", nargs="*", help="names of blocks, of which trainings are given one; any without it")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = tuple(given.names or [""])
    say("| mistake | noticed by | trainings | seconds |\n|---|---|---|---|")
    faults = [fault for fault in FAULTS if fault.name.startswith(names)]
    known = {block.name for block in BLOCKS}
    if not faults or not known.issuperset(given.blocks or ()):
        parser.error(f"Expected beginnings of {[f.name for f in FAULTS]} and some of the blocks {sorted(known)}.")
    seeds = (seed for seed in count(given.seed) if given.blocks is None or given_block(seed).name in given.blocks)
    say(search(faults, seeds, given.minutes, given.trainings).summary())


if __name__ == "__main__":
    main()
