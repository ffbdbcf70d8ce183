"""Runs in floating point, in orders of summation that hurt, stay in the ball; planted faults let them out.

A run is the certified step made again from the same parameters: the same batch, poisoned within the threat model, with
every sum from left to right in an order of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.domains.ball import domain, roundoff
from agt_lightning.domains.ball.deep import bounds as deep
from agt_lightning.domains.ball.gathering import BatchView
from agt_lightning.domains.ball.linear import LinearAnalysis
from agt_lightning.domains.ball.one_hidden import bounds as one_hidden
from agt_lightning.domains.ball.roundoff import GradientRoundoff

RATE = 0.1


def dot(terms: list[Tensor], order: Tensor) -> Tensor:
    """Sum from left to right."""
    total = torch.zeros_like(terms[0])
    for position in order.tolist():
        total = total + terms[position]
    return total


@dataclass
class Execution:
    """One step of ``[frozen linear,] linear [, ReLU, linear]`` with one output and squared error, by single operations.

    Args:
        inputs: order of the sums over features.
        samples: order of the sums over samples.
        dtype: of the run.
    """

    inputs: Tensor
    samples: Tensor
    dtype: torch.dtype

    def linear(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        order = self.inputs if len(self.inputs) == x.shape[1] else torch.arange(x.shape[1])
        result = dot([x[:, k, None] * weight[:, k] for k in range(x.shape[1])], order)
        return result if bias is None else result + bias

    def step(self, module: nn.Sequential, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return the parameters after the step."""
        p = {name: value.detach().to(self.dtype) for name, value in module.named_parameters()}
        moving = {name for name, value in module.named_parameters() if value.requires_grad}
        x, y = x.to(self.dtype), y.to(self.dtype)
        layers = sorted({name.split(".")[0] for name in p})
        frozen = [name for name in layers if f"{name}.weight" not in moving]
        trained = [name for name in layers if f"{name}.weight" in moving]
        values = x
        for name in frozen:
            values = self.linear(p[f"{name}.weight"], p.get(f"{name}.bias"), values)
        inputs, hidden = [], []
        for number, name in enumerate(trained):
            values = hidden[-1].clamp(min=0) if number else values
            inputs.append(values)
            hidden.append(self.linear(p[f"{name}.weight"], p.get(f"{name}.bias"), values))
        signal = (hidden[-1] - y) * 2 * torch.tensor(1 / len(y), dtype=self.dtype)
        for number in range(len(trained) - 1, -1, -1):
            name = trained[number]
            terms = [signal[i, :, None] * inputs[number][i] for i in range(len(y))]
            gradient = {f"{name}.weight": dot(terms, self.samples)}
            if f"{name}.bias" in p:
                gradient[f"{name}.bias"] = dot(list(signal), self.samples)
            if number:
                signal = (signal @ p[f"{name}.weight"]) * (hidden[number - 1] > 0)
            for key, value in gradient.items():
                p[key] = p[key] - torch.tensor(RATE, dtype=self.dtype) * value
        return p


def chain(*layers: tuple[list[list[float]], list[float] | None], frozen: int = 0) -> nn.Sequential:
    """Linear layers with given weights, a ReLU between trained ones; single precision."""
    modules: list[nn.Module] = []
    for number, (weight, bias) in enumerate(layers):
        layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight))
            if bias is not None:
                layer.bias.copy_(torch.tensor(bias))
        layer.requires_grad_(number >= frozen)
        modules += [layer, nn.ReLU()] if frozen <= number < len(layers) - 1 else [layer]
    return nn.Sequential(*modules)


@dataclass
class Case:
    """A step whose runs differ by rounding alone, and how.

    Args:
        module: before the step.
        x: features.
        y: targets.
        executions: the runs.
        floats: what the bounds are to contain.
        nu: by how much the first target is poisoned in all runs.
    """

    module: nn.Sequential
    x: Tensor
    y: Tensor
    executions: list[Execution] = field(default_factory=list)
    floats: str = "run"
    nu: float = 0.0

    def share(self) -> float:
        """Largest distance of a run from the nominal one, relative to the radius."""
        poisoned = self.y.clone()
        poisoned[0] += self.nu
        ends = [execution.step(self.module, self.x, poisoned) for execution in self.executions]
        engine = AbstractGradientEngine(
            self.module,
            lambda module, batch: F.mse_loss(module(batch[0]), batch[1]),
            BoundedAdversary(n=1, nu=abs(self.nu)),
            domains=("ball",),
            floats=self.floats,
        )
        optimizer = torch.optim.SGD([p for p in self.module.parameters() if p.requires_grad], lr=RATE)
        engine.step([(self.x, self.y)], optimizer)
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        center = torch.cat([self.module.get_parameter(name).detach().flatten().double() for name in names])
        moved = [torch.cat([end[name].flatten().double() for name in names]) - center for end in ends]
        return float(torch.stack(moved).norm(dim=1).max()) / engine.domains.in_use["ball"].radius


def orders(features: int, samples: int, dtype: torch.dtype = torch.float32) -> list[Execution]:
    """A few orders, the ascending one first."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda count: torch.randperm(count, generator=generator)  # noqa: E731
    some = [Execution(draw(features), draw(samples), dtype) for _ in range(4)]
    return [Execution(torch.arange(features), torch.arange(samples), dtype), *some]


def forgetful_sum() -> Case:
    """One large gradient after a thousand small ones; a run that begins with it loses all the others."""
    x, y = torch.ones(1500, 1), torch.ones(1500, 1)
    y[-1] = 1.5 * 2.0**25
    return Case(chain(([[0.0]], None)), x, y, [Execution(torch.arange(1), torch.arange(1500).flip(0), torch.float32)])


def cancelling_sum() -> Case:
    """Large gradients that cancel, and what their sum forgets of the small ones beside them."""
    x = torch.full((500, 1), 1.0)
    y = torch.linspace(0, 1, 500)[:, None]
    y[::2] += 1e5
    y[1::2] -= 1e5
    return Case(chain(([[0.1]], None)), x, y, orders(1, 500))


def unit_at_zero() -> Case:
    """A unit that is just on, and off where its smallest term is added before the others have cancelled."""
    x, y = torch.ones(4, 3), torch.full((4, 1), 5.0)
    weight = [[1.0, -1.0, 2.0**-25]]
    return Case(chain((weight, None), ([[1.0]], [0.0])), x, y, unit_orders())


def unit_at_zero_of_a_deep_head() -> Case:
    """The same in the first of three layers."""
    x, y = torch.ones(4, 3), torch.full((4, 1), 5.0)
    last = ([[1.0]], [0.0])
    return Case(chain(([[1.0, -1.0, 2.0**-25]], None), last, last), x, y, unit_orders())


def unit_that_rounding_turns_off() -> Case:
    """A unit that is on in double precision, and off in single precision in every order."""
    x, y = torch.ones(4, 3), torch.full((4, 1), 5.0)
    return Case(chain(([[-0.1, -0.2, 0.3]], None), ([[1.0]], [0.0])), x, y, unit_orders())


def unit_orders() -> list[Execution]:
    every = [torch.tensor(order) for order in ((0, 1, 2), (0, 2, 1), (1, 2, 0))]
    return [Execution(order, torch.arange(4), torch.float32) for order in every]


def cancelling_features() -> Case:
    """A frozen layer whose large terms cancel, before the small ones are added or after."""
    x = torch.linspace(0.5, 1.5, 8)[:, None].repeat(1, 4)
    module = chain(([[1e5, -1e5, 0.3, 0.1]], None), ([[0.5]], [0.1]), frozen=1)
    return Case(module, x, torch.zeros(8, 1), orders(4, 8))


def cancelling_outputs() -> Case:
    """Outputs whose terms cancel, near their targets: the gradient of the loss is hardly more than their rounding."""
    x = torch.linspace(0.5, 1.5, 8)[:, None].expand(8, 4) * torch.tensor([1e4, 1.0, 1e4, 1.0])
    module = chain(([[1.0, 0.3, -1.0, 0.1]], None))
    return Case(module, x.contiguous(), module(x).detach(), orders(4, 8))


def huge_parameter() -> Case:
    """The clean step is one unit in the last place, the poisoned one 1.6, which the optimizer rounds to two."""
    x = torch.tensor([[2.0**-7]])
    module = chain(([[1e4]], None))
    return Case(module, x, module(x).detach() - 0.625, orders(1, 1)[:1], nu=-0.375)


def real_run() -> Case:
    """A run without rounding, up to that of double precision; the nominal one is in single precision."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 5, generator=generator), torch.randn(50, 1, generator=generator)
    return Case(chain(([[0.3] * 5], [0.1])), x, y, orders(5, 50, torch.float64), floats="real")


CASES: list[Callable[[], Case]] = [
    forgetful_sum,
    cancelling_sum,
    unit_at_zero,
    unit_at_zero_of_a_deep_head,
    unit_that_rounding_turns_off,
    cancelling_features,
    cancelling_outputs,
    huge_parameter,
    real_run,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_no_execution_leaves_the_ball(case):
    assert case().share() <= 1


def no_sum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GradientRoundoff, "with_sum", lambda self, _: self.error)
    patch.setattr(LinearAnalysis, "summed_magnitude", lambda *_: 0.0)


def no_unit_roundoff(patch: pytest.MonkeyPatch) -> None:
    for module in (one_hidden, deep):
        patch.setattr(module, "largest_row_errors", lambda ball, layer, norm, error: torch.zeros_like(norm))


def no_feature_error(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BatchView, "_rounding", lambda self, name: torch.zeros(self.part.size, dtype=torch.float64))


def no_value_error(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(roundoff, "result_errors", lambda ball, layer, norm, error: torch.zeros_like(norm))


def no_update(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(domain, "update_rounding", lambda *_: 0.0)


def no_nominal_error(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(domain, "nominal_rounding", lambda *_: 0.0)


FAULTS = [
    (no_sum, forgetful_sum),
    (no_unit_roundoff, unit_at_zero),
    (no_unit_roundoff, unit_at_zero_of_a_deep_head),
    (no_feature_error, cancelling_features),
    (no_value_error, cancelling_outputs),
    (no_update, huge_parameter),
    (no_nominal_error, real_run),
]


@pytest.mark.parametrize(("fault", "case"), FAULTS, ids=lambda each: each.__name__)
def test_an_execution_finds_the_fault(fault, case, monkeypatch):
    fault(monkeypatch)
    assert case().share() > 1
