"""An attack harness: a certified training on clean data against plain trainings on poisoned data.

A case names a module, its data, an adversary and everything else that a user might bring along. `outcome` trains once
with `CertifiedTraining` on the clean data and as often without it as there are attacks, under the same seeds. Either
every poisoned run lies inside the bounds, or the certified training was refused.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from agt_lightning import BoundedAdversary, Certification, CertifiedTraining, ParameterBounds
from agt_lightning.errors import AgtError

LEAST_WIDTH = 1e-9
"""Width below which no share of an interval is measured; far below the width of any bound here."""

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "max_epochs": 2,
}

Rows = Mapping[str, Tensor]
"""A batch before it gets its final form: tensors of equal length, by name."""

Poison = Callable[[int, int, dict[str, Tensor]], Rows]
"""An attack: from epoch, index of the batch and its clean rows to the rows that the adversary puts in their place."""


def pair(rows: Rows, epoch: int, index: int) -> object:
    """The usual batch."""
    return rows["x"], rows["y"]


def as_dict(rows: Rows, epoch: int, index: int) -> object:
    return dict(rows)


@dataclass(frozen=True)
class Case:
    """One training that somebody wants certified.

    Args:
        module: makes the module, under a fixed seed.
        adversary: what it is certified against.
        data: the samples, by name of the entry.
        batch_size: samples of a batch.
        form: makes the batch that the loader returns, from rows, epoch and index of the batch.
        features: entries that the adversary moves by up to epsilon.
        labels: entries that the adversary moves by up to nu, or flips.
        before: makes the callbacks that stand before ours.
        after: makes those that stand after it.
        options: of the Trainer.
        settings: of CertifiedTraining.
        attacks: poisons, or None for `standard_attacks`.
        wrap: makes what is handed to `fit` from the iterable of batches.
        trainer: makes the Trainer.
    """

    module: Callable[[], L.LightningModule]
    adversary: object
    data: Rows
    batch_size: int = 4
    form: Callable[[Rows, int, int], object] = pair
    features: tuple[str, ...] = ("x",)
    labels: tuple[str, ...] = ("y",)
    before: Callable[[], Sequence[L.Callback]] = tuple
    after: Callable[[], Sequence[L.Callback]] = tuple
    options: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    attacks: Sequence[Poison] | None = None
    wrap: Callable[[object], object] = lambda batches: batches
    trainer: Callable[..., L.Trainer] = L.Trainer

    def but(self, **changes) -> "Case":
        return replace(self, **changes)


@dataclass
class Batches:
    """A loader in fixed order; each epoch makes its batches anew, as a real loader does."""

    case: Case
    poison: Poison | None = None
    epoch: int = 0

    def __len__(self) -> int:
        return math.ceil(len(self.case.data[next(iter(self.case.data))]) / self.case.batch_size)

    def __iter__(self) -> Iterator[object]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for index in range(len(self)):
            rows = slice(index * self.case.batch_size, (index + 1) * self.case.batch_size)
            clean = {name: tensor[rows].clone() for name, tensor in self.case.data.items()}
            poisoned = clean
            if self.poison is not None:
                poisoned = self.poison(epoch, index, {name: tensor.clone() for name, tensor in clean.items()})
                require_within_limits(self.case, clean, poisoned)
            yield self.case.form(poisoned, epoch, index)


def require_within_limits(case: Case, clean: Rows, poisoned: Rows) -> None:
    """Check an attack against the threat model, so that no test blames the bounds for an illegal run.

    It looks at one batch. Where gradients accumulate, n counts samples of all batches of a step: a case has to bring
    attacks that keep to it.
    """
    adversary, changed = case.adversary, torch.zeros(len(next(iter(clean.values()))), dtype=torch.bool)
    for name, rows in clean.items():
        move = (poisoned[name].double() - rows.double()).flatten(1) if rows.ndim > 1 else None
        move = (poisoned[name].double() - rows.double())[:, None] if move is None else move
        changed |= (move != 0).any(dim=1)
        if not isinstance(adversary, BoundedAdversary):
            continue
        size = 0.0
        if name in case.features:
            size, norm = float(adversary.epsilon), adversary.p
        elif name in case.labels and adversary.nu:
            size, norm = adversary.nu, adversary.q
        if size == 0:
            assert not (move != 0).any(), f"the attack moves {name}"
        elif norm != 0:
            allowed = size * (1 + (1e-9 if rows.dtype == torch.float64 else 1e-5))
            assert float(move.norm(p=norm, dim=1).max()) <= allowed, f"the attack moves {name} too far"
    assert int(changed.sum()) <= adversary.n, "the attack changes too many samples"


# --- attacks --------------------------------------------------------------------------------------------------------


def chosen(size: int, n: int, first: int) -> Tensor:
    """Up to n samples of a batch, beginning with one of them."""
    return (torch.arange(min(n, size)) + first) % size


def moved_labels(case: Case, first: int, sign: float) -> Poison:
    def poison(epoch: int, index: int, rows: dict[str, Tensor]) -> Rows:
        for name in case.labels:
            picked = chosen(len(rows[name]), case.adversary.n, first)
            rows[name][picked] += sign * case.adversary.nu
        return rows

    return poison


def flipped_labels(case: Case, first: int, shift: int) -> Poison:
    def poison(epoch: int, index: int, rows: dict[str, Tensor]) -> Rows:
        for name in case.labels:
            picked = chosen(len(rows[name]), case.adversary.n, first)
            classes = int(case.data[name].max()) + 1
            rows[name][picked] = (rows[name][picked] + shift) % classes
        return rows

    return poison


def moved_features(case: Case, first: int, seed: int) -> Poison:
    """Corners of the ball: all the same sign for the first two seeds, random signs after them."""

    def poison(epoch: int, index: int, rows: dict[str, Tensor]) -> Rows:
        generator = torch.Generator().manual_seed(1000 * seed + 10 * index)
        for name in case.features:
            picked = chosen(len(rows[name]), case.adversary.n, first)
            shape = rows[name][:1].shape
            sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
            sign = sign if seed > 1 else torch.full(shape, 1 - 2 * seed)
            rows[name][picked] += (case.adversary.epsilon * sign.double()).to(rows[name].dtype)
        return rows

    return poison


def both(*poisons: Poison) -> Poison:
    def poison(epoch: int, index: int, rows: dict[str, Tensor]) -> Rows:
        for each in poisons:
            rows = dict(each(epoch, index, rows))
        return rows

    return poison


def only(poison: Poison, *, epoch: int | None = None, index: int | None = None) -> Poison:
    """The same attack in one epoch, or on one batch of each."""

    def restricted(now: int, batch: int, rows: dict[str, Tensor]) -> Rows:
        return poison(now, batch, rows) if epoch in (None, now) and index in (None, batch) else rows

    return restricted


def standard_attacks(case: Case) -> list[Poison]:
    adversary, starts = case.adversary, range(min(case.batch_size, 4))
    attacks = []
    if adversary.epsilon:
        attacks += [moved_features(case, first, seed) for first in (0, 2) for seed in range(4)]
    if adversary.nu and adversary.q == 0:
        attacks += [flipped_labels(case, first, shift) for first in starts for shift in (1, 2)]
    elif adversary.nu:
        attacks += [moved_labels(case, first, sign) for first in starts for sign in (1, -1)]
    return [*attacks, *(only(attack, epoch=0) for attack in attacks[:2])]


# --- trainings ------------------------------------------------------------------------------------------------------


def made(case: Case) -> L.LightningModule:
    torch.manual_seed(0)
    return case.module()


def seed_everything() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


def train(case: Case, module: L.LightningModule, batches: object, *ours: L.Callback) -> L.Trainer:
    """Train under the same seeds and callbacks, whether certified or not."""
    callbacks = [*case.before(), *ours, *case.after()]
    trainer = case.trainer(callbacks=callbacks, **QUIET | dict(case.options))
    seed_everything()
    trainer.fit(module, case.wrap(batches))
    return trainer


def plain_module(case: Case, poison: Poison | None = None) -> L.LightningModule:
    """The module after a training without certificate."""
    module = made(case)
    train(case, module, Batches(case, poison))
    return module


def plain(case: Case, poison: Poison | None = None) -> dict[str, Tensor]:
    """The parameters after a training without certificate."""
    return parameters(plain_module(case, poison))


def parameters(module: nn.Module) -> dict[str, Tensor]:
    module = getattr(module, "_orig_mod", module)  # compiled
    known = {name: p for name, p in module.named_parameters() if not isinstance(p, nn.UninitializedParameter)}
    return {name: parameter.detach().double().clone() for name, parameter in known.items()}


def attacks_of(case: Case) -> Sequence[Poison]:
    return standard_attacks(case) if case.attacks is None else case.attacks


def poisoned_runs(case: Case) -> list[dict[str, Tensor]]:
    return [plain(case, attack) for attack in attacks_of(case)]


@dataclass(frozen=True)
class Held:
    """The certified training ended.

    Args:
        outside: how far a run leaves the bounds at most, the clean one included.
        width: of the interval that it leaves, or else the largest.
        reach: the largest share of an interval that an attack moves a parameter by.
    """

    outside: float
    width: float
    reach: float
    certified: CertifiedTraining
    module: L.LightningModule


@dataclass(frozen=True)
class Refused:
    """The certified training raised.

    Args:
        error: what it raised.
        before_first_step: whether no parameter had moved.
    """

    error: Exception
    before_first_step: bool


def certify(case: Case) -> Held | Refused:
    """Train with certificate on the clean data; distances are filled in by `outcome`."""
    module = made(case)
    start = parameters(module)
    try:
        certified = CertifiedTraining(case.adversary, **case.settings)
        train(case, module, Batches(case), certified)
    except Exception as error:
        untouched = all(torch.equal(start[name], now) for name, now in parameters(module).items() if name in start)
        return Refused(error, untouched)
    return Held(0.0, 0.0, 0.0, certified, module)


def outcome(case: Case) -> Held | Refused:
    """Train with certificate, attack, and measure."""
    result = certify(case)
    if isinstance(result, Refused):
        return result
    clean = plain(case)
    runs = [clean, parameters(result.module), *poisoned_runs(case)]
    return replace(result, **measured(result.certified.bounds, clean, runs))


def measured(
    bounds: ParameterBounds, clean: Mapping[str, Tensor], runs: Sequence[Mapping[str, Tensor]]
) -> dict[str, float]:
    outside, width, reach = 0.0, 0.0, 0.0
    for name, interval in bounds.items():
        lower, upper = interval.lower.double(), interval.upper.double()
        for run in runs:
            beyond = torch.maximum(lower - run[name], run[name] - upper).clamp(min=0)
            if beyond.numel() and float(beyond.max()) > outside:
                outside = float(beyond.max())
                width = float((upper - lower).flatten()[beyond.argmax()])
            share = (run[name] - clean[name]).abs() / (upper - lower).clamp(min=LEAST_WIDTH)
            reach = max(reach, float(share.max()) if share.numel() else 0.0)
    return {"outside": outside, "width": width, "reach": reach}


# --- verdicts -------------------------------------------------------------------------------------------------------


def held(case: Case, reach: float = 0.03) -> Held:
    """Require the certified training to end and every attack to stay inside; one of them must act."""
    result = outcome(case)
    if isinstance(result, Refused):
        raise AssertionError(f"refused: {result.error}") from result.error
    assert result.outside == 0, f"a poisoned run is outside by {result.outside:.3g} (width {result.width:.3g})"
    assert result.reach >= reach, f"no attack reaches beyond {result.reach:.3g} of an interval: the test is vacuous"
    return result


def refused(case: Case, reason: str, *, late: bool = False) -> Refused:
    """Require the certified training to be refused for the right reason, before the first step unless ``late``."""
    result = outcome(case)
    if isinstance(result, Held):
        how = f"a poisoned run is outside by {result.outside:.3g} (width {result.width:.3g})"
        raise AssertionError(f"accepted; {how if result.outside > 0 else 'no attack leaves the bounds'}")
    require_reason(result, reason, late=late)
    return result


def held_or_refused(case: Case, reason: str, *, late: bool = False, reach: float = 0.02) -> Held | Refused:
    """Require one of both; ``reason`` is a pattern, ignoring case, that one problem has to match."""
    result = outcome(case)
    if isinstance(result, Refused):
        require_reason(result, reason, late=late)
        return result
    assert result.outside == 0, f"a poisoned run is outside by {result.outside:.3g} (width {result.width:.3g})"
    assert result.reach >= reach, f"no attack reaches beyond {result.reach:.3g} of an interval: the test is vacuous"
    return result


def require_reason(result: Refused, reason: str, *, late: bool, kinds: tuple[type, ...] = (AgtError,)) -> None:
    if not isinstance(result.error, kinds):
        raise AssertionError(f"not an error of the package: {result.error!r}") from result.error
    assert late or result.before_first_step, f"refused too late, after a step: {result.error}"
    assert re.search(reason, str(result.error), re.IGNORECASE | re.DOTALL), f"another reason: {result.error}"


def predictions_hold_or_refused(
    case: Case, x: Tensor, decide: Callable[[nn.Module, Tensor], Tensor], reason: str, **arguments
) -> Certification | None:
    """Require every certified prediction to be that of every poisoned run, or the certificate to be refused.

    Args:
        case: the training, which has to hold.
        x: inputs to certify.
        decide: the classes that a user reads off the module's outputs.
        reason: pattern that the refusal has to match.
        arguments: of `CertifiedModel.certify`.
    """
    result = certify(case)
    if isinstance(result, Refused):
        require_reason(result, reason, late=False)
        return None
    model = result.certified.certified_model(result.module)
    try:
        certification = model.certify(x, **arguments)
    except (AgtError, ValueError) as error:
        assert re.search(reason, str(error), re.IGNORECASE), f"another reason: {error}"  # noqa: PT017
        return None
    assert torch.equal(certification.label, decide(result.module.eval(), x)), "the labels are not the predictions"
    for attack in attacks_of(case):
        changed = certification.certified & (decide(plain_module(case, attack).eval(), x) != certification.label)
        assert not changed.any(), f"{int(changed.sum())} of {int(certification.certified.sum())} certified are changed"
    return certification


# --- what clean runs reach ------------------------------------------------------------------------------------------


class Peaks(L.Callback):
    """The largest gradient norm, gradient entry, parameter norm and loss of a training, for thresholds above them."""

    def __init__(self) -> None:
        self.norm = self.entry = self.loss = self.weight = 0.0

    def on_after_backward(self, trainer, pl_module):
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        self.norm = max(self.norm, float(nn.utils.get_total_norm(gradients)))
        self.entry = max(self.entry, *(float(gradient.abs().max()) for gradient in gradients))

    def on_train_start(self, trainer, pl_module):
        self.weight = float(nn.utils.get_total_norm([p.detach() for p in pl_module.parameters()]))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.loss = max(self.loss, float(outputs["loss"]))
        self.weight = max(self.weight, float(nn.utils.get_total_norm([p.detach() for p in pl_module.parameters()])))


def peaks(case: Case, margin: float = 1.01) -> SimpleNamespace:
    """The peaks of the clean training, times a margin: thresholds at which a habit does nothing on clean data."""
    found = Peaks()
    train(case, made(case), Batches(case), found)
    names = ("norm", "entry", "loss", "weight")
    return SimpleNamespace(**{name: margin * getattr(found, name) for name in names})
