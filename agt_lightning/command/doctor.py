"""Tell which parts of a LightningModule cannot be certified, and why, as a table with file and line.

With `--data`, a few steps are tried on a copy, as `CertifiedTraining.plan` does: nothing is changed or written. Without
data, what shows without a batch is looked at: optimizer, schedules, hooks, parameters, and `forward` if the module has
an `example_input_array`.

Exit status: 0 if the training can be certified; 1 if it cannot; 2 if that is not known.
"""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

_AT_A_LINE = re.compile(r"(?P<what>`[^`]+`) at (?P<place>\S+:\d+) (?P<code>`[^`]*`)(?P<rest>.*)", re.DOTALL)

_NARROWEST = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``agt doctor``."""
    parser.add_argument("module", help="class of the LightningModule, module:Class or file.py:Class; its code is run")
    parser.add_argument(
        "--data",
        help="training data: a file of tensors, or module:name of a batch, a loader, a LightningDataModule, "
        "or a function that makes one",
    )
    parser.add_argument("--n", type=int, default=1, help="samples of each batch that the adversary changes (1)")
    parser.add_argument("--epsilon", type=float, help="by how much features are moved (0.01 if nothing else is given)")
    parser.add_argument("--nu", type=float, help="by how much labels are moved; 1 with --q 0 flips classes")
    parser.add_argument("--q", type=float, default=float("inf"), help="norm of the label ball: 0, 1, 2 or inf")
    parser.add_argument("--kappa", type=float, help="clipping of each sample's gradient: samples are then replaced")
    parser.add_argument("--method", default="ibp", help="ibp, crown, tightest or alpha-crown")


@dataclass(frozen=True)
class Row:
    """One reason why a training cannot be certified.

    Args:
        place: file and line; empty if it is about no line.
        reason: with its way out.
    """

    place: str
    reason: str


def run(arguments: argparse.Namespace) -> int:
    """Print the table, and return the exit status."""
    from agt_lightning.command.named import UnknownNameError
    from agt_lightning.command.parts import made_by
    from agt_lightning.command.trial import adversary_of, found_by_a_trial, found_without_data

    try:
        module = made_by(arguments.module)
        certified = adversary_of(arguments)
        if arguments.data is None:
            problems, summary = found_without_data(module)
        else:
            problems, summary = found_by_a_trial(certified, module, arguments.data)
    except (UnknownNameError, ValueError) as error:
        print(error)
        return 2
    if problems:
        print(f"{arguments.module} cannot be certified, for {len(problems)} reason{'s' * (len(problems) > 1)}:")
        print(table([row for problem in problems for row in rows(problem, module)]))
    print(summary)
    return 1 if problems else 2 if arguments.data is None else 0


def rows(problem: str, module: object) -> list[Row]:
    """Return a problem with the line of code that it is about.

    Args:
        problem: from `UncertifiableError`.
        module: whose methods it may name.
    """
    from agt_lightning.command.trial import line_of

    match = _AT_A_LINE.search(problem)
    if match is not None:
        before = problem[: match.start()]
        return [Row(match["place"], f"{before}{match['what']} in {match['code']}{match['rest']}")]
    names = re.findall(r"`(?:\w+\.)*(\w+)", problem.partition(". ")[0])
    place = next((line for name in names if (line := line_of(type(module), name))), "")
    return [Row(place, problem)]


def table(listed: Sequence[Row]) -> str:
    """Return rows in two columns, as wide as the terminal.

    Example:
        >>> print(table([Row("net.py:3", "no bounds"), Row("", "no steps")]))
        net.py:3  no bounds
        -         no steps
    """
    places = [row.place or "-" for row in listed]
    width = max(map(len, places)) + 2
    space = max(_NARROWEST, shutil.get_terminal_size((120, 24)).columns - width)
    lines = []
    for place, row in zip(places, listed, strict=True):
        wrapped = textwrap.wrap(" ".join(row.reason.split()), space) or [""]
        lines += [f"{place:<{width}}{wrapped[0]}", *(" " * width + line for line in wrapped[1:])]
    return "\n".join(lines)
