"""Attacks that look at the module: along the gradient of its loss, and on the samples whose labels count most.

An attack sees the live module of a poisoned run, at each batch of it, so it follows the parameters as they are.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import torch
from torch import Tensor

from tests.trust.harness import (
    Batches,
    Case,
    Poison,
    Rows,
    flipped_labels,
    made,
    moved_features,
    moved_labels,
    parameters,
    train,
)

Attack = Callable[[L.LightningModule], Poison]
"""From the module of a poisoned run to the poison of its batches."""

MOST_CANDIDATES = 12
"""Changed labels of a batch whose effect is tried."""

REACH = 0.999
"""Share of the allowed distance that attacks move by, since a sum in single precision can round upward."""


@contextmanager
def aside(module: L.LightningModule) -> Iterator[None]:
    """Leave random numbers and logs alone while an attack runs the training step."""
    module.log = module.log_dict = lambda *arguments, **keywords: None
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(1)
        try:
            yield
        finally:
            del module.log, module.log_dict


def loss_of(module: L.LightningModule, case: Case, rows: Rows, index: int) -> Tensor:
    found = module.training_step(case.form({name: rows[name] for name in rows}, 0, index), index)
    return found["loss"] if isinstance(found, Mapping) else found


def largest(slopes: Tensor) -> int:
    """The sample with the largest slope."""
    return int(slopes.abs().flatten(1).sum(1).argmax()) if slopes.ndim > 1 else int(slopes.abs().argmax())


def along_the_loss(case: Case, names: tuple[str, ...], size: float, sign: float) -> Attack:
    """Move the sample that the loss is steepest in to the corner up or down that slope."""

    def attack(module: L.LightningModule) -> Poison:
        def poison(epoch: int, index: int, rows: dict[str, Tensor]) -> Rows:
            leaves = {name: rows[name].clone().requires_grad_() for name in names}
            with aside(module):
                loss = loss_of(module, case, rows | {name: leaf * 1.0 for name, leaf in leaves.items()}, index)
                slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            slopes = [torch.zeros_like(rows[name]) if s is None else s for name, s in zip(names, slopes, strict=True)]
            at = largest(torch.cat([slope.flatten(1) if slope.ndim > 1 else slope[:, None] for slope in slopes], 1))
            for name, slope in zip(names, slopes, strict=True):
                direction = torch.where(slope[at] >= 0, 1.0, -1.0)
                rows[name][at] += sign * size * direction
            return rows

        return poison

    return attack


def candidates(labels: Tensor, kinds: int) -> list[tuple[tuple[int, ...], Tensor]]:
    """Every change of one label to another class: where, and to which; some of them if there are many."""
    places = [tuple(place.tolist()) for place in (labels >= 0).nonzero()]
    every = [(place, (labels[place] + shift) % kinds) for place in places for shift in range(1, kinds)]
    return every[:: max(1, len(every) // MOST_CANDIDATES)]


def most_influential_flip(case: Case, rank: int) -> Attack:
    """Change the label that moves the gradient of the parameters most, or the one after it."""

    def attack(module: L.LightningModule) -> Poison:
        def gradient(rows: Rows, index: int) -> Tensor:
            trained = [p for p in module.parameters() if p.requires_grad]
            with aside(module):
                found = torch.autograd.grad(loss_of(module, case, rows, index), trained, allow_unused=True)
            return torch.cat([g.flatten() for g in found if g is not None])

        def poison(epoch: int, index: int, rows: dict[str, Tensor]) -> Rows:
            clean, effects = gradient(rows, index), []
            for name in case.labels:
                kinds = max(2, int(case.data[name].max()) + 1)
                for place, kind in candidates(rows[name], kinds):
                    changed = rows[name].clone()
                    changed[place] = kind
                    effects.append((float((gradient(rows | {name: changed}, index) - clean).norm()), name, place, kind))
            effects.sort(key=lambda effect: -effect[0])
            _, name, place, kind = effects[rank]
            rows[name][place] = kind
            return rows

        return poison

    return attack


def blind(poison: Poison) -> Attack:
    return lambda module: poison


def attacks(case: Case) -> list[Attack]:
    """A few attacks of each kind that the adversary of a case can make."""
    adversary, found = case.adversary, []
    nu = adversary.nu if adversary.q == 0 else REACH * adversary.nu
    case = case.but(adversary=replace(adversary, epsilon=REACH * adversary.epsilon, nu=nu))
    if adversary.epsilon and adversary.at is None:
        size = float(case.adversary.epsilon)
        found += [along_the_loss(case, case.features, size, sign) for sign in (1.0, -1.0)]
        found += [blind(moved_features(case, first, seed)) for first, seed in ((0, 2), (2, 3))]
    if adversary.nu and adversary.q == 0:
        found += [most_influential_flip(case, rank) for rank in (0, 1)]
        if all(case.data[name].ndim == 1 and int(case.data[name].min()) >= 0 for name in case.labels):
            found.append(blind(flipped_labels(case, 0, 1)))
    elif adversary.nu:
        found += [along_the_loss(case, case.labels, case.adversary.nu, sign) for sign in (1.0, -1.0)]
        found.append(blind(moved_labels(case, 1, 1.0)))
    return found


# --- outputs of a submodule -----------------------------------------------------------------------------------------


def shifted(value: object, size: float, row: int, seed: int) -> object:
    """Outputs of a submodule, one sample of which is moved to a corner of its ball."""
    if isinstance(value, SimpleNamespace):
        return SimpleNamespace(**{name: shifted(each, size, row, seed) for name, each in vars(value).items()})
    assert isinstance(value, Tensor)
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, value.shape[1:], generator=generator) * 2.0 - 1
    moved = value.clone()
    moved[row] += size * sign
    return moved


def moves_outputs(case: Case, row: int, seed: int) -> Callable[[], L.LightningModule]:
    """A factory of the module in which a submodule's outputs are moved."""

    def module() -> L.LightningModule:
        made = case.module()
        size = float(case.adversary.epsilon)
        made.get_submodule(case.adversary.at).register_forward_hook(
            lambda layer, inputs, outputs: shifted(outputs, size, row, seed)
        )
        return made

    return module


def poisoned_runs(case: Case) -> list[dict[str, Tensor]]:
    """The parameters after each poisoned training."""
    runs = []
    if getattr(case.adversary, "at", None) is not None:
        for row, seed in ((0, 0), (1, 1), (3, 2)):
            module = made(case.but(module=moves_outputs(case, row, seed)))
            train(case, module, Batches(case))
            runs.append(parameters(module))
    for attack in attacks(case):
        module = made(case)
        train(case, module, Batches(case, attack(module)))
        runs.append(parameters(module))
    return runs
