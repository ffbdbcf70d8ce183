"""Print the table of docs/modules.md: every module of the collection under each adversary that makes sense for it.

python -m tests.wild                     # minutes
python -m tests.wild text vision         # some families, or modules by name
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterable

import torch

from tests.fuzz.report import say
from tests.wild.collection import cells
from tests.wild.matrix import Outcome, complaint, outcome
from tests.wild.registry import Threat, Wild

Row = tuple[Wild, Threat, Outcome]


def main() -> None:
    """Print a row for each cell, then the counts; exit with 1 if a cell is not as the collection expects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="families or modules; all if there are none")
    names = set(parser.parse_args().names)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    chosen = [(wild, threat) for wild, threat in cells() if not names or names & {wild.name, wild.family}]
    say("| module | family | adversary | outcome | mean width | step, s | plain step, s |")
    say("|---|---|---|---|---|---|---|")
    rows, wrong = [], 0
    for wild, threat in chosen:
        found = outcome(wild, threat)
        rows.append((wild, threat, found))
        say(line(wild, threat, found))
        said = complaint(wild, threat, found)
        if said is not None:
            wrong += 1
            say(f"{wild.name}, {threat.name}: {said}")
    say(summary(rows))
    sys.exit(bool(wrong))


def line(wild: Wild, threat: Threat, found: Outcome) -> str:
    """Return one row of the table."""
    if found.error is None:
        verdict = "held"
        numbers = f"{found.width:.1e} | {found.seconds:.2g} | {found.plain:.1g}"
    else:
        expected = wild.refused.get(threat.name)
        verdict = f"refused: {expected.cause}" if found.refused and expected is not None else "not as expected"
        numbers = "| |"
    return f"| `{wild.name}` | {wild.family} | {threat.name} | {verdict} | {numbers} |"


def summary(rows: Iterable[Row]) -> str:
    """Return the counts, of modules by all of their adversaries."""
    modules: dict[str, list[bool]] = {}
    possible: dict[str, bool] = {}
    causes: Counter[tuple[bool, str]] = Counter()
    for wild, threat, found in rows:
        modules.setdefault(wild.name, []).append(found.error is None)
        expected = wild.refused.get(threat.name)
        if found.error is not None and expected is not None:
            causes[expected.impossible, expected.cause] += 1
            possible[wild.name] = possible.get(wild.name, True) and not expected.impossible
    whole, held = len(modules), sum(map(all, modules.values()))
    some = sum(map(any, modules.values()))
    real = sum(not possible.get(name, True) and not any(found) for name, found in modules.items())
    lines = [
        f"{held} of {whole} modules hold under each of their adversaries ({held / whole:.0%}), {some} under at least "
        f"one ({some / whole:.0%}). Of the {whole - real} that are not refused for an impossibility, "
        f"{some / (whole - real):.0%} hold.",
        "",
    ]
    for impossible, title in ((True, "Impossible"), (False, "Not impossible, but missing")):
        own = [(count, cause) for (kind, cause), count in causes.items() if kind is impossible]
        lines.append(f"{title}: " + ", ".join(f"{cause} ({count})" for count, cause in sorted(own, reverse=True)) + ".")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
