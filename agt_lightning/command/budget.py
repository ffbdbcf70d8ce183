"""Tell the largest n of a sweep's certificates whose certified value is within a limit, and which n to try next.

The certificates must be alike but for n: the same adversary, optimizer, steps, data and code. Of each, form and own
digest are checked, no more; `agt verify` checks the figures.

Exit status: 0 if some n is within the limit; 1 if none is, or something contradicts a certificate; 2 if that is not
known: a file cannot be read, or certificates are not alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agt_lightning.certificates import Acceptance, Budget


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``agt budget``."""
    parser.add_argument(
        "certificates", type=Path, nargs="+", help="certificate.json, or a folder with some below it, as of a sweep"
    )
    parser.add_argument("--metric", default="val_certified_accuracy", help="name of the result (%(default)s)")
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument("--at-least", type=float, help="smallest value that is accepted")
    limit.add_argument("--at-most", type=float, help="largest value that is accepted")


def run(arguments: argparse.Namespace) -> int:
    """Print the values by n and what follows, and return the exit status."""
    from agt_lightning.certificates import Acceptance, Budget
    from agt_lightning.certificates.alike import differences
    from agt_lightning.certificates.findings import status
    from agt_lightning.command.read import CheckedFile, certificate_files

    try:
        limit = Acceptance(arguments.metric, arguments.at_least, arguments.at_most)
    except ValueError as error:
        return _refuse(str(error))
    files = [CheckedFile.read(path) for path in certificate_files(arguments.certificates)]
    wrong = [(file, finding) for file in files for finding in file.findings if status([finding])]
    for file, finding in wrong:
        print(f"{file.path}: {finding}", file=sys.stderr)
    if wrong:
        return status([finding for _, finding in wrong])
    records = [record for file in files for record in file.certificates.values()]
    differing = differences(records)
    if differing:
        return _refuse(
            f"Expected certificates that are alike but for n, but they differ in {', '.join(differing)}. Name those of "
            "one question alone."
        )
    values = _values(records, limit)
    if not values:
        return _refuse(_no_result(records, limit.metric))
    found = Budget.of(values, limit)
    print(report(found, limit, _largest(records)))
    for remark in _remarks(records, limit.metric):
        print(remark)
    return 1 if found.n is None else 0


def _refuse(why: str) -> int:
    print(why, file=sys.stderr)
    return 2


def _values(records: Sequence[Mapping[str, Any]], limit: Acceptance) -> dict[int, float]:
    """Return the results of certificates by n; of several for one n the worst."""
    worst = max if limit.at_least is None else min
    found: dict[int, list[float]] = {}
    for record in records:
        if limit.metric in record["results"]:
            found.setdefault(record["budget"]["n"], []).append(float(record["results"][limit.metric]))
    return {n: worst(values) for n, values in found.items()}


def _remarks(records: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """Return what a reader should know of the certificates, each in a sentence."""
    without = sum(metric not in record["results"] for record in records)
    modules = len({record["results_are_of"]["digest_of_the_weights"] for record in records})
    return [
        *([f"Certificates without {metric}, which were left out: {without}."] if without else []),
        *([f"They are about {modules} modules with different weights."] if modules > 1 else []),
    ]


def _no_result(records: Sequence[Mapping[str, Any]], metric: str) -> str:
    names = sorted({name for record in records for name in record["results"]})
    there = f"they have {', '.join(names)}" if names else "there is none" if not records else "they have no results"
    return f"Expected certificates with a result {metric!r}, but {there}. Give another `--metric` or folder."


def _largest(records: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the number of samples of the largest batch, beyond which n changes nothing; None if it is not known.

    An n of the data set can be larger than a batch.
    """
    samples = [record["budget"]["samples_per_step"] for record in records]
    in_dataset = any("dataset" in record["budget"]["unit"] for record in records)
    return None if in_dataset or None in samples else max(each[1] for each in samples)


def report(found: Budget, limit: Acceptance, largest: int | None) -> str:
    """Return the table of values, the largest n within the limit, and the n to try next, in words.

    Args:
        found: from the certificates.
        limit: the question.
        largest: number of samples of the largest batch; None if it is not known.

    Example:
        >>> from agt_lightning import Acceptance, Budget
        >>> limit = Acceptance("val_certified_accuracy", at_least=0.8)
        >>> print(report(Budget.of({1: 0.9, 2: 0.85, 8: 0.4}, limit), limit, largest=64))
        n  val_certified_accuracy  at least 0.8
        1                     0.9           yes
        2                    0.85           yes
        8                     0.4            no
        The largest n of these within the limit is 2, and 8 is not.
        Try n=5 next.
    """
    asked = f"at least {limit.at_least:g}" if limit.at_least is not None else f"at most {limit.at_most:g}"
    wide = max(len(str(n)) for n in found.tried)
    rows = [("n", limit.metric, asked)]
    for n, value in found.tried.items():
        rows.append((str(n), f"{value:.6g}", "yes" if limit.met_by({limit.metric: value}) else "no"))
    lines = [f"{n:>{wide}}  {value:>{len(limit.metric)}}  {met:>{len(asked)}}" for n, value, met in rows]
    for less, more in found.out_of_order:
        lines.append(f"n={more} has a better value than n={less}: a larger n between those tried can do as well.")
    return "\n".join([*lines, _answer(found), _advice(found, largest)])


def _answer(found: Budget) -> str:
    if found.n is None:
        return "None of these is within the limit."
    failing = f", and {found.fails_at} is not" if found.fails_at is not None else ", the largest that was tried"
    return f"The largest n of these within the limit is {found.n}{failing}."


def _advice(found: Budget, largest: int | None) -> str:
    if found.fails_at is None:
        assert found.n is not None
        if largest is not None and found.n >= largest:
            return f"A batch has no more than {largest} samples: there is no larger n to try."
        doubled = max(1, 2 * found.n)
        return f"Try n={doubled if largest is None else min(doubled, largest)} next."
    following = found.next_n(found.fails_at)
    if following is None:
        return "No n between is left to try." if found.n is not None else "No smaller n is left to try."
    return f"Try n={following} next."
