"""The laws notice when one piece of an abstract optimizer is broken."""

import pytest
import torch

from agt_lightning.interval import Interval
from agt_lightning.optimizers import AbstractAdagrad, AbstractAdam, AbstractAdamW, AbstractRMSprop, AbstractSGD, adam
from agt_lightning.optimizers import OptimizerState as State
from tests.optimizers.oracles import Setting, check_containment, check_points

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


def with_group(base, **changes):
    """A counterpart that reads other settings."""

    class Changed(base):
        def step(self, group, state, box, gradient):
            return super().step({**group, **changes}, state, box, gradient)

    return Changed()


class Dampened(AbstractSGD):
    """Dampens the first step too."""

    def step(self, group, state, box, gradient):
        if not state.moments:
            zero = Interval.point(torch.zeros_like(box.lower))
            state = State(state.step, {"momentum_buffer": zero})
        return super().step(group, state, box, gradient)


class Uncorrected(AbstractAdam):
    """Has no bias correction."""

    def step(self, group, state, box, gradient):
        new, moved = super().step(group, State(10_000, state.moments), box, gradient)
        return State(state.step + 1, new.moments), moved


class OneCount(AbstractAdam):
    """Does not count its steps."""

    def step(self, group, state, box, gradient):
        return super().step(group, State(0, state.moments), box, gradient)


class SmallCap(AbstractAdam):
    """Caps the step by what a constant gradient does: one."""

    def step(self, group, state, box, gradient):
        new, moved = super().step(group, state, box, gradient)
        rate = group["lr"]
        return new, Interval.trusted(
            torch.maximum(moved.lower, box.lower - rate), torch.minimum(moved.upper, box.upper + rate)
        )


class CrossedMoments(AbstractAdam):
    """Divides each end of m by the root of the same end of v."""

    def step(self, group, state, box, gradient):
        new, _ = super().step(group, state, box, gradient)
        beta1, beta2 = group["betas"]
        roots = [(v / (1 - beta2**new.step)).sqrt() + group["eps"] for v in ends(new.moments["exp_avg_sq"])]
        means = [m / (1 - beta1**new.step) for m in ends(new.moments["exp_avg"])]
        moves = torch.stack([mean / root for mean, root in zip(means, roots, strict=True)])
        rate = group["lr"]
        return new, Interval(box.lower - rate * moves.amax(dim=0), box.upper - rate * moves.amin(dim=0))


class ForgetfulMaximum(AbstractAdam):
    """AMSGrad without its memory."""

    def step(self, group, state, box, gradient):
        new, moved = super().step(group, state, box, gradient)
        return State(new.step, {**new.moments, "max_exp_avg_sq": new.moments["exp_avg_sq"]}), moved


class SquaredEnds(AbstractRMSprop):
    """Squares the ends of a gradient interval, also where it straddles zero."""

    def step(self, group, state, box, gradient):
        new, moved = super().step(group, state, box, gradient)
        old, memory = state.moments["square_avg"], group["alpha"]
        squares = torch.stack([end.square() for end in ends(gradient)])
        wrong = Interval(
            memory * old.lower + (1 - memory) * squares.amin(dim=0),
            memory * old.upper + (1 - memory) * squares.amax(dim=0),
        )
        return State(new.step, {**new.moments, "square_avg": wrong}), moved


class LateDecay(AbstractAdagrad):
    """Starts the decay of the rate one step early."""

    def step(self, group, state, box, gradient):
        new, moved = super().step(group, State(state.step + 1, state.moments), box, gradient)
        return State(state.step + 1, new.moments), moved


def ends(interval):
    return interval.lower, interval.upper


FAULTS = {
    "dampening at the first step": (SGD, {"momentum": 0.9, "dampening": 0.4}, Dampened()),
    "dampening forgotten": (SGD, {"momentum": 0.9, "dampening": 0.4}, with_group(AbstractSGD, dampening=0.0)),
    "nesterov forgotten": (SGD, {"momentum": 0.9, "nesterov": True}, with_group(AbstractSGD, nesterov=False)),
    "momentum forgotten": (SGD, {"momentum": 0.9}, with_group(AbstractSGD, momentum=0.0)),
    "maximize forgotten by SGD": (SGD, {"maximize": True}, with_group(AbstractSGD, maximize=False)),
    "maximize forgotten by Adam": (ADAM, {"maximize": True}, with_group(AbstractAdam, maximize=False)),
    "bias corrections forgotten": (ADAM, {}, Uncorrected()),
    "steps not counted": (ADAM, {}, OneCount()),
    "cap of one": (ADAM, {"betas": (0.9, 0.95)}, SmallCap()),
    "ends of moments paired": (ADAM, {}, CrossedMoments()),
    "maximum without memory": (ADAM, {"amsgrad": True, "betas": (0.6, 0.7)}, ForgetfulMaximum()),
    "decay not decoupled": (ADAMW, {"weight_decay": 0.5}, with_group(AbstractAdamW, decoupled_weight_decay=False)),
    "decay decoupled": (ADAM, {"weight_decay": 0.5}, with_group(AbstractAdam, decoupled_weight_decay=True)),
    "larger eps": (ADAM, {"eps": 0.1}, with_group(AbstractAdam, eps=0.2)),
    "ends squared": (torch.optim.RMSprop, {"alpha": 0.5}, SquaredEnds()),
    "momentum of RMSprop forgotten": (torch.optim.RMSprop, {"momentum": 0.9}, with_group(AbstractRMSprop, momentum=0)),
    "rate decays too early": (torch.optim.Adagrad, {"lr_decay": 0.3}, LateDecay()),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(name):
    kind, flags, counterpart = FAULTS[name]
    setting = Setting(kind, {"lr": 0.1, **flags})
    with pytest.raises(AssertionError, match="leaves its box|differs from torch"):
        check_all(setting, counterpart)


def check_all(setting, counterpart=None):
    check_points(setting, counterpart)
    check_containment(setting, counterpart)


def test_a_quotient_without_its_peak_is_noticed(monkeypatch):
    """The largest step is not always at an end of the gradient's interval."""
    monkeypatch.setattr(adam, "quotient", without_peak(adam.quotient))
    with pytest.raises(AssertionError, match="leaves its box"):
        check_all(Setting(ADAM, {"lr": 0.1, "betas": (0.6, 0.6)}))


def without_peak(quotient):
    def broken(offset, slope, base, curvature, shift, x, floor=None):
        point = Interval.point
        parts = [quotient(offset, slope, base, curvature, shift, point(end), floor) for end in ends(x)]
        return parts[0].hull(parts[1])

    return broken
