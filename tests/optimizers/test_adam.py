"""Adam's data-independent cap, and what its bounds cost."""

import math

import pytest
import torch
from torch import nn

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.optimizers import AbstractAdam, OptimizerState
from tests.optimizers.oracles import CONTAINMENT, Setting, abstract_run, gradient_boxes, torch_run

DOUBLE = torch.float64


def cap(beta1, beta2, step):
    """C_t of docs/theory.md, eq. (6.2)."""
    rho = beta1**2 / beta2
    geometric = step if rho == 1 else (1 - rho**step) / (1 - rho)
    return (1 - beta1) / (1 - beta1**step) * math.sqrt((1 - beta2**step) / (1 - beta2) * geometric)


def largest_steps(betas, steps, eps=1e-8, size=1.0, **flags):
    """How far a parameter can get in each step if every gradient lies in [-size, size]."""
    setting = Setting(torch.optim.Adam, {"lr": 1.0, "betas": betas, "eps": eps, **flags})
    gradient = Interval(torch.full((1,), -size, dtype=DOUBLE), torch.full((1,), size, dtype=DOUBLE))
    boxes = abstract_run(setting, Interval.point(torch.zeros(1, dtype=DOUBLE)), [gradient] * steps)[1]
    ends = [0.0, *(float(box.upper) for box in boxes)]
    return [after - before for before, after in zip(ends, ends[1:], strict=False)]


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.81), (0.5, 0.9), (0.9, 0.5)])
def test_steps_never_exceed_the_cap(betas):
    moves = largest_steps(betas, 60)
    assert all(move <= cap(*betas, step) * (1 + 1e-9) for step, move in enumerate(moves, start=1))


@pytest.mark.slow
def test_the_known_values_of_the_cap():
    moves = largest_steps((0.9, 0.999), 1000, eps=1e-30)
    expected = {1: 1.0, 10: 1.043, 100: 2.243, 1000: 5.781}
    assert {step: round(moves[step - 1], 3) for step in expected} == expected


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.9, 0.81)])
def test_the_cap_is_attained(betas):
    """By g_s ∝ (β1 / β2)^(t - s): no smaller cap is right."""
    steps = 12
    gradients = [torch.full((1,), (betas[0] / betas[1]) ** (steps - s), dtype=DOUBLE) for s in range(1, steps + 1)]
    setting = Setting(torch.optim.Adam, {"lr": 1.0, "betas": betas, "eps": 1e-12})
    values = torch_run(setting, torch.zeros(1, dtype=DOUBLE), gradients)
    move = float(values[-2] - values[-1])
    assert move == pytest.approx(cap(*betas, steps), rel=1e-9)
    assert largest_steps(betas, steps, eps=1e-12)[-1] >= move - CONTAINMENT


def test_eps_shrinks_the_cap_for_small_gradients():
    """|m̂| / (√v̂ + ε) <= C M / (M + C ε)."""
    for step, move in enumerate(largest_steps((0.9, 0.999), 20, eps=1e-3, size=1e-3), start=1):
        limit = cap(0.9, 0.999, step)
        assert move <= limit / (1 + limit) * (1 + 1e-9)


def test_amsgrad_keeps_the_cap():
    moves = largest_steps((0.9, 0.999), 40, amsgrad=True)
    assert all(move <= cap(0.9, 0.999, step) * (1 + 1e-9) for step, move in enumerate(moves, start=1))


def test_moments_that_change_keep_a_cap():
    """K_t follows any schedule of β1 and β2."""
    zero, one = torch.zeros(1, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)
    group = torch.optim.Adam([nn.Parameter(zero)], lr=1.0).param_groups[0]
    state, box, ratio = AbstractAdam().initial(group, Interval.point(zero)), Interval.point(zero), 0.0
    for step in range(1, 20):
        beta1, beta2 = 0.8 + 0.19 * (step % 3) / 2, 0.9 + 0.01 * (step % 5)
        ratio = beta1**2 / beta2 * ratio + (1 - beta1) ** 2 / (1 - beta2)
        state, box = AbstractAdam().step({**group, "betas": (beta1, beta2)}, state, box, Interval(-one, one))
        assert float(state.moments["ratio"].upper) <= math.sqrt(ratio) * (1 + 1e-12)


def test_a_sign_that_is_known_gives_a_first_step_of_one_rate():
    gradient = Interval(torch.full((1,), 1e-3, dtype=DOUBLE), torch.full((1,), 9.0, dtype=DOUBLE))
    group = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=0.1, eps=1e-12).param_groups[0]
    box = AbstractAdam().update(group, Interval.point(torch.zeros(1, dtype=DOUBLE)), gradient)
    assert float(box.width) < 1e-9


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_step_that_forgets_v_forgets_the_ratio_to_it(amsgrad):
    """With β2 = 0, v is the last square, and m keeps what v forgets; a schedule may raise β2 again."""
    group = {**torch.optim.Adam([nn.Parameter(torch.zeros(1))]).param_groups[0], "lr": 1.0, "amsgrad": amsgrad}
    schedule = [(0.9, 0.9), (0.9, 0.0), (0.5, 0.9), (0.5, 0.9)]
    gradients = [Interval(torch.tensor([low], dtype=DOUBLE), torch.tensor([1.0], dtype=DOUBLE)) for low in (1, 0, 0, 0)]
    box = Interval.point(torch.zeros(1, dtype=DOUBLE))
    state, boxes = AbstractAdam().initial(group, box), []
    for betas, gradient in zip(schedule, gradients, strict=True):
        state, box = AbstractAdam().step({**group, "betas": betas}, state, box, gradient)
        boxes.append(box)
    for small in (1.0, 0.3, 1e-3, 0.0):
        parameter = nn.Parameter(torch.zeros(1, dtype=DOUBLE))
        optimizer = torch.optim.Adam([parameter], lr=1.0, amsgrad=amsgrad)
        for betas, value, box in zip(schedule, (1.0, small, small, small), boxes, strict=True):
            optimizer.param_groups[0]["betas"] = betas
            parameter.grad = torch.full_like(parameter, value)
            optimizer.step()
            assert box.lower.item() <= parameter.item() <= box.upper.item(), (small, betas)


@pytest.mark.parametrize("name", ["ratio", "exp_avg"])
def test_both_bounds_of_the_step_matter(name):
    """Without one of the two, boxes are wider somewhere."""
    gradients = gradient_boxes(0, 12, 0.5)
    setting = Setting(torch.optim.Adam, {"lr": 0.1, "betas": (0.9, 0.99)})
    start = Interval.point(torch.zeros(12, dtype=DOUBLE))
    both = abstract_run(setting, start, gradients)[1][-1]

    class One(AbstractAdam):
        def step(self, group, state, box, gradient):
            moments = {**state.moments}
            if name in moments:  # forgotten: anything that the other moment allows
                far = torch.full_like(box.lower, 1e3)
                moments[name] = Interval(-far, far)
            return super().step(group, OptimizerState(state.step, moments), box, gradient)

    one = abstract_run(setting, start, gradients, One())[1][-1]
    assert float((one.width - both.width).max()) > 1e-3


def test_a_second_moment_of_zero_has_a_ratio_in_bounds_of_a_coarser_type():
    """A run in float64 whose gradient was zero, under bounds in float32: the smallest normal number is that of both."""
    zero = torch.zeros(2, dtype=DOUBLE)
    nominal = AbstractAdam().nominal({"exp_avg": zero, "exp_avg_sq": zero}, 1, torch.float32)
    assert torch.equal(nominal.moments["ratio"].lower, torch.zeros(2))


def test_squares_that_underflow_leave_the_step_inside():
    """v is zero in float32 though the gradient is not, so m / (√v + ε) is far above the cap of real arithmetic."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=1.0, eps=1e-30)
    parameter.grad = torch.full((1,), 3e-23)
    zero, gradient = Interval.point(torch.zeros(1, dtype=DOUBLE)), Interval.point(parameter.grad.double())
    group, rule = optimizer.param_groups[0], AbstractAdam()
    _, box = rule.step(group, rule.initial(group, zero), zero, gradient, Arithmetic(torch.float32, DOUBLE))
    optimizer.step()
    assert float(parameter.detach()) < -100
    assert box.contains(parameter.detach().double())
