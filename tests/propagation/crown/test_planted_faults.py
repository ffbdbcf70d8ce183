"""The laws notice when one piece of the substitution is broken."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch._ops import OpOverload

from agt_lightning.propagation.crown import backward, concretize, forms, lines, relaxation, scaling
from agt_lightning.propagation.crown.forms import Terms
from tests.faults import Fault, require_checks_pass
from tests.propagation.crown.laws import forms_contain_sampled_points
from tests.rules.settings import SETTINGS

aten = torch.ops.aten


@dataclass(frozen=True)
class Forms:
    """Linear forms contain sampled points, for every setting of one op."""

    op: OpOverload

    def __call__(self) -> None:
        for setting in SETTINGS:
            if setting.op is self.op:
                forms_contain_sampled_points(setting)


def resolved_without_constant(coefficient, box):
    terms = relaxation_resolve(coefficient, box)
    return replace(terms, constant=torch.zeros_like(terms.constant))


def without_constant(coefficient):
    nothing = coefficient.new_zeros(coefficient.shape[:2])
    return Terms([coefficient], nothing, nothing)


def resolved_at_upper_coefficient(coefficient, box):
    return without_constant(coefficient.upper)


def resolved_as_midpoint(coefficient, box):
    return without_constant(coefficient.center)


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
        return Terms([-terms.coefficients[0]], -terms.constant, terms.size)


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
        return replace(terms, constant=torch.zeros_like(terms.constant))


RELAXATIONS = (backward, "RELAXATIONS")
RESOLVED = (relaxation, "resolve")
FAULTS = [
    Fault("no constant", Forms(aten.linear.default), resolved_without_constant, RESOLVED),
    Fault("largest coefficient always", Forms(aten.linear.default), resolved_at_upper_coefficient, RESOLVED),
    Fault("midpoint coefficient", Forms(aten.linear.default), resolved_as_midpoint, RESOLVED),
    Fault("midpoint factor", Forms(aten.mul.Tensor), resolved_as_midpoint, (scaling, "resolve")),
    Fault("midpoint kernel", Forms(aten.conv2d.default), resolved_as_midpoint, RESOLVED),
    Fault("center of the inputs", Forms(aten.linear.default), largest_at_center, (forms, "largest")),
    Fault("upper ends only", Forms(aten.linear.default), largest_of_coefficients_as_they_are, (forms, "largest")),
    Fault("half a form", Forms(aten.flatten.using_ints), started_at_half, (forms.Forms, "start")),
    Fault("lines swapped", Forms(aten.relu.default), with_relu(Swapped(relu_lines)), RELAXATIONS),
    Fault(
        "chord without offset",
        Forms(aten.relu.default),
        with_relu(shifted(lambda line, box: replace(line, above_offset=torch.zeros_like(line.above_offset)))),
        RELAXATIONS,
    ),
    Fault(
        "lower line of slope two",
        Forms(aten.relu.default),
        with_relu(shifted(lambda line, box: replace(line, below_slope=2 * line.below_slope))),
        RELAXATIONS,
    ),
    Fault(
        "no bias",
        Forms(aten.linear.default),
        {**table, aten.linear.default: Detached(mixes=True, multiplies=True)},
        RELAXATIONS,
    ),
    Fault(
        "quotient taken for a product",
        Forms(aten.div.Tensor),
        {**table, aten.div.Tensor: scaling.Scaling(places=(0, 1))},
        RELAXATIONS,
    ),
    Fault(
        "steep leaky relu taken for a convex one",
        Forms(aten.leaky_relu.default),
        {**table, aten.leaky_relu.default: relaxation.Elementwise(table[aten.leaky_relu.default].lines)},
        RELAXATIONS,
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_law_notices(fault):
    fault.require_noticed("a form exceeds its bound")


@pytest.mark.slow
def test_without_faults_the_laws_hold():
    require_checks_pass(FAULTS)
