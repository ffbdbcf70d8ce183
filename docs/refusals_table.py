"""Write the page of refusals, ``docs/refusals.md``, from what the code says of small trainings.

python docs/refusals_table.py

Each case is tried twice: as people write it, which must be refused with the message that the page shows, and as the
message advises, which must be certified.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from torch import Tensor, nn

from agt_lightning import BoundedAdversary, CertifiedTraining, UnboundedAdversary
from agt_lightning.adversaries import Adversary

TARGET = Path(__file__).with_name("refusals.md")

MOVED = BoundedAdversary(n=1, epsilon=0.01)
FLIPPED = BoundedAdversary(n=1, nu=1, q=0)
REPLACED = UnboundedAdversary(n=1, kappa=0.1, clip="value")


class Regressor(L.LightningModule):
    """A network of two layers on four features, and plain SGD."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean cross entropy."""
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def _batch() -> Any:
    torch.manual_seed(0)
    return torch.randn(8, 4), torch.randint(3, (8,))


@dataclass(frozen=True)
class Try:
    """One training that is tried.

    Args:
        module: makes the module.
        adversary: the threat model.
        batch: makes the batch.
        trainer: settings of the Trainer.
        certified: settings of the callback.
    """

    module: Callable[[], L.LightningModule] = Regressor
    adversary: Adversary = MOVED
    batch: Callable[[], Any] = _batch
    trainer: Mapping[str, Any] = field(default_factory=dict)
    certified: Mapping[str, Any] = field(default_factory=dict)

    def problems(self) -> tuple[str, ...]:
        """Return the reasons why it cannot be certified; none if it can."""
        torch.manual_seed(0)
        certified = CertifiedTraining(self.adversary, **self.certified)
        return certified.plan(self.module(), self.batch(), accelerator="cpu", **self.trainer).problems


@dataclass(frozen=True)
class Case:
    """Something that is refused.

    Args:
        title: what it is.
        why: why there is no bound.
        refused: the training as people write it.
        instead: what to do.
        accepted: the same training after that.
    """

    title: str
    why: str
    refused: Try
    instead: str
    accepted: Try


def _step(function: Callable[[Any, Any, int], Tensor]) -> Callable[[], L.LightningModule]:
    """Return a maker of the regressor with another loss."""
    return type("Stepping", (Regressor,), {"training_step": function, "shown": staticmethod(function)})


def _optimized(function: Callable[[Any], Any]) -> Callable[[], L.LightningModule]:
    """Return a maker of the regressor with another optimizer."""
    return type("Optimized", (Regressor,), {"configure_optimizers": function, "shown": staticmethod(function)})


# --- code of the cases ---------------------------------------------------------------------------------------------


def _contrast(self: Any, batch: Any, batch_idx: int) -> Tensor:
    z = F.normalize(self.net(batch[0]), dim=1)
    return F.cross_entropy(z @ z.T, torch.arange(len(z)))


def _per_sample(self: Any, batch: Any, batch_idx: int) -> Tensor:
    return F.cross_entropy(self.net(batch[0]), batch[1])


def _meets_all(self: Any, batch: Any, batch_idx: int) -> Tensor:
    return F.mse_loss(self.net(batch[0])[:, :1], batch[1].float())  # (b, 1) against (b,)


def _squeezed(self: Any, batch: Any, batch_idx: int) -> Tensor:
    return F.mse_loss(self.net(batch[0])[:, :1].squeeze(-1), batch[1].float())


def _doubled(self: Any, batch: Any, batch_idx: int) -> Tensor:
    loss = F.cross_entropy(self.net(batch[0]), batch[1])
    return 2 * loss if loss > 1 else loss


def _raising(self: Any, batch: Any, batch_idx: int) -> Tensor:
    loss = F.cross_entropy(self.net(batch[0]), batch[1])
    if torch.isnan(loss):
        raise RuntimeError("the loss is NaN")
    return loss


def _float_weight(self: Any, batch: Any, batch_idx: int) -> Tensor:
    loss = F.cross_entropy(self.net(batch[0]), batch[1])
    return loss * float(batch[0].std())


def _class_weights(self: Any, batch: Any, batch_idx: int) -> Tensor:
    return F.cross_entropy(self.net(batch[0]), batch[1], weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)


def _weights_of_samples(self: Any, batch: Any, batch_idx: int) -> Tensor:
    x, y, w = batch
    return (w * F.cross_entropy(self.net(x), y, reduction="none")).mean()


def _weighted() -> Any:
    x, y = _batch()
    return x, y, torch.tensor([1.0, 2.0, 3.0])[y]


def _spectrum(self: Any, batch: Any, batch_idx: int) -> Tensor:
    return F.cross_entropy(
        self.net(torch.fft.rfft(batch[0] * self.net[0].weight[0]).real.repeat(1, 2)[:, :4]), batch[1]
    )


def _without_spectrum(self: Any, batch: Any, batch_idx: int) -> Tensor:
    return F.cross_entropy(self.net(batch[0] * self.net[0].weight[0]), batch[1])


def _product_of_parameters(self: Any, batch: Any, batch_idx: int) -> Tensor:
    hidden = F.linear(batch[0], self.net[0].weight @ self.net[0].weight.T @ self.net[0].weight)
    last = self.net[2]
    return F.cross_entropy(last(hidden.relu()), batch[1])


def _data_first(self: Any, batch: Any, batch_idx: int) -> Tensor:
    weight = self.net[0].weight
    hidden = F.linear(F.linear(F.linear(batch[0], weight), weight.T), weight)
    last = self.net[2]
    return F.cross_entropy(last(hidden.relu()), batch[1])


def _words(self: Any, batch: Any, batch_idx: int) -> Tensor:
    return F.cross_entropy(self.net(F.one_hot(batch[0], 4).float()), batch[1])


def _ids() -> Any:
    torch.manual_seed(0)
    return torch.randint(4, (8,)), torch.randint(3, (8,))


def _plateau(self: Any) -> Any:
    optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), "monitor": "loss"},
    }


def _decay(self: Any) -> Any:
    optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
    return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10)}


def _second_order(self: Any) -> Any:
    return torch.optim.LBFGS(self.parameters())


def _first_order(self: Any) -> Any:
    return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Manual(Regressor):
    """It optimizes by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Clipping(Regressor):
    """It clips in its own way."""

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Halve large gradients."""
        for parameter in self.parameters():
            parameter.grad.div_(2) if parameter.grad.norm() > 1 else None


class Lazy(Regressor):
    """Its first layer has no weights yet."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0] = nn.LazyLinear(8)


class Initialized(Lazy):
    """Its first layer has seen a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0](torch.zeros(1, 4))


class LastLayer(Regressor):
    """The same network, of which the last layer alone is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)


CASES = (
    Case(
        "Early stopping",
        "An adversary decides when a run ends: bounds would have to cover every step.",
        Try(trainer={"callbacks": [EarlyStopping("loss")]}),
        "Remove it, and train for a fixed number of steps.",
        Try(),
    ),
    Case(
        "A learning rate that follows the loss",
        "An adversary decides the rate.",
        Try(_optimized(_plateau)),
        "Use a schedule that depends on steps alone.",
        Try(_optimized(_decay)),
    ),
    Case(
        "Averaged weights",
        "The weights that are used are not those of any step.",
        Try(trainer={"callbacks": [StochasticWeightAveraging(1e-2, swa_epoch_start=1)]}),
        "Use the weights of the last step.",
        Try(),
    ),
    Case(
        "Optimizers without bounds",
        "L-BFGS evaluates the loss an unknown number of times a step.",
        Try(_optimized(_second_order)),
        "Use SGD, Adam, AdamW, RMSprop or Adagrad; plain SGD has the tightest bounds.",
        Try(_optimized(_first_order)),
    ),
    Case(
        "Manual optimization",
        "Steps are made inside of `training_step`, where nothing can be bounded before it is applied.",
        Try(Manual),
        "Use automatic optimization.",
        Try(),
    ),
    Case(
        "Clipping of one's own",
        "What it does to gradients is code that is not recorded.",
        Try(Clipping),
        "Use the Trainer's `gradient_clip_val`.",
        Try(trainer={"gradient_clip_val": 1.0}),
    ),
    Case(
        "Half precision",
        "Roundings are as large as the effect of a poison, and loss scaling depends on the data.",
        Try(trainer={"precision": "bf16-mixed"}),
        "Train in single or double precision.",
        Try(trainer={"precision": "32-true"}),
    ),
    Case(
        "Losses in which samples meet",
        "One poisoned sample reaches the gradients of all others.",
        Try(_step(_contrast)),
        "Use a loss that is a mean or sum over samples. (Batch normalization is covered.)",
        Try(_step(_per_sample)),
    ),
    Case(
        "Predictions and labels of different shapes",
        "Broadcast, each prediction meets the labels of all samples. Most often it is a mistake.",
        Try(_step(_meets_all)),
        "Give both one shape.",
        Try(_step(_squeezed)),
    ),
    Case(
        "Branches on data that change the loss",
        "A poisoned run can take another branch than the one that was recorded. Branches that end in an error, or "
        "only log, are no obstacle.",
        Try(_step(_doubled)),
        "Write it without a branch, or raise.",
        Try(_step(_raising)),
    ),
    Case(
        "Data that leave as numbers and come back",
        "What `float` takes out of the batch cannot be followed.",
        Try(_step(_float_weight)),
        "Compute it once, before training, or keep it a tensor of each sample.",
        Try(_step(_per_sample)),
    ),
    Case(
        "Weights by class with smoothed labels",
        "Smoothing weighs every class, in a sum for which there is no rule. Without it weights by class are no "
        "obstacle, for logits of shape (batch, classes).",
        Try(_step(_class_weights), FLIPPED),
        "Put the weight of each sample into the data set, and take the mean of weighted losses.",
        Try(_step(_weights_of_samples), FLIPPED, _weighted),
    ),
    Case(
        "Operations without a rule",
        "Nobody has proved bounds for them yet.",
        Try(_step(_spectrum)),
        "Replace them, compute them in the data set, or [add a rule](rules.md).",
        Try(_step(_without_spectrum)),
    ),
    Case(
        "Products of parameters before they meet the data",
        "Their gradient has no form that can be kept for each sample.",
        Try(_step(_product_of_parameters)),
        "Let the data pass through one after the other.",
        Try(_step(_data_first)),
    ),
    Case(
        "Words moved by a distance",
        "Integers have no ball.",
        Try(_step(_words), batch=_ids),
        "Flip labels instead, or move the outputs of a frozen submodule (`at=`).",
        Try(_step(_words), FLIPPED, _ids),
    ),
    Case(
        "Layers without weights",
        "Bounds begin at the first weights, which a lazy layer has after its first batch.",
        Try(Lazy),
        "Run the module on a batch before.",
        Try(Initialized),
    ),
    Case(
        "Replaced samples in a domain that cannot clip",
        "Gradients of several layers, or clipped entry by entry, are no gradients of a convex loss.",
        Try(adversary=REPLACED, certified={"domains": ["ball"]}),
        "Train the last layer alone, and clip by the norm; or use the box.",
        Try(LastLayer, UnboundedAdversary(n=1, kappa=0.1, clip="norm"), certified={"domains": ["ball"]}),
    ),
)

HEAD = """\
# What is refused, and what to do

A training whose bounds could be wrong is refused before its first step, all reasons at once. Each case below was run:
as it stands, which gave the message, and as it is advised, which was certified. `certified.plan(module, batch)` tells
the same before any training.

This file is written by `python docs/refusals_table.py`.
"""


def document() -> str:
    """Return the whole page.

    Raises:
        ValueError: if a case is not refused, or its way out is.
    """
    return HEAD + "".join(f"\n{_section(case)}" for case in CASES)


def _section(case: Case) -> str:
    problems, left = case.refused.problems(), case.accepted.problems()
    if not problems or left:
        raise ValueError(
            f"Expected {case.title!r} to be refused, and its way out not to be, but got {problems}, {left}."
        )
    code = [_code(each) for each in (case.refused, case.accepted)]
    told = "\n".join(f"> {problem}" for problem in problems)
    shown = f"\n```python\n{code[0]}```\n" if code[0] else ""
    mended = f"\n```python\n{code[1]}```\n" if code[0] and code[1] and code[1] != code[0] else ""
    return f"## {case.title}\n\n{case.why}\n{shown}\n{told}\n\n**Instead:** {case.instead}\n{mended}"


def _code(tried: Try) -> str:
    """Return the code of a case, as a method."""
    shown = getattr(tried.module, "shown", None)
    if shown is None:
        return ""
    lines = textwrap.dedent(inspect.getsource(shown)).splitlines(keepends=True)
    name = "training_step(self, batch, batch_idx)" if "batch" in lines[0] else "configure_optimizers(self)"
    return "".join([f"def {name}:\n", *lines[1:]])


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
