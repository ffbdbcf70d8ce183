"""Check a certificate against its bounds, weights and data, offline. Nothing that it claims is taken as it is.

Exit status: 0 if everything holds; 1 if something contradicts the certificate; 2 if something could not be checked.
It does not prove that the training was run as the certificate says: docs/certificate.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agt_lightning.certificates.findings import Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``agt verify``."""
    parser.add_argument("certificate", type=Path, help="certificate.json")
    parser.add_argument("--bounds", type=Path, nargs="+", required=True, help="bounds.safetensors, one per adversary")
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint, state_dict or safetensors file")
    parser.add_argument("--module", help="class of the LightningModule, module:Class or file.py:Class; its code is run")
    parser.add_argument(
        "--data",
        nargs="+",
        help="of each validation loader: a file of tensors (.safetensors, .pt), or module:function or file.py:function "
        "that returns a loader, several, or a LightningDataModule",
    )
    parser.add_argument(
        "--without-results",
        action="store_true",
        help="check all but the results of validations, without module and data",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what is found, and return the exit status."""
    from agt_lightning.certificates.findings import status

    findings = verified(arguments)
    for finding in findings:
        print(finding)
    code = status(findings)
    print(_summary(findings, code))
    return code


def _summary(findings: Sequence[Finding], code: int) -> str:
    """Return the last line, which tells a criterion that is not met from a certificate that is wrong."""
    from agt_lightning.certificates.findings import Verdict

    if code == 1 and {each.about for each in findings if each.verdict is Verdict.CONTRADICTED} == {"acceptance"}:
        return "The certificate says what was found, but not all of its criteria are met or were set in time."
    return ("Everything that was checked holds.", "The certificate does not hold.", "Not all was checked.")[code]


def verified(arguments: argparse.Namespace) -> list[Finding]:
    """Return what is found about a certificate."""
    from agt_lightning.certificates.document import MalformedCertificateError, read_certificate
    from agt_lightning.certificates.findings import Finding, status
    from agt_lightning.certificates.verification import StoredWeights, certificates_in, document_findings
    from agt_lightning.errors import BoundsMismatchError

    if (arguments.module is None) != (arguments.data is None) or (arguments.data and arguments.without_results):
        return [Finding.unchecked("usage", "give both `--module` and `--data`, or `--without-results` alone")]
    try:
        record = read_certificate(arguments.certificate)
    except (FileNotFoundError, MalformedCertificateError) as error:
        return [Finding.unchecked("certificate", str(error))]
    found = document_findings(record)
    if any(finding.about in ("schema", "format") for finding in found if status([finding])):
        return found
    try:
        weights = StoredWeights.load(arguments.weights)
    except (FileNotFoundError, BoundsMismatchError) as error:
        return [*found, Finding.unchecked("weights", str(error))]
    records = certificates_in(record)
    for name, path in _assigned(records, arguments.bounds).items():
        named = f"certificate {name}: " if name else ""
        if path is None:
            found.append(Finding.unchecked("bounds", f"{named}no file of `--bounds` has its intervals"))
        else:
            found += _of_one(records[name], path, weights, arguments)
    return found


def _of_one(record: Any, path: Path, weights: Any, arguments: argparse.Namespace) -> list[Finding]:
    """Return what is found about the certificate for one adversary."""
    from agt_lightning.certificates.findings import Finding
    from agt_lightning.certificates.verification import (
        acceptance_findings,
        bounds_findings,
        is_of_a_validation,
        weights_findings,
    )

    found, bounds = bounds_findings(record, path)
    if bounds is None:
        return found
    found += weights_findings(record, weights, bounds)
    if arguments.module is not None:
        found += _results(record, bounds, weights, arguments)
    elif not arguments.without_results and any(map(is_of_a_validation, record["results"])):
        found.append(Finding.unchecked("results", "give `--module` and `--data`, or `--without-results`"))
    judged = acceptance_findings(record)
    return [*found, *(judged if arguments.module is not None else filter(_is_about_bounds, judged))]


def _is_about_bounds(finding: Finding) -> bool:
    """Whether a finding on a criterion needs no results of a validation, which may not have been evaluated."""
    from agt_lightning.certificates.verification import is_of_a_validation

    return not is_of_a_validation(finding.message)


def _results(record: Any, bounds: Any, weights: Any, arguments: argparse.Namespace) -> list[Finding]:
    from agt_lightning.certificates.findings import Finding
    from agt_lightning.command.named import UnknownNameError
    from agt_lightning.command.parts import batches_of, built, source_findings
    from agt_lightning.command.quiet import quietly
    from agt_lightning.lightning.reevaluation import reevaluated

    try:
        module = built(arguments.module, weights)
        loaders = [loader for name in arguments.data for loader in batches_of(name)]
    except UnknownNameError as error:
        return [Finding.unchecked("usage", str(error))]
    with quietly():
        found = reevaluated(record, bounds, weights, module, loaders)
    return [*source_findings(record, module), *found]


def _assigned(records: Any, paths: Sequence[Path]) -> dict[str, Path | None]:
    """Return the file of bounds of each certificate; of several files, the one with its digest."""
    from agt_lightning.digest import file_digest

    if len(records) == len(paths) == 1:
        return {name: paths[0] for name in records}
    digests = {file_digest(path): path for path in _existing(paths)}
    return {name: digests.get(record["digests"]["bounds"]["sha256_of_file"]) for name, record in records.items()}


def _existing(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.is_file()]
