"""One training for several adversaries: each has the bounds of a training with that adversary alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, UnboundedAdversary, UnsoundBoundError
from agt_lightning.adversaries import Adversary
from agt_lightning.aggregation.mean_clipping import MeanNormClipping
from agt_lightning.errors import BoundsMismatchError
from agt_lightning.propagation import prefix

STEPS = 3


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))


def linear() -> nn.Module:
    return nn.Linear(3, 1)


def frozen_convolutions() -> nn.Module:
    frozen = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2), nn.ReLU(), nn.Flatten())
    return nn.Sequential(frozen.requires_grad_(False), nn.Linear(8, 1))


def squared_error(module: nn.Module, batch: Any) -> Tensor:
    return nn.functional.mse_loss(module(batch["x"]), batch["y"])


FEATURES = [BoundedAdversary(n=n, epsilon=0.05) for n in (0, 1, 3)]
STRENGTHS = [BoundedAdversary(n=2, epsilon=0.05), BoundedAdversary(n=2, epsilon=0.1), BoundedAdversary(n=2, nu=0.1)]
BALLS = [BoundedAdversary(n=n, epsilon=0.05, p=2) for n in (1, 2)]
LABELS = [BoundedAdversary(n=n, nu=nu) for n, nu in ((1, 0.1), (2, 0.1), (2, 0.3))]
SUBSTITUTED = [UnboundedAdversary(n=n, kappa=0.1) for n in (1, 2)]


@dataclass(frozen=True)
class Case:
    """A training: network, adversaries, settings of engine and optimizer, micro-batches of each step."""

    name: str
    network: Any
    adversaries: Sequence[Adversary]
    settings: dict[str, Any] = field(default_factory=dict)
    momentum: float = 0.0
    parts: int = 1

    def trained(self, adversaries: Adversary | Sequence[Adversary]) -> AbstractGradientEngine:
        torch.manual_seed(3)
        module = self.network()
        engine = AbstractGradientEngine(module, squared_error, adversaries, **self.settings)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=self.momentum)
        for step, batches in enumerate(self.steps()):
            engine.step(batches, optimizer, epoch=step)
        return engine

    def steps(self) -> list[list[dict[str, Tensor]]]:
        torch.manual_seed(4)
        data = [self.batch() for _ in range(self.parts)]
        return [data for _ in range(STEPS)]

    def batch(self) -> dict[str, Tensor]:
        mask = torch.tensor([True, False, True, True, False, True])
        return {"x": torch.randn(6, 3), "y": torch.randn(6, 1), "mask": mask}


CASES = [
    Case("box", perceptron, FEATURES, {"domains": ("box",)}),
    Case("strengths", perceptron, STRENGTHS, {"domains": ("box",)}),
    Case("momentum", perceptron, FEATURES, {"domains": ("box",)}, momentum=0.9),
    Case("micro-batches", perceptron, FEATURES, {"domains": ("box",)}, parts=2),
    Case("mask", perceptron, STRENGTHS, {"domains": ("box",), "poisonable": "mask"}),
    Case("crown", perceptron, FEATURES, {"domains": ("box",), "method": "crown"}),
    Case("ball", perceptron, BALLS, {"domains": ("ball",)}),
    Case("ball and box", perceptron, BALLS, {"domains": ("box", "ball")}, parts=2),
    Case("influence", linear, LABELS, {"domains": ("influence",)}),
    Case("auto", linear, [*LABELS, *FEATURES], {"domains": "auto", "poisonable": "mask"}, parts=2),
    Case("frozen", frozen_convolutions, [*FEATURES, *STRENGTHS[1:]], {"domains": ("box",), "poisonable": "mask"}),
    Case("frozen, balls", frozen_convolutions, BALLS, {"domains": "auto"}, parts=2),
    Case("clipped samples", perceptron, SUBSTITUTED, {"domains": ("box",)}, parts=2),
]


def assert_equal_runs(together: AbstractGradientEngine, alone: AbstractGradientEngine, adversary: Adversary) -> None:
    own, found = alone.bounds, together.bounds_of(adversary)
    assert own.keys() == found.keys()
    for name, interval in own.items():
        assert torch.equal(found[name].lower, interval.lower)
        assert torch.equal(found[name].upper, interval.upper)
    assert together.runs_of(adversary).domains.in_use.keys() == alone.domains.in_use.keys()
    assert together.runs_of(adversary).domains.excluded == alone.domains.excluded


@pytest.mark.thinned(5)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bounds_are_those_of_a_training_with_each_adversary_alone(case: Case) -> None:
    together = case.trained(case.adversaries)
    for adversary in case.adversaries:
        assert_equal_runs(together, case.trained(adversary), adversary)
        assert together.bounds_of(adversary).mean_width() > 0


@pytest.mark.slow
def test_states_of_domains_are_those_of_trainings_alone() -> None:
    case = Case("momentum", perceptron, FEATURES, {"domains": ("box",)}, momentum=0.9)
    together = case.trained(FEATURES)
    for runs in together.runs:
        alone = list(case.trained(runs.adversary).domains.fingerprint_tensors())
        for own, found in zip(alone, runs.domains.fingerprint_tensors(), strict=True):
            assert torch.equal(own, found)


def test_the_first_adversary_is_that_of_the_properties() -> None:
    engine = CASES[1].trained(STRENGTHS)
    assert engine.adversary is STRENGTHS[0]
    assert engine.adversaries == tuple(STRENGTHS)
    assert engine.domains is engine.runs_of().domains is engine.runs[0].domains
    assert engine.bounds.mean_width() == engine.bounds_of(STRENGTHS[0]).mean_width()


def test_bounds_of_another_adversary_are_refused() -> None:
    engine = CASES[0].trained(FEATURES)
    with pytest.raises(
        ValueError, match=r"certified for, \[Bounded.*n=0.*but got BoundedAdversary\(n=7.* train with it"
    ):
        engine.bounds_of(BoundedAdversary(n=7))


@pytest.mark.slow
def test_clipping_of_the_mean_is_that_of_trainings_alone() -> None:
    def trained(adversaries: Adversary | Sequence[Adversary]) -> AbstractGradientEngine:
        torch.manual_seed(3)
        module, clipping = perceptron(), MeanNormClipping(0.1)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        engine = AbstractGradientEngine(module, squared_error, adversaries, clipping=clipping)
        for batch in CASES[0].steps():
            optimizer.zero_grad()
            squared_error(module, batch[0]).backward()
            bounds = engine.bound_gradient(batch)
            engine.verify(bounds, batch, optimizer=optimizer)
            bounds = engine.clip(bounds, clipping, optimizer)
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimizer.step()
            engine.update(bounds, optimizer)
        return engine

    together = trained(FEATURES)
    for adversary in FEATURES:
        assert_equal_runs(together, trained(adversary), adversary)


# --- what is done once -----------------------------------------------------------------------------------------------


def test_the_loss_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []

    def loss(module: nn.Module, batch: Any) -> Tensor:
        recorded.append(module)
        return squared_error(module, batch)

    def runs_of_the_loss(adversaries: Sequence[Adversary]) -> int:
        recorded.clear()
        AbstractGradientEngine(perceptron(), loss, adversaries).objective(CASES[0].batch())
        return len(recorded)

    assert runs_of_the_loss(FEATURES) == runs_of_the_loss(FEATURES[:1]) > 0


def test_the_nominal_step_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = AbstractGradientEngine(perceptron(), squared_error, FEATURES)
    steps, nominal = [], type(engine._nominal)
    monkeypatch.setattr(nominal, "step", lambda self, *given, of=nominal.step: steps.append(1) or of(self, *given))
    engine.bound_gradient([CASES[0].batch()])
    assert len(steps) == 1


def test_adversaries_that_differ_in_n_share_what_they_reach_behind_frozen_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def poisoned_prefixes(adversaries: Sequence[Adversary]) -> int:
        made = []
        monkeypatch.setattr(prefix, "_prefix", lambda *given: made.append(1) or bound(*given))
        engine = AbstractGradientEngine(frozen_convolutions(), squared_error, adversaries)
        engine.bound_gradient([CASES[0].batch()])
        return len(made) - 1  # the clean one

    bound = prefix._prefix
    assert poisoned_prefixes(FEATURES) == 1
    assert poisoned_prefixes(STRENGTHS[:2]) == 2


# --- what is checked for each ----------------------------------------------------------------------------------------


def test_a_problem_with_any_of_the_adversaries_is_found() -> None:
    flips = BoundedAdversary(n=1, nu=1, q=0)
    engine = AbstractGradientEngine(perceptron(), squared_error, [FEATURES[1], flips])
    problems = engine.problems(CASES[0].batch(), torch.optim.SGD(engine.module.parameters(), lr=0.1))
    assert len(problems) == 1
    assert "With the adversary `epsilon_0.0_nu_1_q_0`: `q=0` flips class labels" in problems[0]


def test_a_problem_with_all_adversaries_is_said_once() -> None:
    engine = AbstractGradientEngine(perceptron(), squared_error, LABELS, domains=("influence",))
    problems = engine.problems(CASES[0].batch(), torch.optim.SGD(engine.module.parameters(), lr=0.1))
    assert len(problems) == 1
    assert problems[0].startswith("The influence domain does not apply")


def test_code_that_one_of_the_adversaries_can_reach_is_found() -> None:
    def skipping(module: nn.Module, batch: Any) -> Tensor:
        loss = squared_error(module, batch)
        return loss * 0.5 if loss.item() > 50 else loss

    torch.manual_seed(3)
    for adversaries in ([FEATURES[0], BoundedAdversary(n=6, epsilon=100.0)], [FEATURES[0]]):
        recorded = AbstractGradientEngine(perceptron(), squared_error, adversaries, trained=skipping)
        problems = recorded.problems(CASES[0].batch(), torch.optim.SGD(recorded.module.parameters(), lr=0.1))
        assert bool(problems) == (len(adversaries) == 2)


def test_a_gradient_outside_of_the_bounds_of_any_adversary_raises() -> None:
    engine = AbstractGradientEngine(perceptron(), squared_error, FEATURES[1:])
    batch = CASES[0].batch()
    squared_error(engine.module, batch).backward()
    bounds = engine.bound_gradient([batch])
    shifted = {name: interval + interval for name, interval in bounds.runs[1].bounds.items()}
    wrong = replace(bounds, runs=(bounds.runs[0], replace(bounds.runs[1], bounds=shifted)))
    with pytest.raises(UnsoundBoundError):
        engine.verify(wrong, [batch])


def test_errors_name_the_adversary_whose_bounds_are_lost() -> None:
    strong = BoundedAdversary(n=1, epsilon=1e300)
    engine = AbstractGradientEngine(perceptron(), squared_error, [FEATURES[1], strong], domains=("box",))
    with pytest.raises(UnsoundBoundError, match="With the adversary `epsilon_1e_300`: "):
        engine.bound_gradient([CASES[0].batch()])


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_adversaries_go_on_from_a_saved_state() -> None:
    case = CASES[2]
    first = case.trained(FEATURES)
    second = AbstractGradientEngine(first.module, squared_error, FEATURES, **case.settings)
    second.restore(first.state())
    for adversary in FEATURES:
        assert_equal_runs(second, case.trained(adversary), adversary)


@pytest.mark.parametrize("number", [1, 2])
def test_states_of_another_number_of_adversaries_are_refused(number: int) -> None:
    first = CASES[0].trained(FEATURES)
    second = AbstractGradientEngine(first.module, squared_error, FEATURES[:number])
    with pytest.raises(BoundsMismatchError, match="Expected the complete bounds"):
        second.restore(first.state())
