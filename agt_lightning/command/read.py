"""The certificates that a command line names, each read and checked against its form and its own digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agt_lightning.certificates.findings import Finding

CERTIFICATE = "certificate.json"


@dataclass(frozen=True)
class CheckedFile:
    """A file of one or several certificates.

    Args:
        path: of the file.
        certificates: by name of the adversary, an empty name if there is one; none if `findings` contradict them.
        findings: what was checked, from the file alone.
    """

    path: Path
    certificates: Mapping[str, Mapping[str, Any]]
    findings: Sequence[Finding]

    @classmethod
    def read(cls, path: Path) -> CheckedFile:
        """Read and check a file, as ``agt verify`` does first."""
        from agt_lightning.certificates.document import MalformedCertificateError, read_certificate
        from agt_lightning.certificates.findings import Finding, status
        from agt_lightning.certificates.verification import certificates_in, document_findings

        try:
            record = read_certificate(path)
        except (OSError, MalformedCertificateError) as error:
            return cls(path, {}, [Finding.unchecked("certificate", str(error))])
        found = document_findings(record)
        return cls(path, {} if status(found) else certificates_in(record), found)


def certificate_files(given: Iterable[Path]) -> list[Path]:
    """Return files as they are, and of folders every `certificate.json` in them and below, each once."""
    paths = [found for path in given for found in (sorted(path.rglob(CERTIFICATE)) if path.is_dir() else [path])]
    return list(dict.fromkeys(paths))
