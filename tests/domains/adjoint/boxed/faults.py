"""Terms of the bound of a step, left out one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from agt_lightning.domains.adjoint.boxed.geometry import BoxedGeometry
from agt_lightning.domains.adjoint.boxed.kernel import COLUMNS, PairArrays
from agt_lightning.domains.adjoint.boxed.replay import BoxedStep


def with_arrays(step: BoxedStep, name: str, arrays: object) -> BoxedStep:
    """The step with other arrays of samples, units or pairs."""
    geometry = replace(step.geometry)
    geometry.prepare()
    geometry.__dict__[name] = arrays
    return replace(step, geometry=geometry)


def without_columns(*names: str) -> Callable[[BoxedStep], BoxedStep]:
    def fault(step: BoxedStep) -> BoxedStep:
        arrays = step.geometry.sample_arrays
        numbers = arrays.numbers.copy()
        numbers[:, [COLUMNS.index(name) for name in names]] = 0
        return with_arrays(step, "sample_arrays", arrays._replace(numbers=numbers))

    return fault


def without(kind: str, name: str) -> Callable[[BoxedStep], BoxedStep]:
    def fault(step: BoxedStep) -> BoxedStep:
        arrays = getattr(step.geometry, kind)
        return with_arrays(step, kind, arrays._replace(**{name: 0 * getattr(arrays, name)}))

    return fault


def with_wrong_signs(step: BoxedStep) -> BoxedStep:
    arrays = step.geometry.pair_arrays
    return with_arrays(step, "pair_arrays", arrays._replace(sign=-arrays.sign))


def without_pairs(step: BoxedStep, kept: Callable[[PairArrays], np.ndarray]) -> BoxedStep:
    arrays = step.geometry.pair_arrays
    stays = kept(arrays)
    start = np.concatenate([[0], np.cumsum(stays)])[arrays.start]
    return with_arrays(step, "pair_arrays", PairArrays(start, *(each[stays] for each in arrays[1:])))


def without_box_of_the_last_layer(step: BoxedStep) -> BoxedStep:
    """Both layers' movement at first order alone: the box of v is left out of what couples them."""
    geometry = step.geometry
    box = replace(geometry.box, second=torch.zeros_like(geometry.box.second))
    changed = BoxedGeometry(geometry.whole, geometry.head, box)
    for name in ("sample_arrays", "unit_arrays", "pair_arrays"):
        changed.__dict__[name] = getattr(geometry, name)
    return replace(step, geometry=changed)


FAULTS: Mapping[str, Callable[[BoxedStep], BoxedStep]] = {
    "jumps and slips": lambda step: without_pairs(step, lambda pairs: pairs.near == 0),
    "jumps the other way": with_wrong_signs,
    "slips": without("pair_arrays", "past"),
    "movement of the last layer": without("unit_arrays", "width"),
    "movement of units": without("sample_arrays", "moves"),
    "coupling of both layers": without_box_of_the_last_layer,
    "change of the gradient": without_columns("change"),
    "curvature of the loss": without_columns("bend"),
    "labels": without_columns("fall", "rise"),
    "curvature in the features": without_columns("slack"),
    "change of the gradient by features": without_columns("after"),
    "curvature of the loss by features": without_columns("bent"),
    "kinks by features": lambda step: without_pairs(step, lambda pairs: pairs.near == 1),
    "movement of the first layer under features": without("unit_arrays", "moved"),
    "features past a kink": without("pair_arrays", "poisoned_past"),
}
