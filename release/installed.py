"""Look at the package as a user has it after ``pip install``: its files, its imports, its doctests and ``agt``.

Run by the Python of an environment into which the wheel alone was installed, from a folder that holds no sources:
``python installed.py``. It needs the standard library and the package only.
"""

import doctest
import pkgutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import import_module, metadata, resources, util
from pathlib import Path

EXTRAS = ("hydra", "wandb", "pytest", "sklearn", "matplotlib")
"""Modules of the extras: an environment that has them is not the one to look at."""

LEFT_OUT = ("agt_lightning.aggregation.kernels.triton_program",)
"""Cannot be imported without Triton."""


def problems() -> Iterator[str]:
    """Yield what is wrong with the installed package, a sentence each."""
    present = [name for name in EXTRAS if util.find_spec(name)]
    if present:
        yield f"Expected an environment without extras, but it has {', '.join(present)}."
    home = Path(import_module("agt_lightning").__file__ or "").parent
    if home.parent != Path(sysconfig.get_path("purelib")):
        yield f"Expected the package that was installed, but {home} is imported."
    for name in ("py.typed", "certificates/certificate-2.schema.json"):
        if not resources.files("agt_lightning").joinpath(name).is_file():
            yield f"Expected `{name}` in the package."
    if import_module("agt_lightning").__version__ != metadata.version("agt-lightning"):
        yield "Expected the version of the package in its metadata."
    if subprocess.run([Path(sys.executable).with_name("agt"), "--help"], stdout=subprocess.DEVNULL).returncode:
        yield "Expected `agt --help` to succeed."


def doctests() -> doctest.TestResults:
    """Import every module of the package, run its doctests, and return how many there were and how many failed."""
    failed = attempted = 0
    root = import_module("agt_lightning")
    for found in pkgutil.walk_packages(root.__path__, "agt_lightning."):
        if found.name in LEFT_OUT:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = import_module(found.name)
            result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        failed, attempted = failed + result.failed, attempted + result.attempted
    return doctest.TestResults(failed, attempted)


def main() -> int:
    """Print what was found; the exit status is 1 if something is wrong."""
    found = list(problems())
    result = doctests()
    print("\n".join(found) or "The package is installed whole.")
    print(f"{result.attempted} examples of docstrings run, {result.failed} failed.")
    return 1 if found or result.failed or not result.attempted else 0


if __name__ == "__main__":
    sys.exit(main())
