"""Modules and data that a command line names, built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file
from torch import Tensor

from agt_lightning.certificates.environment import sources
from agt_lightning.certificates.findings import Finding
from agt_lightning.certificates.verification import StoredWeights
from agt_lightning.command.named import UnknownNameError, named
from agt_lightning.lightning.packages import DATA_MODULES, LIGHTNING_MODULES

_ROWS = 1024
"""Samples of a batch that is made of a file."""

_HYPERPARAMETERS = "hyper_parameters"
"""Key of Lightning's checkpoint."""


def made_by(name: str, settings: Mapping[str, Any] | None = None) -> L.LightningModule:
    """Return the LightningModule that a class or a function makes.

    Args:
        name: of the class or function; see `named`.
        settings: its arguments.

    Raises:
        UnknownNameError: if there is no such thing, or it makes no module.
    """
    make = named(name)
    if isinstance(make, LIGHTNING_MODULES):
        return make
    if not callable(make):
        raise UnknownNameError(f"Expected {name} to be a class or function, but got {type(make).__name__}.")
    try:
        module = make(**(settings or {}))
    except Exception as error:  # whatever the user's code raises
        raise UnknownNameError(
            f"Expected {name} to make a module from {sorted(settings or {}) or 'no arguments'}, but got "
            f"{type(error).__name__}: {error}. Name a function without arguments that makes it."
        ) from error
    if not isinstance(module, LIGHTNING_MODULES):
        raise UnknownNameError(f"Expected {name} to make a LightningModule, but got {type(module).__name__}.")
    return module


def built(name: str, weights: StoredWeights) -> L.LightningModule:
    """Return a module with the weights of a file, made with the hyperparameters of its checkpoint.

    Raises:
        UnknownNameError: if it cannot be made, or has other parameters.
    """
    module = made_by(name, weights.checkpoint.get(_HYPERPARAMETERS))
    try:
        module.load_state_dict(dict(weights.state))
    except RuntimeError as error:
        raise UnknownNameError(f"Expected {name} to have the parameters of the weights, but {error}") from error
    return module


def source_findings(record: Mapping[str, Any], module: L.LightningModule) -> list[Finding]:
    """Compare the code of a module with that of a certificate."""
    stated = [each["sha256"] for each in record["digests"]["source"]]
    if not stated or None in stated:
        return [Finding.unchecked("source", "the certificate has no digest of all of the module's code")]
    found = {each["sha256"]: each["module"] for each in sources(module)}
    other = [found[digest] for digest in found if digest not in stated]
    if other or set(stated) - set(found):
        files = ", ".join(other) or "some files"
        return [Finding.contradicted("source", f"the code of the module is not that of the training: {files}")]
    return [Finding.holds("source", f"{len(found)} files with the module's code, as certified")]


def batches_of(name: str) -> list[Iterable[object]]:
    """Return the validation loaders that a command line names.

    Args:
        name: of a file of tensors, or of a function, loader or data module; see `named`.

    Raises:
        UnknownNameError: if there is no such thing, or it has no batches.
    """
    path = Path(name)
    if path.suffix in (".safetensors", ".pt", ".pth"):
        return [list(_of_file(path))]
    found = named(name)
    try:
        return _loaders(found() if callable(found) else found)
    except Exception as error:  # whatever the user's code raises
        raise UnknownNameError(f"Expected {name} to make data, but got {type(error).__name__}: {error}") from error


def _loaders(found: Any) -> list[Iterable[object]]:
    if isinstance(found, DATA_MODULES):
        found.prepare_data()
        found.setup("validate")
        found = found.val_dataloader()
    if isinstance(found, Sequence) and found and not _is_batch(found[0]):
        return list(found)
    return [found]


def _is_batch(value: object) -> bool:
    """Whether the first of a sequence is a batch, so that the sequence is one loader, and not a loader itself."""
    return isinstance(value, Tensor | Mapping | tuple | list)


def _of_file(path: Path) -> Iterator[object]:
    """Yield batches of the tensors in a file: a tuple if they are named 0, 1 and so on, else a dictionary."""
    if not path.is_file():
        raise UnknownNameError(f"Expected a file of tensors, but there is none at {path}.")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    except Exception as error:  # whatever reading damaged bytes comes upon
        raise UnknownNameError(f"Expected a file of tensors, but {path} is none: {error}") from error
    tensors = dict(enumerate(content)) if isinstance(content, tuple | list) else dict(content)
    in_order = sorted(tensors, key=lambda key: int(key)) if all(str(key).isdigit() for key in tensors) else None
    size = len(next(iter(tensors.values())))
    for start in range(0, size, _ROWS):
        rows = {key: each[start : start + _ROWS] for key, each in tensors.items()}
        yield rows if in_order is None else tuple(rows[key] for key in in_order)
