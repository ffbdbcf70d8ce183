"""Write one page about certificates that a colleague can read who has never seen this package.

It holds everything in one file of HTML, without scripts or requests to a network: what was assumed of the adversary,
results, their curve over n of several certificates, criteria, the widest layers, and what is not certified. Form and
own digest of each certificate are checked first, and digests of its bounds where they are there; the page says so, and
that no more was checked.

Exit status: 0 if the page was written; 1 if something contradicts a certificate, 2 if one cannot be read: then no page
is written. A criterion that is not met is on the page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agt_lightning.command.read import CERTIFICATE

if TYPE_CHECKING:
    from agt_lightning.bounds import ParameterBounds
    from agt_lightning.certificates.findings import Finding


_NOT_THERE = "bounds that are not there"
"""What need not be checked for a page, which then has no widths."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``agt report``."""
    parser.add_argument(
        "certificates", type=Path, nargs="+", help="certificate.json, or a folder with some below it, as of a sweep"
    )
    parser.add_argument(
        "--bounds",
        type=Path,
        nargs="+",
        help="files of bounds, each known by its digest; left out, those beside the certificates are taken",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Write the page, or print what contradicts a certificate, and return the exit status."""
    from agt_lightning.bounds import atomic_path
    from agt_lightning.certificates.findings import status
    from agt_lightning.command.page import Shown, page
    from agt_lightning.command.read import CheckedFile, certificate_files

    paths = certificate_files(arguments.certificates)
    problem = _problem(paths, arguments)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    files = [CheckedFile.read(path) for path in paths]
    checked = [(str(file.path), finding) for file in files for finding in file.findings]
    shown = []
    for file in files:
        stored = _by_digest(arguments.bounds or file.path.parent.glob("bounds*.safetensors"))
        for name, record in file.certificates.items():
            title = f"{file.path}, {name}" if name else str(file.path)
            findings, bounds = _bounds(record, stored, given=arguments.bounds is not None)
            checked += [(title, finding) for finding in findings]
            shown.append(Shown(title, record, bounds))
    wrong = [(of, finding) for of, finding in checked if status([finding]) and finding.about != _NOT_THERE]
    for of, finding in wrong:
        print(f"{of}: {finding}", file=sys.stderr)
    if wrong:
        return status([finding for _, finding in wrong])
    with atomic_path(arguments.output) as partial:
        partial.write_text(page(shown, checked), encoding="utf-8")
    print(f"Wrote {arguments.output} about {len(shown)} certificate{'s' * (len(shown) > 1)}.")
    return 0


def _problem(paths: Sequence[Path], arguments: argparse.Namespace) -> str:
    """Return why there can be no page; an empty text if there can."""
    if not paths:
        return f"Expected certificates, but there is no {CERTIFICATE} in the folders named."
    bounds = arguments.bounds or []
    missing = [path for path in bounds if not path.is_file()]
    if missing:
        return f"Expected a file of bounds, but there is no file {missing[0]}."
    if arguments.output.resolve() in [path.resolve() for path in (*paths, *bounds)]:
        return f"Expected another file for the page, but {arguments.output} is one of those that it is about."
    return ""


def _by_digest(paths: Iterable[Path]) -> dict[str, Path]:
    from agt_lightning.digest import file_digest

    return {file_digest(path): path for path in paths if path.is_file()}


def _bounds(
    record: Mapping[str, Any], stored: Mapping[str, Path], *, given: bool
) -> tuple[list[Finding], ParameterBounds | None]:
    """Return what is found about the intervals of a certificate, and these if there is a file with their digest.

    Args:
        record: of one adversary.
        stored: files of bounds by digest.
        given: whether the user named them, and not we looked for them.
    """
    from agt_lightning.certificates.findings import Finding
    from agt_lightning.certificates.verification import bounds_findings

    path = stored.get(record["digests"]["bounds"]["sha256_of_file"])
    if path is not None:
        return bounds_findings(record, path)
    if given:
        return [Finding.contradicted("bounds", "no file of `--bounds` has the digest that it states")], None
    return [Finding.unchecked(_NOT_THERE, "no file with the digest that it states is beside it")], None
