"""What can be found about a training before it is run: with data by a few steps of a copy, without by looking."""

from __future__ import annotations

import argparse
import inspect
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
from agt_lightning.lightning import CertifiedTraining
from agt_lightning.lightning.checks import trainer_problems
from agt_lightning.lightning.idle_trainer import idle_trainer
from agt_lightning.optimizers import optimizer_problems


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


def found_without_data(module: L.LightningModule) -> tuple[list[str], list[str]]:
    """Return the problems that show without a batch, and what was looked at.

    Args:
        module: not changed; its `configure_optimizers` is run on a copy.
    """
    looked_at = ["optimizer", "schedules", "hooks", "parameters"]
    with quietly():
        problems = _settings_problems(independent_replica(module))
        example = getattr(module, "example_input_array", None)
        if isinstance(example, torch.Tensor):
            looked_at.append("`forward`")
            problems += _forward_problems(module, example)
    return list(dict.fromkeys(problems)), looked_at


def _settings_problems(module: L.LightningModule) -> list[str]:
    """Return the problems of optimizer, schedules, hooks and parameters."""
    trainer = idle_trainer(module)
    trainer.strategy.connect(module)
    module.trainer = trainer
    if module.automatic_optimization:
        try:
            trainer.strategy.setup_optimizers(trainer)
        except Exception as error:  # whatever `configure_optimizers` raises without data
            return [f"`configure_optimizers` cannot be run without data: {type(error).__name__}: {error}"]
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    return [*trainer_problems(trainer, module), *optimizer_problems(optimizer)]


def _forward_problems(module: nn.Module, example: torch.Tensor) -> list[str]:
    """Return why `forward` has no bounds."""
    copied = independent_replica(module)
    try:
        CertifiedModel(copied, ParameterBounds.point(copied)).bound_forward(example)
    except UncertifiableError as error:
        return list(error.problems)
    except AgtError as error:
        return [str(error)]
    return []


def line_of(kind: type, name: str) -> str:
    """Return file and line of a method that a class of the user's own has; empty if it comes with a package."""
    method = inspect.unwrap(getattr(kind, name))
    code = getattr(method, "__code__", None)
    if code is None or "site-packages" in code.co_filename:
        return ""
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"
