"""Obviously correct and slow: `torch.optim.SGD` itself, on every labeling, and enumeration of what it ends in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from agt_lightning.domains.influence.recorder import HeadRecorder
from agt_lightning.domains.influence.replay import LabelInfluence
from agt_lightning.domains.sgd import SGDSettings

F64 = torch.float64


def random_queries(count: int, seed: int = 7) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


@dataclass(frozen=True)
class Training:
    """A training of a linear head: what is needed to run it in torch, and to record it."""

    features: Tensor
    targets: Tensor
    batches: Sequence[Tensor]
    rates: Sequence[float]
    options: dict[str, Any] = field(default_factory=dict)
    bias: bool = True
    bias_options: dict[str, Any] | None = None
    momenta: Sequence[float] | None = None

    @property
    def initial(self) -> Tensor:
        inputs, outputs = self.features.shape[1] + int(self.bias), self.targets.shape[1]
        return torch.linspace(-0.3, 0.4, outputs * inputs, dtype=F64).reshape(outputs, inputs)

    def heads(self, labelings: Tensor) -> Tensor:
        """Train one head per labeling (L, N, K) at once, which do not meet: (L, K, D)."""
        return self.heads_of_steps([labelings[:, batch] for batch in self.batches])

    def heads_of_steps(self, labels: Sequence[Tensor]) -> Tensor:
        """The same with labels of each step's batch, (L, b, K)."""
        count, _, outputs = labels[0].shape
        start = self.initial.repeat(count, 1)
        features = self.features.shape[1]
        weight = torch.nn.Parameter(start[:, :features].clone())
        offset = torch.nn.Parameter(start[:, features:].clone())
        groups = [{"params": [weight]}]
        if self.bias:
            groups.append({"params": [offset], **(self.bias_options or {})})
        optimizer = torch.optim.SGD(groups, lr=1.0, **self.options)
        scale = [group["lr"] for group in optimizer.param_groups]
        for number, (batch, targets) in enumerate(zip(self.batches, labels, strict=True)):
            for group, factor in zip(optimizer.param_groups, scale, strict=True):
                group["lr"] = self.rates[number] * factor
                group["momentum"] = group["momentum"] if self.momenta is None else self.momenta[number]
            predictions = self.features[batch] @ weight.T
            if self.bias:
                predictions = predictions + offset[:, 0]
            residuals = predictions.reshape(len(batch), count, outputs).transpose(0, 1) - targets
            optimizer.zero_grad()
            (residuals.square().sum() / (len(batch) * outputs)).backward()
            optimizer.step()
        return torch.cat([weight, offset], dim=1).detach().reshape(count, outputs, -1)

    def outputs(self, labelings: Tensor, queries: Tensor) -> Tensor:
        """Outputs of each trained head for each query, (L, Q, K)."""
        return self.evaluated(self.heads(labelings), queries)

    def evaluated(self, heads: Tensor, queries: Tensor) -> Tensor:
        inputs = torch.nn.functional.pad(queries, (0, int(self.bias)), value=1.0)
        return torch.einsum("lkd,qd->lqk", heads, inputs)

    def recorded(self, *, identify: bool = True, poisonable: Tensor | None = None) -> LabelInfluence:
        """The record of this training."""
        recorder = HeadRecorder(self.initial, bias=self.bias)
        outputs = self.targets.shape[1]
        for number, (batch, rate) in enumerate(zip(self.batches, self.rates, strict=True)):
            momentum = {} if self.momenta is None else {"momentum": self.momenta[number]}
            recorder.append(
                self.features[batch],
                self.targets[batch],
                torch.full((len(batch),), 2 / (len(batch) * outputs), dtype=F64),
                _settings(rate, {**self.options, **momentum}),
                bias_settings=_settings(rate, {**self.options, **(self.bias_options or {}), **momentum}),
                ids=batch if identify else None,
                epoch=number // 2,
                poisonable=None if poisonable is None else poisonable[batch],
            )
        return recorder.influence()

    def sample_of(self, influence: LabelInfluence) -> Tensor:
        """For each sample of the record, its number here."""
        distances = torch.cdist(influence.features[self._first_rows(influence)], self.features)
        return distances.argmin(dim=1)

    def with_targets(self, targets: Tensor) -> Training:
        return replace(self, targets=targets)

    @staticmethod
    def _first_rows(influence: LabelInfluence) -> list[int]:
        owners = influence.sample_of_row.tolist()
        return [owners.index(sample) for sample in range(len(influence.targets))]


def _settings(rate: float, options: dict[str, Any]) -> SGDSettings:
    parameter = torch.nn.Parameter(torch.zeros(1))
    keywords = {key: value for key, value in options.items() if key != "lr"}
    group = torch.optim.SGD([parameter], lr=rate * options.get("lr", 1.0), **keywords).param_groups[0]
    return SGDSettings.of_group(group)


def codewords(classes: int, *, binary: bool) -> Tensor:
    return torch.tensor([[-1.0], [1.0]], dtype=F64) if binary else torch.eye(classes, dtype=F64)


def random_training(seed: int, *, samples: int = 6, classes: int = 3, **options: Any) -> Training:
    """A classification problem in two dimensions, two epochs of batches of two and of the rest."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, 2, generator=generator, dtype=F64)
    labels = torch.arange(samples) % classes
    batches = [part for _ in range(2) for part in torch.randperm(samples, generator=generator).split([2, samples - 2])]
    rates = [0.4, 0.3, 0.3, 0.2]
    table = codewords(classes, binary=classes == 2)
    return Training(features, table[labels], batches, rates, options)


def class_labelings(classes: int, samples: int) -> Tensor:
    """Every assignment of classes to samples, int64 (C^N, N)."""
    return torch.tensor(list(product(range(classes), repeat=samples)))


def read_classes(outputs: Tensor) -> Tensor:
    """The predicted class, in the words of a user: largest output, or sign of the only one."""
    return (outputs[..., 0] > 0).long() if outputs.shape[-1] == 1 else outputs.argmax(dim=-1)


def survived_flips(training: Training, queries: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Largest number of flips that never changes the prediction, by training on every labeling; (Q,).

    ``allowed`` (L,) leaves out labelings, (N,) flags samples that can be changed.
    """
    classes = 2 if training.targets.shape[1] == 1 else training.targets.shape[1]
    table = codewords(classes, binary=classes == 2)
    own = torch.cdist(training.targets, table).argmin(dim=1)
    labelings = class_labelings(classes, len(own))
    changed = labelings != own
    if allowed is not None:
        permitted = ~(changed & ~allowed).any(dim=1)
        labelings, changed = labelings[permitted], changed[permitted]
    outputs = training.outputs(table[labelings], queries)
    nominal = read_classes(training.outputs(training.targets[None], queries))
    altered = read_classes(outputs) != nominal
    most = len(own) if allowed is None else int(allowed.sum())
    needed = torch.where(altered, changed.sum(dim=1, keepdim=True), most + 1)
    return needed.amin(dim=0) - 1


def choices_of_all_positions(training: Training, options: int) -> Tensor:
    """Every choice of one of ``options`` for every position of every step, int64 (L, P)."""
    positions = sum(len(batch) for batch in training.batches)
    return torch.tensor(list(product(range(options), repeat=positions)))


def split_steps(training: Training, values: Tensor) -> list[Tensor]:
    """Cut the axis of all positions into those of each step."""
    return list(values.split([len(batch) for batch in training.batches], dim=1))
