"""Interval bounds, linear bounds, and what both allow."""

import pytest
import torch
from torch import nn

from agt_lightning.capture import capture, reached
from agt_lightning.propagation import METHODS, Program, propagate_forward, refinement, require_method
from agt_lightning.propagation.crown import tightened_values
from agt_lightning.rules import RULES
from tests.propagation.crown.networks import box_of, dense, inputs_of, program_of

ROUNDING = 1e-12
"""Two sums of the same numbers in float64, in the order that their shapes ask for."""


def values_of(module, shape, x, radius, method):
    program = program_of(module, shape)
    return program, propagate_forward(
        program, inputs_of(program, module, x, radius), refine=refinement(method, program)
    )


@pytest.mark.thinned(6)
@pytest.mark.parametrize("radius", [0.0, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("widths", [(3, 8, 1), (3, 5, 5, 5, 2), (2, 4, 4, 4, 4, 4, 1)])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_tightest_is_inside_ibp_at_every_value(radius, widths, activation):
    for seed in range(3):
        module = dense(*widths, seed=seed, activation=activation)
        x = box_of((widths[0],), 0.1 * seed, seed=seed)
        program, ibp = values_of(module, widths[:1], x, radius, "ibp")
        _, tightest = values_of(module, widths[:1], x, radius, "tightest")
        for call in program.graph.calls:
            assert bool((tightest[call.name].lower >= ibp[call.name].lower - ROUNDING).all()), call.name
            assert bool((tightest[call.name].upper <= ibp[call.name].upper + ROUNDING).all()), call.name


def test_tightest_is_inside_crown_of_its_own_boxes_and_gains_with_depth():
    module, x = dense(3, 16, 16, 16, 1), box_of((3,), 0.05)
    widths = {}
    for method in METHODS:
        program, values = values_of(module, (3,), x, 0.01, method)
        widths[method] = float(values[program.graph.output].width.sum())
    assert widths["tightest"] <= widths["crown"] < 0.6 * widths["ibp"]


def test_targets_are_what_nonlinear_calls_and_trained_products_read():
    module = dense(3, 4, 4, 1)
    program = program_of(module, (3,))
    linear = [call.name for call in program.graph.calls if "linear" in str(call.op)]
    assert tightened_values(program) == set(linear[1:])  # the first layer has nothing to gain
    assert tightened_values(program, skip=frozenset(linear[2:])) == {linear[1]}


def test_calls_between_two_affine_ones_are_substituted_in_one_piece():
    module = dense(3, 4, 4, 2)

    def forward(leaves):
        return (module(leaves[0]) * 2 - leaves[1]).square()

    example = [torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)]
    graph = capture(module, forward, example)
    program = Program.build(
        graph, RULES, samples=reached(graph, set(graph.leaves)), trainable=reached(graph, set(graph.parameters))
    )
    by_op = {str(call.op).split(".")[1]: call.name for call in graph.calls}
    targets = tightened_values(program)
    assert by_op["sub"] in targets
    assert by_op["mul"] not in targets
    assert by_op["linear"] not in targets  # the last one, of the same name
    assert by_op["linear"] in tightened_values(program, wanted=frozenset({by_op["linear"]}))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="Expected `method` to be one of .*'tightest'.*, but got 'croissant'"):
        require_method("croissant")
