"""Flip up to three labels of tiny data sets in every way, retrain, and compare with `certified_flips`; zero tolerance.

python -m tests.fuzz.flips --seed 0 --minutes 5
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedModel
from agt_lightning.errors import AgtError, UncertifiableError
from agt_lightning.lightning.resume import bounds_to_save, resume

MOST = 3
"""Flips that are tried at once."""

QUERIES = 12
"""Predictions of each training."""

IDENTITIES = ("content", "content", "equal content", "named", "names of equal content", "augmented", "augmented, named")
"""How samples are told apart: what is equal, what has names, and what random transforms change."""

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"momentum": 0.8},
    {"momentum": 0.5, "dampening": 0.3},
    {"momentum": 0.7, "nesterov": True, "weight_decay": 0.05},
    {"weight_decay": 0.2},
)


@dataclass(frozen=True)
class Draw:
    """One optimizer step: which samples, as the transforms left them.

    Args:
        rows: of the data, (b,).
        features: (b, d).
        epoch: number of the pass; None if the training does not say.
    """

    rows: Tensor
    features: Tensor
    epoch: int | None


@dataclass(frozen=True)
class Case:
    """A training of a linear layer, on features that a frozen part may compute.

    Args:
        seed: of everything.
        dtype: of parameters and data.
        classes: number of classes; two are one output of -1 and 1.
        labels: class of each sample.
        given: whether batches hold the codes of the classes, not their numbers.
        frozen: whether a frozen layer computes the features.
        steps: all optimizer steps.
        options: of the optimizer, for every step.
        rates: learning rate of each step.
        named: whether samples have names.
        stop: step at which the training is interrupted; None if it is not.
        adversary: which labels can be written.
        factor: of the loss, so that steps can overshoot.
    """

    seed: int
    dtype: torch.dtype
    classes: int
    labels: Tensor
    given: bool
    frozen: bool
    steps: tuple[Draw, ...]
    options: dict[str, Any]
    rates: tuple[float, ...]
    named: bool
    stop: int | None
    adversary: BoundedAdversary
    factor: float

    def module(self) -> nn.Sequential:
        """Return the network before training."""
        torch.manual_seed(self.seed)
        first = nn.Sequential(nn.Linear(2, 3), nn.Tanh()).requires_grad_(False) if self.frozen else nn.Identity()
        head = nn.Linear(3 if self.frozen else 2, self.outputs, bias=self.seed % 4 > 0)
        return nn.Sequential(first, head).to(self.dtype)

    @property
    def outputs(self) -> int:
        """Number of outputs of the network."""
        return 1 if self.classes == 2 else self.classes

    def codes(self, classes: Tensor) -> Tensor:
        """Return the targets of classes, (..., outputs)."""
        if self.classes == 2:
            return (2 * classes - 1).to(self.dtype)[..., None]
        return nn.functional.one_hot(classes, self.classes).to(self.dtype)

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the mean squared error."""
        target = batch[1] if self.given else self._encoded(batch[1])
        return self.factor * nn.functional.mse_loss(module(batch[0]), target)

    def _encoded(self, classes: Tensor) -> Tensor:
        hot = nn.functional.one_hot(classes, self.classes).to(self.dtype)
        return 2 * hot[:, 1:] - 1 if self.classes == 2 else hot

    def batch(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """Return the batch of a step, with its samples' names."""
        classes = self.labels[draw.rows]
        return draw.features, self.codes(classes) if self.given else classes, draw.rows

    def queries(self) -> Tensor:
        """Return test points."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return 2 * torch.randn(QUERIES, 2, generator=generator, dtype=torch.float64).to(self.dtype)


def case_of(seed: int) -> Case:
    """Return the training of a seed."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    dtype = draw.choice([torch.float32, torch.float64])
    count, classes, identity = draw.randint(4, 7), draw.choice([2, 3]), draw.choice(IDENTITIES)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, classes, (count,), generator=generator)
    labels[:classes] = torch.arange(classes)
    if "equal" in identity:
        x[-2:], labels[-2:] = x[:2].clone(), labels[:2].clone()
    steps = _steps(draw, generator, x, identity)
    given = draw.random() < 0.3
    # As numbers, targets have no classes to choose from.
    chosen = (draw.randrange(classes),) if draw.random() < 0.2 and not given else None
    adversary = BoundedAdversary(n=1, nu=0.1) if given else BoundedAdversary(n=1, nu=1, q=0, target_classes=chosen)
    rate = draw.choice([0.05, 0.2, 0.5, 1.0])
    return Case(
        seed,
        dtype,
        classes,
        labels,
        given,
        frozen=draw.random() < 0.4,
        steps=steps,
        options=draw.choice(OPTIONS),
        rates=tuple(rate / (1 + 0.1 * number * (seed % 2)) for number in range(len(steps))),
        named="named" in identity or identity.startswith("names"),
        stop=draw.randrange(len(steps)) if draw.random() < 0.3 else None,
        adversary=adversary,
        factor=draw.choice([1.0, 1.0, 3.0]),
    )


def _steps(draw: random.Random, generator: torch.Generator, x: Tensor, identity: str) -> tuple[Draw, ...]:
    """Return shuffled mini-batches of one to three epochs, or full batches whose epoch is not said."""
    epochs, noise = draw.randint(1, 3), 0.3 if "augmented" in identity else 0.0
    size, unknown = draw.choice([2, 3, len(x)]), draw.random() < 0.2
    size = len(x) if unknown and draw.random() < 0.7 else size
    repeated = "named" in identity and draw.random() < 0.5
    steps = []
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        batches = list(order.split(size))
        if repeated:  # a sampler that draws some samples several times in an epoch, in different steps
            batches += [torch.randperm(len(x), generator=generator)[:size] for _ in range(2)]
        for rows in batches:
            moved = x[rows] + noise * torch.randn(len(rows), 2, generator=generator, dtype=torch.float64).to(x.dtype)
            steps.append(Draw(rows, moved if noise else x[rows], None if unknown else epoch))
    return tuple(steps)


# --- the certificate ---------------------------------------------------------------------------------------------


def certified(case: Case) -> tuple[Tensor, Tensor]:
    """Train, interrupted if the case says so, and return certified flips and predicted classes of the queries.

    Raises:
        AgtError: if there is no certificate.
    """
    module = case.module()
    engine = _engine(case, module)
    optimizer = torch.optim.SGD(module[1].parameters(), lr=1.0, **case.options)
    for number, draw in enumerate(case.steps):
        if number == case.stop:
            engine = _resumed(case, module, engine)
        optimizer.param_groups[0]["lr"] = case.rates[number]
        engine.step([case.batch(draw)], optimizer, draw.epoch)
    model = CertifiedModel(module, engine.bounds, sets=engine.parameter_sets)
    return model.certified_flips(case.queries()), predicted(module(case.queries()).detach())


def _engine(case: Case, module: nn.Module) -> AbstractGradientEngine:
    names = (lambda batch: batch[2]) if case.named else None
    return AbstractGradientEngine(module, case.loss, case.adversary, domains="influence", sample_ids=names)


def _resumed(case: Case, module: nn.Module, engine: AbstractGradientEngine) -> AbstractGradientEngine:
    """Return a new engine that goes on from a file."""
    if engine.steps == 0:
        return engine
    file = io.BytesIO()
    torch.save(bounds_to_save(engine, 0), file)
    file.seek(0)
    other = _engine(case, module)
    resume(other, torch.load(file, weights_only=True))
    return other


def predicted(outputs: Tensor) -> Tensor:
    """Return the class of outputs (..., K): the largest, or the sign of the only one."""
    return (outputs[..., 0] > 0).long() if outputs.shape[-1] == 1 else outputs.argmax(dim=-1)


# --- all flips ---------------------------------------------------------------------------------------------------


def labelings(case: Case) -> tuple[Tensor, Tensor]:
    """Return all labelings with at most `MOST` flips, (L, N), and the number of flips of each, (L,)."""
    allowed = case.adversary.target_classes
    classes = range(case.classes) if allowed is None else allowed
    changed = [case.labels]
    for number in range(1, min(MOST, len(case.labels)) + 1):
        for rows in itertools.combinations(range(len(case.labels)), number):
            options = [[c for c in classes if c != int(case.labels[row])] for row in rows]
            for chosen in itertools.product(*options):
                labeling = case.labels.clone()
                labeling[list(rows)] = torch.tensor(chosen, dtype=torch.int64)
                changed.append(labeling)
    every = torch.stack(changed)
    return every, (every != case.labels).sum(dim=1)


def retrained(case: Case, every: Tensor) -> Tensor:
    """Train one head for each labeling, side by side, and return the classes of the queries, (L, Q)."""
    module = case.module()
    frozen, head = module[0], dict(module[1].named_parameters())
    weight, *biases = [nn.Parameter(p.detach().expand(len(every), *p.shape).clone()) for p in head.values()]
    bias = biases[0] if biases else None
    optimizer = torch.optim.SGD([weight] if bias is None else [weight, bias], lr=1.0, **case.options)
    for draw, rate in zip(case.steps, case.rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        outputs = _outputs(frozen(draw.features), weight, bias)
        errors = (outputs - case.codes(every[:, draw.rows])).square().mean(dim=(1, 2))
        optimizer.zero_grad()
        (case.factor * errors).sum().backward()
        optimizer.step()
    return predicted(_outputs(frozen(case.queries()), weight, bias).detach())


def _outputs(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return outputs of all heads, (L, b, K)."""
    outputs = torch.einsum("bd,lkd->lbk", features, weight)
    return outputs if bias is None else outputs + bias[:, None]


def violations(seed: int, counts: Counter[str]) -> Iterator[str]:
    """Yield predictions that a certified number of flips changes, and count what was tried."""
    case = case_of(seed)
    try:
        flips, nominal = certified(case)
    except UncertifiableError:
        counts["refused"] += 1
        return
    except AgtError as error:
        counts["stopped"] += 1
        yield f"seed {seed}: {type(error).__name__}: {error}"
        return
    every, number = labelings(case)
    changed = retrained(case, every) != nominal
    counts["trainings"] += 1
    counts["retrained"] += len(every)
    counts["predictions"] += len(flips)
    least = torch.where(changed, number[:, None], MOST + 1).amin(dim=0)
    found = least <= MOST
    counts["certified exactly"] += int((found & (least == flips + 1)).sum())
    for query in (found & (least <= flips)).nonzero().flatten().tolist():
        counts["violations"] += 1
        yield f"seed {seed}, query {query}: {int(flips[query])} flips are certified, {int(least[query])} change it"


def main() -> None:
    """Run until time is over, and print what was found; exit with 1 if something was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1.0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    end, seed = time.monotonic() + 60 * arguments.minutes, arguments.seed
    while time.monotonic() < end:
        for violation in violations(seed, counts):
            sys.stdout.write(f"{violation}\n")
            sys.stdout.flush()
        seed += 1
    sys.stdout.write(f"{dict(counts)}\n")
    sys.exit(bool(counts["violations"] or counts["stopped"]))


if __name__ == "__main__":
    main()
