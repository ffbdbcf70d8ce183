"""The method by which each parameter's gains are summed."""

from collections.abc import Mapping
from typing import Literal, Protocol, get_args

from agt_lightning.aggregation.descent import bounded_descent
from agt_lightning.aggregation.moments import factored_gains, moment_descent
from agt_lightning.aggregation.weighted_sums import SampleSet
from agt_lightning.errors import require_one_of
from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval

SumMethod = Literal["exact", "moment"]
"""``"exact"``: the n largest gains of each element; ``"moment"``: a bound on their sum by matrix products alone."""

Aggregation = Literal["exact", "moment", "auto"]
"""A method for all parameters, or ``"auto"``: exact while it is cheap."""

AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)

SORTING = 40
"""Cost of one gain in an exact sum, in units of one multiplication and addition of a matrix product."""

ACTIVATIONS = 50
"""Cost of one sample's input or output of a layer in both passes, in the same unit."""

AFFORDABLE = 1.0
"""Largest cost of exact sums that is accepted, as a multiple of the cost of both passes."""


class BoundedDescent(Protocol):
    """A bound on the descent direction under a bounded adversary: `bounded_descent` or `moment_descent`."""

    def __call__(
        self, clean: FactoredGradient, poisoned: FactoredGradient | None, samples: SampleSet, n: int, budget: int
    ) -> Interval:
        """Bound the descent direction of one parameter."""


DESCENTS: Mapping[SumMethod, BoundedDescent] = {"exact": bounded_descent, "moment": moment_descent}


def choose(
    aggregation: Aggregation,
    clean: Mapping[str, FactoredGradient],
    poisoned: Mapping[str, FactoredGradient],
    samples: SampleSet,
) -> dict[str, SumMethod]:
    """Choose the method for each parameter, by name.

    If gains have no factors, the sum is exact in any case. ``"auto"`` goes through the parameters in order of the cost
    of exact sums and takes moments from where these would outweigh the passes.

    Args:
        aggregation: the user's choice.
        clean: bounds for the data as it is.
        poisoned: bounds for poisonable samples; empty if nothing can be poisoned.
        samples: weights and poisonable samples.

    Example:
        >>> import torch
        >>> from agt_lightning.gradients import OuterProduct
        >>> layer = OuterProduct(*[Interval.point(torch.ones(8, 1, 400)) for _ in range(2)])
        >>> [choose(aggregation, {"w": layer}, {"w": layer}, SampleSet(torch.ones(8))) for aggregation in AGGREGATIONS]
        [{'w': 'exact'}, {'w': 'moment'}, {'w': 'moment'}]
    """
    sum_methods: dict[str, SumMethod] = dict.fromkeys(clean, "exact")
    if aggregation == "exact":
        return sum_methods
    factored = [name for name in poisoned if factored_gains(clean[name], poisoned[name], samples) is not None]
    if aggregation == "moment":
        return sum_methods | dict.fromkeys(factored, "moment")
    affordable = AFFORDABLE * sum(_cost_of_passes(gradient) for gradient in clean.values())
    for name in sorted(poisoned, key=lambda name: poisoned[name].elements):
        affordable -= SORTING * poisoned[name].elements * poisoned[name].samples
        if name in factored and affordable < 0:
            sum_methods[name] = "moment"
    return sum_methods


def require_aggregation(aggregation: str) -> None:
    """Refuse an unknown aggregation.

    Raises:
        ValueError: naming the known ones.
    """
    require_one_of("aggregation", aggregation, AGGREGATIONS)


def _cost_of_passes(gradient: FactoredGradient) -> int:
    """Estimate the cost of both passes through one parameter's layer, in multiplications and additions."""
    outputs = gradient.elements // gradient.row
    return gradient.samples * (gradient.elements + ACTIVATIONS * (outputs + gradient.row))
