"""Where, when and by which command a training was run, and by which code; nothing secret, no folders of a user."""

from __future__ import annotations

import inspect
import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agt_lightning.digest import content_digest, file_digest

PACKAGES = ("agt-lightning", "torch", "lightning", "pytorch-lightning", "torchmetrics", "numpy")
"""Whose versions a certificate states; sources of these and of what they need are not stated."""

_SECRET = re.compile(r"key|token|secret|passw|passwd|credential|auth", re.IGNORECASE)
_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")
_PLAIN = (bool, int, float, str, type(None))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a certificate depends on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def made(module: nn.Module, started: datetime, ended: datetime) -> dict[str, Any]:
    """Return when, where and by which command a training was run.

    Args:
        module: that was trained.
        started: of its last `fit`.
        ended: of the same.
    """
    return {
        "started": started.isoformat(timespec="seconds"),
        "ended": ended.isoformat(timespec="seconds"),
        "seconds": round((ended - started).total_seconds(), 3),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": sorted({_device(parameter.device) for parameter in module.parameters()}),
        "command": public(sys.argv),
    }


def public(command: Sequence[str]) -> list[str]:
    """Return a command without secrets and folders of a user.

    What follows a name such as ``--api-key`` is left out, and so are the names before an ``@`` of an address. The
    working directory becomes ``.``, the home folder ``~``, and of the script only the name is left.

    Example:
        >>> public(["/srv/train.py", "--lr=1", "--token", "abc", "db_password=abc", "a://me:abc@host/b"])
        ['train.py', '--lr=1', '--token', '[left out]', 'db_password=[left out]', 'a://[left out]@host/b']
    """
    shown, hide = [], False
    for position, word in enumerate(command):
        name, equals, _ = word.partition("=")
        secret = bool(_SECRET.search(name)) and not Path(word).is_file()
        if hide:
            shown.append("[left out]")
        elif secret and equals:
            shown.append(f"{name}=[left out]")
        else:
            shown.append(_ADDRESS.sub("[left out]@", _without_folders(word)) if position else Path(word).name)
        hide = secret and not equals and word.startswith("-")
    return shown


def sources(module: nn.Module) -> list[dict[str, Any]]:
    """Return the digests of the files with the code of a module and its parts, without those of installed packages.

    Args:
        module: with classes of the user's own.

    Returns:
        Name of the Python module and SHA-256 of its file, None if it has none; sorted by name.
    """
    kinds = {kind for part in module.modules() for kind in type(part).__mro__ if kind is not object}
    files = {kind.__module__: _file(kind) for kind in kinds if kind.__module__ != "builtins"}
    own = {name: path for name, path in files.items() if path is None or not _is_installed(name, path)}
    return [
        {"module": name, "sha256": None if path is None else file_digest(path)} for name, path in sorted(own.items())
    ]


def hyperparameters(*owners: object) -> str | None:
    """Return the digest of what `save_hyperparameters` kept of modules and data modules; None if nothing.

    Args:
        *owners: a module, a data module; None for those that are missing.
    """
    kept = [_plain(dict(each)) for owner in owners if (each := getattr(owner, "hparams", None))]
    return content_digest(kept) if kept else None


def _plain(value: object) -> object:
    """Return a setting as numbers and strings; of an object, the name of its type."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, _PLAIN) or torch.is_tensor(value) else type(value).__qualname__


def _file(kind: type) -> Path | None:
    try:
        found = inspect.getsourcefile(kind)
    except (TypeError, OSError):
        return None
    return Path(found) if found and Path(found).is_file() else None


def _is_installed(name: str, path: Path) -> bool:
    """Return whether a module comes with a package whose version says what it is."""
    own = Path(__file__).parents[1]
    return name.partition(".")[0] in ("torch", "lightning", "pytorch_lightning", "torchmetrics") or (
        path.is_relative_to(own) or "site-packages" in path.parts or path.is_relative_to(Path(os.__file__).parent)
    )


def _without_folders(word: str) -> str:
    """Return a word of the command with the working directory and the home folder shortened, where a path begins."""
    for folder, short in ((str(Path.cwd()), "."), (str(Path.home()), "~")):
        if len(folder) > 1:
            word = re.sub(rf"(?<![^=:,]){re.escape(folder)}(?=/|$)", short, word)
    return word


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {named[0] if named else platform.processor()}".strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
