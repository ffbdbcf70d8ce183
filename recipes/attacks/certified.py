"""Sets that contain every poisoned training after each step, against which attacked ones are checked."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agt_lightning import AbstractGradientEngine, CertifiedModel, Interval
from agt_lightning.errors import UnsoundBoundError
from recipes.attacks.task import Parameters, Task

ROUNDING = 1e-10
"""Distance of a float64 run from the one in real arithmetic, in units of the largest parameter: a hundred steps of rate
1 or less with gradients off by n u = 1e-12 each, n = 10 000. Attacks move parameters by 1e-5 and more."""


@dataclass(frozen=True)
class Reachable:
    """A set that contains the parameters of every run after one step.

    Args:
        center: the parameters without poison.
        box: an interval for each parameter; None without a box.
        radius: of a ball around the center, over all parameters together; None without a ball.
        observed: values of the certified model, by name.
    """

    center: Parameters
    box: Mapping[str, Interval] | None
    radius: float | None
    observed: Mapping[str, float] = field(default_factory=dict)

    def excess(self, attacked: Parameters) -> float:
        """Return the distance of parameters outside of the set, 0 if they lie inside, NaN if one of them is NaN."""
        outside = [0.0]
        if self.box is not None:
            for name, value in attacked.items():
                below, above = self.box[name].lower - value, value - self.box[name].upper
                outside.append(float(torch.maximum(below, above).max()))
        if self.radius is not None:
            outside.append(_norm({name: attacked[name] - self.center[name] for name in attacked}) - self.radius)
        return float(torch.tensor(outside).max())  # Python's own maximum loses NaN

    def farthest(self, direction: Parameters) -> float:
        """Return a bound on the distance of any run from the center along a direction, ``max ⟨direction, θ̃ − θ⟩``.

        Args:
            direction: entries for some parameters or all.
        """
        bounds = []
        if self.box is not None:
            bounds.append(sum(self._box_farthest(name, value) for name, value in direction.items()))
        if self.radius is not None:
            bounds.append(self.radius * _norm(direction))
        return min(bounds)

    def _box_farthest(self, name: str, direction: Tensor) -> float:
        assert self.box is not None
        interval, center = self.box[name], self.center[name]
        ends = torch.maximum(direction * (interval.lower - center), direction * (interval.upper - center))
        return float(ends.sum())


def reachable(
    task: Task, domains: Sequence[str], observe: Callable[[CertifiedModel], Mapping[str, float]] | None = None
) -> list[Reachable]:
    """Return the certified sets before the first step and after each.

    Args:
        task: the training and its adversary.
        domains: ``"box"``, ``"ball"`` or both.
        observe: values of the certified model to keep with each set.
    """
    return list(_steps(task, domains, observe or (lambda model: {})))


def _steps(
    task: Task, domains: Sequence[str], observe: Callable[[CertifiedModel], Mapping[str, float]]
) -> Iterator[Reachable]:
    module = copy.deepcopy(task.network)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    engine = AbstractGradientEngine(module, task.loss, task.adversary, domains=domains)
    for step in range(len(task.rates) + 1):
        if step:
            optimizer.param_groups[0]["lr"] = task.rates[step - 1]
            engine.step([task.batch(step - 1)], optimizer)
        center = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        seen = observe(CertifiedModel(module, engine.bounds, sets=engine.parameter_sets))
        box, ball = dict(engine.bounds) if "box" in domains else None, engine.domains.in_use.get("ball")
        yield Reachable(center, box, None if ball is None else ball.radius, seen)


def require_inside(reach: Sequence[Reachable], path: Sequence[Parameters], attack: str) -> None:
    """Raise if an attacked run leaves the certified sets after any step.

    Args:
        reach: from `reachable`.
        path: from `Task.attacked` of the same task.
        attack: its name.

    Raises:
        UnsoundBoundError: naming the attack, the step and the distance.
    """
    for step, (certified, parameters) in enumerate(zip(reach, path, strict=True)):
        scale = max(1.0, *(float(value.abs().max()) for value in parameters.values()))
        excess = certified.excess(parameters)
        if not excess <= ROUNDING * scale:
            raise UnsoundBoundError(f"The attack {attack!r} is {excess:.3g} outside what is certified, at step {step}.")


def require_between(observed: Mapping[str, float], value: float, attack: str) -> None:
    """Raise if a value of an attacked model is not between the certified ``lower`` and ``upper``.

    Args:
        observed: bounds, as an ``observe`` of `reachable` returned them.
        value: of the attacked model.
        attack: its name.

    Raises:
        UnsoundBoundError: naming the attack and the values.
    """
    lower, upper = observed["lower"], observed["upper"]
    if not lower - ROUNDING <= value <= upper + ROUNDING:
        raise UnsoundBoundError(
            f"The attack {attack!r} achieves {value}, outside what is certified, {lower} to {upper}."
        )


def along(direction: Parameters, attacked: Parameters, center: Parameters) -> float:
    """Return ``⟨direction, θ̃ − θ⟩``."""
    return sum(float((value * (attacked[name] - center[name])).sum()) for name, value in direction.items())


def _norm(parameters: Parameters) -> float:
    return float(torch.stack([value.norm() for value in parameters.values()]).norm())
