"""A ball of parameters, and bounds on the values of a network over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture import Graph
from agt_lightning.domains.ball.layers import Layer, LayerBall
from agt_lightning.domains.ball.value_bounds import layer_bounds, margin_bounds
from agt_lightning.domains.head import Head, match_trained
from agt_lightning.interval import Interval
from agt_lightning.rounding import Floats, round_up, unit_roundoff


@dataclass(frozen=True)
class HeadBall:
    """A ball around the trained layers of one captured graph.

    Args:
        head: the layers, by the graph's names.
        ball: the same at the nominal parameters, and the ball.
        dependent: names of all values of the graph that depend on these parameters.
    """

    head: Head
    ball: LayerBall
    dependent: frozenset[str]

    def bound_values(self, inputs: Interval) -> dict[str, Interval]:
        """Bound the result of each layer, by value name.

        Args:
            inputs: features that enter the head, (b, d), as runs compute them.
        """
        bounds = layer_bounds(self.ball, inputs)
        return {layer.output: interval for layer, interval in zip(self.head.layers, bounds, strict=True)}

    def margins(self, inputs: Interval, target: Tensor) -> Interval:
        """Bound ``f_target - f_k`` for every output k, (b, K).

        Args:
            inputs: features that enter the head, (b, d), as runs compute them.
            target: integers (b,).
        """
        return margin_bounds(self.ball, inputs, target)


@dataclass(frozen=True)
class ParameterBall:
    """All parameters within a Euclidean distance of nominal ones, which the trained parameters have together.

    Args:
        radius: R, in units of the parameters.
        centers: the nominal trained parameters by name, kept apart from the module, which can change after training;
            all others are what they are in the module.
        floats: whether runs compute in the parameters' type, or in real arithmetic; the centers are what training
            reached in any case.

    Example:
        >>> module = nn.Linear(2, 1)
        >>> ball = ParameterBall(0.1, {name: p.detach().clone() for name, p in module.named_parameters()})
        >>> round(float(ball.box(module, torch.float64)["bias"].width), 9)
        0.2
    """

    radius: float
    centers: Mapping[str, Tensor]
    floats: Floats = "run"

    costly: ClassVar[bool] = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the trained parameters."""
        return tuple(self.centers)

    def box(self, module: nn.Module, dtype: torch.dtype) -> dict[str, Interval]:
        """Return the smallest box around the ball, by parameter name."""
        bounds = {}
        for name, parameter in module.named_parameters():
            center = Interval.point(self.centers.get(name, parameter).detach().clone()).to(dtype=dtype)
            moves = name in self.centers and self.radius > 0
            bounds[name] = _around(center, self.radius) if moves else center
        return bounds

    def head_bounds(
        self, graph: Graph, names: Mapping[str, str], module: nn.Module, dtype: torch.dtype
    ) -> HeadBall | None:
        """The ball around the trained layers of a graph; None if the graph does not end in them as a head.

        Args:
            graph: a captured graph of the module.
            names: names of parameters in the module by value name.
            module: owner of the parameters.
            dtype: floating point type to compute in.
        """
        match = match_trained(graph, names, self.centers)
        if match is None:
            return None
        head, dependent = match
        return HeadBall(head, self.layers(head, module, dtype), dependent)

    def layers(self, head: Head, module: nn.Module, dtype: torch.dtype) -> LayerBall:
        """Return the layers of a head at the center of the ball, with the roundings of runs.

        Args:
            head: the layers.
            module: owner of the parameters that are not trained.
            dtype: floating point type to compute in.
        """

        def value(name: str) -> Tensor:
            own = module.get_parameter(name).detach()
            return self.centers.get(name, own).to(device=own.device, dtype=dtype)

        layers = tuple(
            Layer(value(layer.weight), None if layer.bias is None else value(layer.bias), layer.trains_bias)
            for layer in head.layers
        )
        return LayerBall(layers, self.radius, self.arithmetic(head, module, dtype))

    def arithmetic(self, head: Head, module: nn.Module, dtype: torch.dtype) -> Arithmetic:
        """Return the roundings of runs, in the coarsest type of the head's parameters, and of bounds in ``dtype``."""
        if self.floats == "real":
            return Arithmetic(None, dtype)
        return Arithmetic(max((module.get_parameter(name).dtype for name in head.parameters), key=unit_roundoff), dtype)


def _around(center: Interval, radius: float) -> Interval:
    """``[c - R, c + R]``, rounded outward."""
    largest = round_up(torch.tensor(radius, dtype=torch.float64, device=center.device), center.dtype)
    lower, upper = center.lower - largest, center.upper + largest
    return Interval.trusted(
        torch.nextafter(lower, torch.full_like(lower, -torch.inf)),
        torch.nextafter(upper, torch.full_like(upper, torch.inf)),
    )
