"""The laws notice when one piece of the substitution is broken."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from agt_lightning.propagation.crown import backward, concretize, forms, lines, relaxation, scaling
from agt_lightning.propagation.crown.forms import Terms
from tests.propagation.crown.laws import forms_contain_sampled_points
from tests.rules.settings import SETTINGS

aten = torch.ops.aten


def check(op):
    for setting in SETTINGS:
        if setting.op is op:
            forms_contain_sampled_points(setting)


@dataclass(frozen=True)
class Fault:
    """A mistake in one function, and an op whose laws must notice it."""

    name: str
    op: object
    place: object
    attribute: str
    broken: Callable


def resolved_without_constant(coefficient, box):
    terms = relaxation_resolve(coefficient, box)
    return Terms(terms.coefficients, torch.zeros_like(terms.constant))


def resolved_at_upper_coefficient(coefficient, box):
    return Terms([coefficient.upper], coefficient.lower.new_zeros(coefficient.shape[:2]))


def resolved_as_midpoint(coefficient, box):
    return Terms([coefficient.center], coefficient.lower.new_zeros(coefficient.shape[:2]))


def largest_at_center(coefficient, value):
    return concretize.inner(coefficient, value.center)


def largest_of_coefficients_as_they_are(coefficient, value):
    return concretize.inner(coefficient, value.upper)


def started_at_half(name, coefficient):
    return forms.Forms({name: coefficient * 0.5}, *[coefficient.new_zeros(coefficient.shape[:2])] * 2)


class Swapped(relaxation.Elementwise):
    """Takes the line below for rising coefficients."""

    def substitute(self, site, rule, coefficient, inputs, slopes):
        terms = super().substitute(site, rule, -coefficient, inputs, slopes)
        return Terms([-terms.coefficients[0]], -terms.constant)


def shifted(change):
    def lines_of(site, box, alpha):
        return change(relu_lines(site, box, alpha), box)

    return relaxation.Elementwise(lines_of)


relaxation_resolve = relaxation.resolve
relu_lines = lines.kinked(lambda site: 0.0)
table = dict(backward.RELAXATIONS)


def with_relu(rule):
    return {**table, aten.relu.default: rule}


class Detached(relaxation.Affine):
    """Forgets the bias."""

    def substitute(self, site, rule, coefficient, inputs, slopes):
        terms = super().substitute(site, rule, coefficient, inputs, slopes)
        return Terms(terms.coefficients, torch.zeros_like(terms.constant))


FAULTS = [
    Fault("no constant", aten.linear.default, relaxation, "resolve", resolved_without_constant),
    Fault("largest coefficient always", aten.linear.default, relaxation, "resolve", resolved_at_upper_coefficient),
    Fault("midpoint coefficient", aten.linear.default, relaxation, "resolve", resolved_as_midpoint),
    Fault("midpoint coefficient", aten.mul.Tensor, scaling, "resolve", resolved_as_midpoint),
    Fault("midpoint kernel", aten.conv2d.default, relaxation, "resolve", resolved_as_midpoint),
    Fault("center of the inputs", aten.linear.default, forms, "largest", largest_at_center),
    Fault("upper ends only", aten.linear.default, forms, "largest", largest_of_coefficients_as_they_are),
    Fault("half a form", aten.flatten.using_ints, forms.Forms, "start", started_at_half),
    Fault("lines swapped", aten.relu.default, backward, "RELAXATIONS", with_relu(Swapped(relu_lines))),
    Fault(
        "chord without offset",
        aten.relu.default,
        backward,
        "RELAXATIONS",
        with_relu(shifted(lambda line, box: replace(line, above_offset=torch.zeros_like(line.above_offset)))),
    ),
    Fault(
        "lower line of slope two",
        aten.relu.default,
        backward,
        "RELAXATIONS",
        with_relu(shifted(lambda line, box: replace(line, below_slope=2 * line.below_slope))),
    ),
    Fault(
        "no bias",
        aten.linear.default,
        backward,
        "RELAXATIONS",
        {**table, aten.linear.default: Detached(mixes=True, multiplies=True)},
    ),
    Fault(
        "quotient taken for a product",
        aten.div.Tensor,
        backward,
        "RELAXATIONS",
        {**table, aten.div.Tensor: scaling.Scaling(places=(0, 1))},
    ),
    Fault(
        "steep leaky relu taken for a convex one",
        aten.leaky_relu.default,
        backward,
        "RELAXATIONS",
        {**table, aten.leaky_relu.default: relaxation.Elementwise(table[aten.leaky_relu.default].lines)},
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.name}, {fault.op}")
def test_a_law_notices(fault, monkeypatch):
    monkeypatch.setattr(fault.place, fault.attribute, fault.broken)
    with pytest.raises(AssertionError, match="a form exceeds its bound"):
        check(fault.op)


def test_without_faults_the_laws_hold():
    for op in {fault.op for fault in FAULTS}:
        check(op)
