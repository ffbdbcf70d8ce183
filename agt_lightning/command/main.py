"""The entry point of ``agt``, and the table of its commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

COMMANDS: Mapping[str, str] = {
    "verify": "check a certificate against its bounds, weights and data, offline",
    "statement": "wrap a certificate in an in-toto Statement, for signing tools",
    "report": "write one page about certificates for readers who do not know the package",
    "budget": "tell the largest n of a sweep's certificates that meets a limit, and which to try next",
    "doctor": "tell which parts of a LightningModule cannot be certified, with file and line",
}
"""What each command does, by its name; each is a file of this package, with ``add_arguments`` and ``run``."""

BAD_USAGE = 2
"""Exit status of argparse for arguments that do not fit; ours for what could not be checked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; entry point of the console script ``agt``.

    Args:
        arguments: the words behind ``agt``; None means those of the process.
    """
    parser = argparse.ArgumentParser(prog="agt", description="Certificates of trainings against data poisoning.")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, purpose in COMMANDS.items():
        command = import_module(f"agt_lightning.command.{name}")
        command.add_arguments(
            parsers.add_parser(
                name,
                help=purpose,
                description=command.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    chosen = parser.parse_args(arguments)
    status: int = import_module(f"agt_lightning.command.{chosen.command}").run(chosen)
    return status


if __name__ == "__main__":
    sys.exit(main())
