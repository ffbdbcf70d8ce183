"""What can be found about a training before it is run: with data by a few steps of a copy, without by looking."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path

import lightning as L
import torch
from torch import nn

from agt_lightning.adversaries import Adversary, BoundedAdversary, UnboundedAdversary
from agt_lightning.bounds import ParameterBounds
from agt_lightning.capture.replica import independent_replica
from agt_lightning.certificates import CertifiedModel
from agt_lightning.command.named import UnknownNameError, named
from agt_lightning.command.parts import batches_of
from agt_lightning.command.quiet import quietly
from agt_lightning.errors import AgtError, UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.lightning import CertifiedTraining
from agt_lightning.lightning.checks import trainer_problems
from agt_lightning.lightning.hooks import hook_problems
from agt_lightning.lightning.idle_trainer import idle_trainer
from agt_lightning.optimizers import optimizer_problems

_RADIUS = 1e-6
"""Of bounds that only show whether there are bounds of what depends on them."""


def adversary_of(arguments: argparse.Namespace) -> CertifiedTraining:
    """Return a callback with the threat model that arguments describe.

    Raises:
        ValueError: if they describe none.
    """
    adversary: Adversary
    if arguments.kappa is not None:
        adversary = UnboundedAdversary(n=arguments.n, kappa=arguments.kappa)
    else:
        nothing = arguments.epsilon is None and arguments.nu is None
        epsilon = 0.01 if nothing else arguments.epsilon or 0.0
        adversary = BoundedAdversary(n=arguments.n, epsilon=epsilon, nu=arguments.nu or 0.0, q=arguments.q)
    return CertifiedTraining(adversary, method=arguments.method)


def found_by_a_trial(certified: CertifiedTraining, module: L.LightningModule, data: str) -> tuple[list[str], str]:
    """Return the problems of a training, and what else was found, by a few steps of a copy.

    Args:
        certified: with the threat model.
        module: not changed.
        data: what the command line names.

    Raises:
        UnknownNameError: if it names no data.
    """
    given: object = batches_of(data)[0] if Path(data).suffix in (".safetensors", ".pt", ".pth") else named(data)
    try:
        given = given() if callable(given) and not isinstance(given, torch.Tensor) else given
        given = given[0] if isinstance(given, list) and len(given) == 1 else given
    except Exception as error:  # whatever the user's code raises
        raise UnknownNameError(f"Expected {data} to make data, but got {type(error).__name__}: {error}") from error
    with quietly():
        found = certified.plan(module, given)
    return list(found.problems), "" if found.problems else str(found)


def found_without_data(module: L.LightningModule) -> tuple[list[str], str]:
    """Return the problems that show without a batch, and what was looked at.

    Args:
        module: not changed; its `configure_optimizers` is run on a copy.
    """
    looked_at = ["hooks", "parameters"]
    with quietly():
        copied = independent_replica(module)
        trainer = idle_trainer(copied)
        failure = _with_optimizers(trainer, copied)
        if not failure:
            looked_at = ["optimizer", "schedules", *looked_at]
        problems = trainer_problems(trainer, copied) if not failure else hook_problems(trainer, copied)
        problems += optimizer_problems(trainer.optimizers[0] if trainer.optimizers else None)
        example = getattr(module, "example_input_array", None)
        if isinstance(example, torch.Tensor):
            looked_at.append("`forward`")
            problems += _forward_problems(module, example)
    rest = f"Looked at {', '.join(looked_at)}. Give `--data` for the rest: `training_step` needs a batch."
    return list(dict.fromkeys(problems)), "\n".join([*filter(None, [failure]), rest])


def _with_optimizers(trainer: L.Trainer, module: L.LightningModule) -> str:
    """Let a Trainer have the optimizer and schedules of a module; return why not, if its code fails."""
    trainer.strategy.connect(module)
    module.trainer = trainer
    try:
        if module.automatic_optimization:
            trainer.strategy.setup_optimizers(trainer)
    except Exception as error:  # whatever the user's code raises
        return f"`configure_optimizers` cannot be run without data: {type(error).__name__}: {error}."
    return ""


def _forward_problems(module: nn.Module, example: torch.Tensor) -> list[str]:
    """Return why `forward` has no bounds."""
    copied = independent_replica(module)
    try:
        CertifiedModel(copied, _around(copied)).bound_forward(example)
    except UncertifiableError as error:
        return [f"Predictions of `forward` have no bounds: {problem}" for problem in error.problems]
    except AgtError as error:
        return [str(error)]
    return []


def _around(module: nn.Module) -> ParameterBounds:
    """Return bounds of some width on all that is trained; what has none needs no rules."""
    return ParameterBounds(
        {
            name: Interval.trusted(each.detach() - radius, each.detach() + radius)
            for name, each in module.named_parameters()
            for radius in [_RADIUS if each.requires_grad else 0.0]
        }
    )


def line_of(kind: type, name: str) -> str:
    """Return file and line of the code of a user's own class that defines or reads a name; empty if there is none.

    Args:
        kind: of a module.
        name: of a method, or of something that its code mentions.
    """
    for owner in kind.__mro__:
        try:
            lines, start = inspect.getsourcelines(owner)
            path = inspect.getsourcefile(owner) or ""
        except (OSError, TypeError):
            continue
        if "site-packages" in Path(path).parts:
            continue
        word = re.compile(rf"\b{re.escape(name)}\b")
        found = next((number for number, line in enumerate(lines, start) if word.search(line)), None)
        if found is not None:
            return f"{Path(path).name}:{found}"
    return ""
