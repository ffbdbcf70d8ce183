"""Print a certificate as an in-toto Statement (v1), whose subjects are the files that it is about, to sign it.

The files must be those of the certificate; run `agt verify` on what a signature is to say is verified.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

TYPE = "https://in-toto.io/Statement/v1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``agt statement``."""
    parser.add_argument("certificate", type=Path, help="certificate.json")
    parser.add_argument("--bounds", type=Path, nargs="+", required=True, help="bounds.safetensors, one per adversary")
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint, state_dict or safetensors file")


def run(arguments: argparse.Namespace) -> int:
    """Print the statement, or what contradicts it, and return the exit status."""
    from agt_lightning.certificates.document import read_certificate
    from agt_lightning.certificates.findings import status
    from agt_lightning.certificates.record import SCHEMA
    from agt_lightning.command.verify import verified
    from agt_lightning.digest import file_digest

    unchecked = {"module": None, "data": None, "without_results": True}
    findings = verified(argparse.Namespace(**vars(arguments), **unchecked))
    wrong = [finding for finding in findings if finding.about != "acceptance" and status([finding])]
    for finding in wrong:
        print(finding, file=sys.stderr)
    if wrong:
        return status(wrong)
    files = [*arguments.bounds, arguments.weights]
    statement = {
        "_type": TYPE,
        "subject": [{"name": path.name, "digest": {"sha256": file_digest(path)}} for path in files],
        "predicateType": SCHEMA,
        "predicate": read_certificate(arguments.certificate),
    }
    print(json.dumps(statement, indent=2))
    return 0
