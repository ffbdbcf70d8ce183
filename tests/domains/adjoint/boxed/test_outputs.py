"""Outputs of a head in a box stay within their bounds, by displacements along their gradients and by the box alone."""

import pytest
import torch

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.adjoint.boxed.outputs import BoxedOutputs
from agt_lightning.interval import Interval
from tests.domains.adjoint.boxed.problems import BoxAttack, BoxedProblem
from tests.domains.adjoint.problems import F64, Form, flat

INFINITY = float("inf")
ROUNDING = 1 + 1e-9

FORMS = [
    Form("mse1"),
    Form("ce2"),
    Form("bce", biases=(False, True)),
    Form("mse1", doubled=True),
    Form("ce2", close=1e-3),
]


def asked(boxed):
    """The outputs of the step's own samples."""
    problem, box = boxed.problem, boxed.step.geometry.box
    return BoxedOutputs(problem.layers, box, problem.radius, Arithmetic(None, F64), Interval.point(problem.inputs))


def values(boxed, movement):
    """Outputs after movements, (a, b, K)."""
    problem = boxed.problem
    first, second = problem.split(problem.nominal + movement)
    hidden = torch.einsum("ajl,il->aij", first[..., :-1], problem.inputs) + first[:, None, :, -1]
    return torch.einsum("aij,akj->aik", hidden.relu(), second[..., :-1]) + second[:, None, :, -1]


def movements(boxed, count=64):
    """Movements in the box: random, to corners, and those that push every output most at first order."""
    attack = BoxAttack(boxed, boxed.problem.nominal, 1.0, count)
    return torch.cat([attack.movements(), attack.inside(boxed.problem.radius * steepest(boxed).sign())])


def steepest(boxed):
    """Gradients of every output and of their negatives, (2bK, n)."""
    still = torch.zeros_like(boxed.problem.nominal)
    slopes = torch.autograd.functional.jacobian(lambda movement: values(boxed, movement[None])[0], still)
    return torch.cat([slopes.flatten(0, 1), -slopes.flatten(0, 1)])


def difference(outputs):
    return outputs[..., -1] - (outputs[..., 0] if outputs.shape[-1] == 2 else 0.0)


@pytest.mark.parametrize("width", [1e-3, 0.3])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_outputs_stay_within_their_bounds(form, width):
    boxed = BoxedProblem(form, 0, width)
    outputs, moved = asked(boxed), movements(boxed)
    reached = values(boxed, moved)
    assert float(_share(reached, outputs.each(boxed.widths))) <= ROUNDING
    change = difference(reached) - outputs.nominal
    first, second = boxed.problem.split(moved)
    last = difference(second.transpose(1, 2))
    along = torch.einsum("ijl,ajl->ai", outputs.directions.first, first)
    along = along + torch.einsum("ij,aj->ai", outputs.directions.second, last)
    for a in range(len(moved)):
        assert outputs.reach(Interval.point(along[a])).contains(change[a])


@pytest.mark.parametrize("loss", ["mse1", "ce2"])
def test_each_output_comes_near_its_bound_by_the_box(loss):
    boxed = BoxedProblem(Form(loss), 0, 1e-4, turned=INFINITY)
    assert 0.999 < float(_share(values(boxed, movements(boxed)), asked(boxed).each(boxed.widths))) <= ROUNDING


@pytest.mark.parametrize("close", [1e-3, -1e-3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_movement_of_both_layers_comes_near_its_bound(sign, close):
    boxed = BoxedProblem(Form("mse1", samples=1, close=close), 0, 0.05, turned=INFINITY)
    outputs = asked(boxed)
    first, second = boxed.problem.split(BoxAttack(boxed, boxed.problem.nominal, 1.0).widths)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * 6)  # of both layers' part in each unit
    inputs = torch.nn.functional.pad(boxed.problem.inputs[0], (0, 1), value=1.0)
    rows = first * inputs.sign() * signs[:, :3, None]
    last = second * torch.nn.functional.pad(signs[:, 3:], (0, 1))[:, None]
    along = (outputs.directions.first * rows).sum(dim=(1, 2)) + (outputs.directions.second * last[:, 0]).sum(dim=1)
    change = values(boxed, flat(rows, last))[:, 0, 0] - outputs.nominal
    bound = outputs.reach(Interval.point(torch.zeros(1, dtype=F64)))
    assert 0.8 < float((sign * (change - along)).max()) / float((bound.upper, -bound.lower)[sign < 0]) <= ROUNDING


def _share(reached, bounds):
    up, down = (reached - bounds.center), (bounds.center - reached)
    return torch.maximum(up, down).div(bounds.radius.clamp(min=1e-300)).max()
