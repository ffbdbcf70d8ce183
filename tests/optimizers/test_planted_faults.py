"""The laws notice when one piece of an abstract optimizer is broken."""

from dataclasses import dataclass

import pytest
import torch

from agt_lightning.interval import Interval
from agt_lightning.optimizers import AbstractAdagrad, AbstractAdam, AbstractAdamW, AbstractRMSprop, AbstractSGD, adam
from agt_lightning.optimizers import OptimizerState as State
from tests.faults import Fault, require_checks_pass
from tests.optimizers.oracles import Setting, check_containment, check_points, check_sgd

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


@dataclass(frozen=True)
class Runs:
    """Runs of torch's optimizer inside the counterpart's boxes; that of the table unless another is given."""

    kind: type[torch.optim.Optimizer]
    flags: tuple[tuple[str, object], ...] = ()

    def __call__(self, counterpart=None):
        setting = Setting(self.kind, {"lr": 0.1, **dict(self.flags)})
        check_points(setting, counterpart)
        check_containment(setting, counterpart)


def fault(name, kind, flags, counterpart):
    return Fault(name, Runs(kind, tuple(flags.items())), counterpart)


FAULTS = [
    fault("dampening at the first step", SGD, {"momentum": 0.9, "dampening": 0.4}, Dampened()),
    fault("dampening forgotten", SGD, {"momentum": 0.9, "dampening": 0.4}, with_group(AbstractSGD, dampening=0.0)),
    fault("nesterov forgotten", SGD, {"momentum": 0.9, "nesterov": True}, with_group(AbstractSGD, nesterov=False)),
    fault("momentum forgotten", SGD, {"momentum": 0.9}, with_group(AbstractSGD, momentum=0.0)),
    fault("maximize forgotten by SGD", SGD, {"maximize": True}, with_group(AbstractSGD, maximize=False)),
    fault("maximize forgotten by Adam", ADAM, {"maximize": True}, with_group(AbstractAdam, maximize=False)),
    fault("bias corrections forgotten", ADAM, {}, Uncorrected()),
    fault("steps not counted", ADAM, {}, OneCount()),
    fault("cap of one", ADAM, {"betas": (0.9, 0.95)}, SmallCap()),
    fault("ends of moments paired", ADAM, {}, CrossedMoments()),
    fault("maximum without memory", ADAM, {"amsgrad": True, "betas": (0.6, 0.7)}, ForgetfulMaximum()),
    fault("decay not decoupled", ADAMW, {"weight_decay": 0.5}, with_group(AbstractAdamW, decoupled_weight_decay=False)),
    fault("decay decoupled", ADAM, {"weight_decay": 0.5}, with_group(AbstractAdam, decoupled_weight_decay=True)),
    fault("larger eps", ADAM, {"eps": 0.1}, with_group(AbstractAdam, eps=0.2)),
    fault("ends squared", torch.optim.RMSprop, {"alpha": 0.5}, SquaredEnds()),
    fault(
        "momentum of RMSprop forgotten", torch.optim.RMSprop, {"momentum": 0.9}, with_group(AbstractRMSprop, momentum=0)
    ),
    fault("rate decays too early", torch.optim.Adagrad, {"lr_decay": 0.3}, LateDecay()),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_noticed(fault):
    fault.require_noticed("leaves its box|differs from torch")


def without_peak(quotient):
    def broken(offset, slope, base, curvature, shift, x, floor=None, *, arithmetic=None):
        point = Interval.point
        parts = [
            quotient(offset, slope, base, curvature, shift, point(end), floor, arithmetic=arithmetic) for end in ends(x)
        ]
        return parts[0].hull(parts[1])

    return broken


def test_a_quotient_without_its_peak_is_noticed():
    """The largest step is not always at an end of the gradient's interval."""
    check = Runs(ADAM, (("betas", (0.6, 0.6)),))
    Fault("only ends", check, without_peak(adam.quotient), (adam, "quotient")).require_noticed("leaves its box")


# --- the step of plain SGD is the smallest box ----------------------------------------------------------------------


SOUND = AbstractSGD()


def exact_step(update=SOUND.update):
    check_sgd(update)


def sgd_without_decay(group, box, gradient):
    return AbstractSGD().update({**group, "weight_decay": 0.0}, box, gradient)


def sgd_with_like_ends(group, box, gradient):
    rate = group["lr"]
    return Interval.trusted(box.lower - rate * gradient.lower, box.upper - rate * gradient.upper)


def sgd_without_sign_of_shrinkage(group, box, gradient):
    factor = 1 - group["lr"] * group["weight_decay"]
    shrunk = Interval.trusted(factor * box.lower, factor * box.upper)
    return shrunk - gradient.scaled(group["lr"])


def sgd_with_separate_decay(group, box, gradient):
    """Decay added to the gradient as if it were independent of the parameter: sound but loose."""
    return box - (gradient + box.scaled(group["weight_decay"])).scaled(group["lr"])


SGD_FAULTS = [
    Fault("weight decay forgotten", exact_step, sgd_without_decay),
    Fault("step with like ends", exact_step, sgd_with_like_ends),
    Fault("negative shrinkage not exchanged", exact_step, sgd_without_sign_of_shrinkage),
    Fault("decay apart from the parameter", exact_step, sgd_with_separate_decay),
]


@pytest.mark.parametrize("fault", SGD_FAULTS, ids=str)
def test_the_oracle_of_a_step_notices_a_broken_one(fault):
    fault.require_noticed("leaves the (lower|upper) bound|beyond torch")


def test_without_faults_the_checks_pass():
    require_checks_pass([*FAULTS, *SGD_FAULTS])
