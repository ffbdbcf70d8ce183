"""Print the oldest versions that ``pyproject.toml`` admits, as constraints for pip: ``make matrix`` installs these."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def floors(project: Path = PROJECT) -> Iterator[str]:
    """Yield ``name==version`` for the lower limit of each dependency of the package itself.

    Args:
        project: the ``pyproject.toml`` to read.

    Raises:
        ValueError: if a dependency has not exactly one lower limit, so that no version is its oldest.
    """
    with project.open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    for requirement in map(Requirement, dependencies):
        lowest = [limit.version for limit in requirement.specifier if limit.operator == ">="]
        if len(lowest) != 1:
            raise ValueError(
                f"Expected one `>=` for each dependency, but got `{requirement}`. State its oldest version."
            )
        yield f"{requirement.name}=={lowest[0]}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in floors())
