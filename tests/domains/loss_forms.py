"""Losses as people write them, each beside the call of torch that is the same function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.engine.attacks import CLASSES

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs and targets to the scalar loss."""


@dataclass(frozen=True)
class Form:
    """One way to write a loss.

    Args:
        name: of the form.
        kind: of network and data, see `tests.engine.attacks`; "codes" are squared errors of one-hot classes.
        written: the loss as it is written.
        scale: factor of torch's loss that makes it the same.
        smoothing: of the labels.
    """

    name: str
    kind: str
    written: Loss
    scale: float = 1.0
    smoothing: float = 0.0

    def __str__(self) -> str:
        return self.name

    def by_torch(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the same loss by one call."""
        if self.kind == "mse":
            return self.scale * F.mse_loss(f, y)
        if self.kind == "codes":
            return self.scale * F.mse_loss(f, hot(y, f))
        if self.kind == "huber":
            return self.scale * F.huber_loss(f, y, delta=0.3)
        if self.kind == "bce":
            smoothed = y if self.smoothing == 0 else y * (1 - self.smoothing) + self.smoothing / 2
            return self.scale * F.binary_cross_entropy_with_logits(f, smoothed)
        return self.scale * F.cross_entropy(f, y, label_smoothing=self.smoothing)


def hot(y: Tensor, f: Tensor) -> Tensor:
    """One-hot classes in the type of the outputs."""
    return F.one_hot(y, CLASSES).to(f.dtype)


def smoothed(y: Tensor, f: Tensor) -> Tensor:
    return hot(y, f) * 0.9 + 0.1 / CLASSES


def bernoulli(f: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(f)
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def bernoulli_of_flat(f: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(f.squeeze(-1))
    y = y.squeeze(-1)
    return (-y * p.log() - (1 - y) * (1 - p).log()).sum() / len(y)


def smoothed_bernoulli(f: Tensor, y: Tensor) -> Tensor:
    y = y * (1 - 0.1) + 0.1 / 2
    return -(y * F.logsigmoid(f) + (1 - y) * F.logsigmoid(-f)).mean()


def nll_and_uniform(f: Tensor, y: Tensor) -> Tensor:
    logp = F.log_softmax(f, dim=-1)
    return 0.75 * F.nll_loss(logp, y) - 0.25 * logp.mean(dim=-1).mean()


def smoothed_towards_others(f: Tensor, y: Tensor) -> Tensor:
    target = hot(y, f)
    target = 0.75 * target + 0.125 * (1 - target)
    return torch.sum(-target * F.log_softmax(f, dim=1), dim=1).mean()


FORMS = [
    Form("(f - y)**2", "mse", lambda f, y: ((f - y) ** 2).mean()),
    Form("(y - f).square().sum() / numel", "mse", lambda f, y: (y - f).square().sum() / y.numel()),
    Form("r * r, mean of means", "mse", lambda f, y: ((f - y) * (f - y)).mean(1).mean()),
    Form("mean over samples first", "mse", lambda f, y: torch.pow(f - y, 2).mean(dim=0).sum(), CLASSES),
    Form("half the sum", "mse", lambda f, y: 0.5 * ((f - y) ** 2).sum(1).mean(), CLASSES / 2),
    Form("reshaped and cast", "mse", lambda f, y: (f.reshape(len(f), 3, 1) - y[..., None]).double().pow(2.0).mean()),
    Form("scaled residual", "mse", lambda f, y: (((f - y) / 2) ** 2).mean() * 4),
    Form("y + (-f)", "mse", lambda f, y: (y + (-f)).pow(2).mean()),
    Form("halves", "mse", lambda f, y: ((f - y) ** 2).sum(-1, keepdim=True).div(len(f)).sum() / CLASSES),
    Form("mse_loss, summed", "mse", lambda f, y: F.mse_loss(f, y, reduction="none").sum(1).mean(), CLASSES),
    Form("huber_loss, summed", "huber", lambda f, y: F.huber_loss(f, y, reduction="none", delta=0.3).mean(1).mean()),
    Form("one_hot of integers", "codes", lambda f, y: 0.5 * ((f - F.one_hot(y, 3)) ** 2).sum(1).mean(), CLASSES / 2),
    Form("one_hot", "codes", lambda f, y: ((hot(y, f) - f) ** 2).mean()),
    Form("log p and log(1 - p)", "bce", bernoulli),
    Form("the same without the last axis", "bce", bernoulli_of_flat),
    Form("binary_cross_entropy of a sigmoid", "bce", lambda f, y: F.binary_cross_entropy(torch.sigmoid(f), y)),
    Form("softplus", "bce", lambda f, y: (F.softplus(f) - y * f).mean()),
    Form("softplus of the negative", "bce", lambda f, y: (F.softplus(-f) + (1 - y) * f).mean()),
    Form("two terms", "bce", lambda f, y: -(y * F.logsigmoid(f)).mean() - ((1 - y) * F.logsigmoid(-f)).mean()),
    Form("its first output", "bce", lambda f, y: (F.softplus(f[:, 0]) - y[:, 0] * f[:, 0]).mean()),
    Form("smoothed bernoulli", "bce", smoothed_bernoulli, smoothing=0.1),
    Form("log_softmax", "ce", lambda f, y: -(hot(y, f) * F.log_softmax(f, dim=1)).sum(1).mean()),
    Form("log of softmax", "ce", lambda f, y: -(F.one_hot(y, 3) * f.softmax(-1).log()).sum() / len(y)),
    Form("mean over all", "ce", lambda f, y: -(hot(y, f) * F.log_softmax(f, dim=1)).mean(), 1 / CLASSES),
    Form("nll_loss", "ce", lambda f, y: F.nll_loss(F.log_softmax(f, dim=1), y)),
    Form("log of a sum", "ce", lambda f, y: (f.exp().sum(1).log() - (f * hot(y, f)).sum(1)).mean()),
    Form("two means", "ce", lambda f, y: f.exp().sum(1).log().mean() - (f * hot(y, f)).sum(1).mean()),
    Form("kept axis", "ce", lambda f, y: -((f - f.exp().sum(1, keepdim=True).log()) * hot(y, f)).sum(1).mean()),
    Form("smoothed one_hot", "ce", lambda f, y: -(smoothed(y, f) * F.log_softmax(f, 1)).sum(1).mean(), smoothing=0.1),
    Form("label_smoothing", "ce", lambda f, y: F.cross_entropy(f, y, label_smoothing=0.1), smoothing=0.1),
    Form("nll_loss and uniform", "ce", nll_and_uniform, smoothing=0.25),
    Form("smoothed towards others", "ce", smoothed_towards_others, smoothing=0.375),
]
