"""What a command line names: a class or function of a Python module, or of a file."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


class UnknownNameError(Exception):
    """A name on the command line that leads nowhere; the message says how far it leads."""


def named(name: str) -> object:
    """Return what ``package.module:Class`` or ``path/to/file.py:Class`` names; its code is run by the import.

    Args:
        name: of a module or file, and of something in it.

    Raises:
        UnknownNameError: if there is no such thing, or importing it fails.

    Example:
        >>> named("math:pi") > 3
        True
    """
    place, colon, inner = name.rpartition(":")
    if not colon or not place or not inner:
        raise UnknownNameError(f"Expected `module:Class` or `file.py:Class`, but got {name!r}.")
    found: object = _imported(place)
    for part in inner.split("."):
        if not hasattr(found, part):
            raise UnknownNameError(f"Expected {inner!r} in {place}, but there is no {part!r}.")
        found = getattr(found, part)
    return found


def _imported(place: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as ``python -m`` does
    try:
        return _of_file(Path(place)) if place.endswith(".py") else import_module(place)
    except Exception as error:  # whatever the user's code raises
        raise UnknownNameError(f"Expected {place} to be importable, but got {type(error).__name__}: {error}") from error


def _of_file(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # where `inspect` looks for sources
    spec.loader.exec_module(module)
    return module
