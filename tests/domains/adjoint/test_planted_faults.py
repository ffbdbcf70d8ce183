"""Without any one of its terms the bound of a step is broken by an attack, on a problem where that term matters."""

import numpy as np
import pytest

from agt_lightning.domains.adjoint.one_hidden import step_bound
from agt_lightning.domains.adjoint.one_hidden.arrays import PairArrays, nothing_found
from agt_lightning.domains.adjoint.one_hidden.kernel import accumulate
from agt_lightning.domains.adjoint.one_hidden.shares import BINS
from tests.domains.adjoint.one_step import Attack
from tests.domains.adjoint.problems import Form, Problem, flat

INFINITY = float("inf")


def found_without(step, directions, change=lambda *arrays: arrays):
    """Everything that the loops find, with changed arrays of samples, pairs, labels and features."""
    arrays = change(step.sample_arrays, step.pair_arrays, step.label_arrays, step.feature_arrays)
    found = nothing_found(arrays[0], len(directions), BINS)
    accumulate(*arrays, step_bound._direction_arrays(step, directions), step.radius, found)
    return found


def total(step, found):
    parts = step_bound._poison(step, found), step_bound._switches(step, found)
    return sum(parts) + step_bound._quadratic(step, found)[:, None]


def without_found(name):
    """Leave out one of the sums."""

    def bound(step, directions):
        found = found_without(step, directions)
        getattr(found, name)[...] = 0
        return total(step, found)

    return bound


def without_column(position, column):
    """Leave out one number of each sample, of those of the samples or of the features."""

    def change(*arrays):
        numbers = arrays[position].numbers.copy()
        numbers[:, column] = 0
        return (*arrays[:position], arrays[position]._replace(numbers=numbers), *arrays[position + 1 :])

    return lambda step, directions: total(step, found_without(step, directions, change))


def without_label_size(step, directions):
    """Leave out what labels add where φ moves in the ball."""

    def change(samples, pairs, labels, features):
        return samples, pairs, labels._replace(largest=0 * labels.largest), features

    return total(step, found_without(step, directions, change))


def without_feature_kinks(step, directions):
    """Leave out units that only poisoned features switch."""

    def change(samples, pairs, labels, features):
        kept = pairs.bin >= 0
        start = np.concatenate([[0], np.cumsum(kept)])[pairs.start]
        return samples, PairArrays(start, *(each[kept] for each in pairs[1:])), labels, features

    return total(step, found_without(step, directions, change))


def with_wrong_signs(step, directions):
    """Take each jump in the other direction."""

    def change(samples, pairs, labels, features):
        return samples, pairs._replace(sign=-pairs.sign), labels, features

    return total(step, found_without(step, directions, change))


FAULTS = {
    "jumps": (without_found("steps"), Problem(Form("mse", samples=3, close=1e-3), 0, 0.03), 1, 1),
    "jumps the other way": (with_wrong_signs, Problem(Form("mse", samples=3, close=1e-3), 0, 0.03), 1, 1),
    "slips": (without_found("ramps"), Problem(Form("mse", samples=3, close=1e-3), 3, 0.1), 1, 0),
    "jumps and slips with the second layer": (
        without_found("cross"),
        Problem(Form("mse", samples=2, inner=True, second_scale=0.0), 1, 0.1),
        0,
        0,
    ),
    "coupling of both layers": (
        without_found("outer"),
        Problem(Form("mse", samples=3, second_scale=0.0), 3, 0.3),
        1,
        0,
    ),
    "products of changes": (without_found("sums"), Problem(Form("mse", samples=3), 0, 0.1), 0, 1),
    "third derivative": (without_column(0, 5), Problem(Form("ce", samples=2, units=1), 4, 1.0), 1, 1),
    "poison": (without_found("poison"), Problem(Form("mse", "box", samples=3), 0, 0.01), 0, 0),
    "labels where the direction moves": (without_label_size, Problem(Form("mse", "box", samples=3), 0, 0.1), 0, 0),
    "curvature in the features": (
        without_column(3, 2),
        Problem(Form("mse", None, INFINITY, n=2, samples=2, units=1), 4, 0.3, epsilon=0.3),
        1,
        1,
    ),
    "change of the loss by features": (
        without_column(3, 3),
        Problem(Form("mse", None, INFINITY, n=1, samples=2, units=1), 0, 1e-4, epsilon=0.3),
        0,
        0,
    ),
    "third derivative under features": (
        without_column(3, 4),
        Problem(Form("bce", None, INFINITY, n=1, samples=2, units=1), 4, 1e-4, epsilon=0.5),
        1,
        1,
    ),
    "kinks by features": (
        without_feature_kinks,
        Problem(Form("mse", None, INFINITY, n=1, samples=2, close=2e-3), 1, 1e-4, epsilon=0.02),
        0,
        0,
    ),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", FAULTS)
def test_a_bound_without_one_of_its_terms_is_broken(name):
    fault, problem, q, side = FAULTS[name]
    directions = problem.directions(2)
    vector = flat(directions.first[q], directions.second[q])
    reached = Attack(problem, vector, (1.0, -1.0)[side], count=12).run(16)
    sound = step_bound.step_back(problem.geometry, directions)[0].total[q, side]
    assert max(1.05 * fault(problem.geometry, directions)[q, side], 1e-6) < reached <= sound * (1 + 1e-9)
