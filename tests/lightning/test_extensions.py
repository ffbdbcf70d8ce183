"""A threat model and a domain that are written outside the package train through `CertifiedTraining` as they are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from agt_lightning import BoundedAdversary, CertifiedTraining, Interval, UncertifiableError
from agt_lightning.aggregation import SampleClipping, ValueClipping
from agt_lightning.capture.roles import LabelKind
from agt_lightning.domains import Domain, DomainLostError, OptimizerStep, Step, TrainingSetup
from agt_lightning.rounding import unit_roundoff
from agt_lightning.rules.values import Value, as_interval


@dataclass(frozen=True)
class BrighteningAdversary:
    """Adds up to ``most`` to every feature of up to n samples of each batch, and never subtracts."""

    n: int
    most: float

    perturbs_features: ClassVar[bool] = True
    perturbs_labels: ClassVar[bool] = False
    sample_clipping: ClassVar[SampleClipping | None] = None
    assumptions: ClassVar[Sequence[str]] = ("Features grow and never shrink.",)

    def problems(self, label_kind: LabelKind, labels: int, features: int) -> list[str]:
        return [] if features else ["There are no features to brighten. Use another adversary."]

    def poisoned_features(self, features: Value) -> Value:
        clean = as_interval(features)
        return Interval(clean.lower, clean.upper + self.most)

    def poisoned_labels(self, labels: Tensor, label_kind: LabelKind) -> Value:
        return as_interval(labels)


@dataclass(frozen=True)
class Saboteur(BrighteningAdversary):
    """Substitutes samples in a training whose gradients are clipped, and says so."""

    most: float = 0.0
    perturbs_features: ClassVar[bool] = False
    sample_clipping: ClassVar[SampleClipping | None] = ValueClipping(0.05)
    assumptions: ClassVar[Sequence[str]] = ("Gradients are clipped to 0.05.",)

    def problems(self, label_kind: LabelKind, labels: int, features: int) -> list[str]:
        return []


@dataclass(frozen=True)
class Inserting(Saboteur):
    """Inserts samples whose gradients nothing clips."""

    edits: str = "insert-delete"
    sample_clipping: ClassVar[SampleClipping | None] = None


class DriftDomain(Domain[float]):
    """All parameters within a distance of the trained ones, in the maximum norm: rates times the largest gradient gap.

    It is as wide as the widest gradient bound of the step makes it, which it takes from a bound that the test states.
    """

    name: ClassVar[str] = "drift"
    largest_gap: ClassVar[float] = 2.0

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.distance = 0.0

    @classmethod
    def build(cls, module, adversary, config):
        return cls(module)

    def problems(self, setup: TrainingSetup) -> list[str]:
        momentum = setup.optimizer is not None and setup.optimizer.param_groups[0].get("momentum")
        return ["Drift does not cover momentum. Set it to 0."] if momentum else []

    def bound_step(self, step: Step, value_bounds: Sequence[Any]) -> float:
        return self.largest_gap

    def update(self, data: float, optimizer_step: OptimizerStep) -> None:
        rates = [group["lr"] for _, group, _ in optimizer_step.updates()]
        self.distance += max(rates) * data
        if self.distance > 1e3:
            raise DomainLostError("it has drifted away")

    def box(self) -> dict[str, Interval]:
        points = {name: p.detach().double() for name, p in self.module.named_parameters()}
        return {name: Interval(point - self.distance, point + self.distance) for name, point in points.items()}

    def metrics(self) -> dict[str, float]:
        return {"drift": self.distance}

    def record(self) -> dict[str, object]:
        return {"distance": self.distance}

    def fingerprint_tensors(self) -> Iterator[Tensor]:
        yield torch.tensor(self.distance)

    def state(self) -> dict[str, Any]:
        return {"distance": self.distance}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.distance = float(state["distance"])


ROUNDINGS = 64
"""Roundings of a parameter of size 1 in a training of a few steps on a few samples."""


def seeded(regressor):
    torch.manual_seed(3)
    return regressor()


@pytest.mark.slow
def test_an_adversary_of_ones_own_is_certified(fit, loader, regressor):
    brighter, both = (
        CertifiedTraining(adversary, domains=["box"])
        for adversary in (BrighteningAdversary(n=2, most=0.1), BoundedAdversary(n=2, epsilon=0.1))
    )
    module = seeded(regressor)
    fit(module, loader(), brighter)
    fit(seeded(regressor), loader(), both)
    assert brighter.bounds.contains(module)
    assert 0 < brighter.bounds.mean_width() < both.bounds.mean_width()


def test_brightened_trainings_stay_inside(fit, loader, regressor):
    adversary = BrighteningAdversary(n=2, most=0.1)
    certified = CertifiedTraining(adversary, domains=["box"])
    clean = seeded(regressor)
    fit(clean, loader(), certified)
    for seed in range(5):
        data = loader()
        features = data.dataset.tensors[0].clone()
        chosen = torch.randperm(data.batch_size, generator=torch.Generator().manual_seed(seed))[: adversary.n]
        for start in range(0, len(features), data.batch_size):
            rows = [int(start + row) for row in chosen if start + row < len(features)]
            features[rows] += adversary.most
        data.dataset.tensors = (features, *data.dataset.tensors[1:])
        module = seeded(regressor)
        fit(module, data)
        assert not all(torch.equal(*pair) for pair in zip(module.parameters(), clean.parameters(), strict=True))
        for name, parameter in module.named_parameters():
            assert certified.bounds[name].contains(parameter.detach(), ROUNDINGS * unit_roundoff(parameter.dtype))


def test_a_sample_clipping_adversary_of_ones_own_writes_clipped_gradients(fit, loader, regressor, tmp_path):
    certified = CertifiedTraining(Saboteur(n=1), dirpath=tmp_path)
    fit(regressor(), loader(), certified)
    assert list(certified.engine.domains.in_use) == ["box"]
    assert certified.bounds.mean_width() > 0
    assert "Gradients are clipped to 0.05." in (tmp_path / "certificate.json").read_text()


def test_a_domain_of_ones_own_is_kept_beside_the_box(fit, loader, regressor, tmp_path):
    certified = CertifiedTraining(BoundedAdversary(n=2, epsilon=0.01), domains=["box", DriftDomain], dirpath=tmp_path)
    trainer = fit(regressor(), loader(), certified)
    drift = certified.engine.domains.in_use["drift"]
    assert drift.distance > 0
    assert float(trainer.callback_metrics["agt/drift"]) == pytest.approx(drift.distance)
    assert '"drift": {' in (tmp_path / "certificate.json").read_text()


@pytest.mark.slow
def test_the_box_is_cut_to_a_tighter_domain(fit, loader, regressor, monkeypatch):
    monkeypatch.setattr(DriftDomain, "largest_gap", 1e-9)
    adversary = BoundedAdversary(n=2, epsilon=0.5)
    alone, cut = (CertifiedTraining(adversary, domains=chosen) for chosen in (["box"], ["box", DriftDomain]))
    for certified in (alone, cut):
        fit(regressor(), loader(), certified)
    assert cut.bounds.mean_width() < alone.bounds.mean_width() / 100


def test_its_refusals_come_before_the_first_step(fit, loader, regressor):
    certified = CertifiedTraining(BoundedAdversary(n=2, epsilon=0.01), domains=[DriftDomain])
    module = regressor()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    with pytest.raises(UncertifiableError, match="Drift does not cover momentum"):
        fit(module, loader(), certified)


def test_what_is_no_adversary_is_refused_with_what_it_lacks():
    with pytest.raises(TypeError, match="It lacks `n`, `perturbs_features`"):
        CertifiedTraining("everybody")
    with pytest.raises(ValueError, match="subclasses of `Domain`"):
        CertifiedTraining(BoundedAdversary(n=1), domains=["box", dict])


def test_insertions_without_clipping_are_refused(fit, loader, regressor):
    with pytest.raises(UncertifiableError, match="gradient of an inserted sample has no bound"):
        fit(regressor(), loader(), CertifiedTraining(Inserting(n=1)))
