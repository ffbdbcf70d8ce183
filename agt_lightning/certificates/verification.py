"""Checks of a certificate against itself, its bounds and its weights; results are never taken as they are."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from agt_lightning.bounds import ParameterBounds
from agt_lightning.certificates import class_counts
from agt_lightning.certificates.acceptance import judged
from agt_lightning.certificates.assumptions import ASSUMPTIONS, OF_BUDGETS
from agt_lightning.certificates.digests import bounds_digest, weights_digests
from agt_lightning.certificates.document import DIGEST, MalformedCertificateError, canonical_digest, plain
from agt_lightning.certificates.environment import versions
from agt_lightning.certificates.findings import Finding
from agt_lightning.certificates.record import SEVERAL
from agt_lightning.certificates.schema import require_known_format, schema_problems
from agt_lightning.certificates.scope import UNITS, metrics
from agt_lightning.digest import file_digest, tensors_digest, values_digest
from agt_lightning.errors import BoundsMismatchError, UnsoundBoundError

RELATIVE = 1e-9
"""By how much figures in float64 may differ that are summed in another order."""

_RESULT = re.compile(r"mean_width|val_(nominal|certified|best)_\w+(/dataloader_idx_\d+)?")
"""Names of results."""

_BETTER = {"accuracy": 1.0, "mse": -1.0}
"""Whether a larger value of a metric is better."""


def document_findings(record: Mapping[str, Any]) -> list[Finding]:
    """Check format, schema, digests and agreement of a certificate's own entries.

    Args:
        record: from `read_certificate`.

    Returns:
        Findings; none of the others matters if one of them is contradicted or unchecked.
    """
    try:
        require_known_format(record)
        found = [_own_digest(record)]
    except MalformedCertificateError as error:
        return [Finding.unchecked("format", str(error))]
    problems = schema_problems(record)
    if problems:
        return [*found, *(Finding.contradicted("schema", problem) for problem in problems)]
    found.append(Finding.holds("schema", "the certificate has the form of version 2"))
    for name, each in certificates_in(record).items():
        about = f"certificate {name}".strip()
        if name:
            found.append(_own_digest(each, about))
        disagreements = [*_disagreements(each), *(_on_the_curve(record, name) if name else ())]
        found += [Finding.contradicted(about, text) for text in disagreements]
        if not disagreements:
            found.append(Finding.holds(about, "its entries agree with each other"))
    return found


def certificates_in(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the certificates in a file by name of the adversary; the name of a single one is empty."""
    return dict(record["certificates"]) if record["format"] == SEVERAL else {"": record}


def _own_digest(record: Mapping[str, Any], about: str = "content") -> Finding:
    stated, computed = record.get(DIGEST), canonical_digest(record)
    if stated != computed:
        return Finding.contradicted(
            about, f"its entries have the digest {computed}, but it states {stated!r}: something in it was changed"
        )
    return Finding.holds(about, f"SHA-256 {computed}")


def _disagreements(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what one entry of a certificate says and another one denies."""
    steps, results, budget = record["steps"], record["results"], record["budget"]
    places = {
        "results_are_of.steps": record["results_are_of"]["steps"],
        "budget.steps": budget["steps"],
        "phases": record["phases"][-1]["steps"][1] if record["phases"] else 0,
        **{f"metrics[{at}].step": each["step"] for at, each in enumerate(record["metrics"])},
    }
    for place, stated in places.items():
        if stated != steps:
            yield f"`steps` is {steps}, but `{place}` is {stated}"
    firsts = [phase["steps"][0] for phase in record["phases"]]
    if firsts != [1, *(phase["steps"][1] + 1 for phase in record["phases"][:-1])][: len(firsts)]:
        yield "`phases` leave out steps, or count some twice"
    batches = record["digests"]["training_batches"]
    if batches["first_step"] + batches["steps"] - 1 != steps:
        yield f"`digests.training_batches` do not end with step {steps}"
    yield from _budget_disagreements(record)
    levels = {phase.get("floats") for phase in record["phases"]}
    if record["floats"]["level"] != ("run" if levels <= {"run"} else "real"):
        yield f"`floats.level` is {record['floats']['level']}, but that of the phases is {levels}"
    shares = {int(loader): share for loader, share in record["bounds"]["domains"]["decided_validation_bounds"].items()}
    if record["metrics"] != metrics(results, shares, steps):
        yield "`metrics` and `results` have different values"
    if record["acceptance"] != plain(judged([_criterion(each) for each in record["acceptance"]], numbers(results))):
        yield "`acceptance` states other values than `results`, or judges them otherwise than its limits"
    unknown = [name for name in results if not _RESULT.fullmatch(name)]
    if unknown:
        yield f"`results` has entries that no training states: {', '.join(unknown[:5])}"
    yield from _impossible(record["metrics"])
    yield from class_counts.disagreements(record.get("by_class", []), record["metrics"])
    yield from _missing_assumptions(record)


def _missing_assumptions(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the assumptions of every certificate that one of this version leaves out."""
    budget = OF_BUDGETS.get(_counted(record["adversary"]), ASSUMPTIONS[0])
    always = [budget, *ASSUMPTIONS[1:]]
    missing = [each.name for each in always if each.sentence not in record["assumptions"]]
    if missing and record["versions"]["agt-lightning"] == versions()["agt-lightning"]:
        yield f"`assumptions` leave out what every certificate assumes: {', '.join(missing)}"


def _counted(adversary: Mapping[str, Any]) -> tuple[str, str]:
    """Return what the n of an adversary counts, and where; earlier certificates do not say, and mean samples."""
    return adversary.get("counts", "samples"), adversary.get("per", "batch")


def _budget_disagreements(record: Mapping[str, Any]) -> Iterator[str]:
    adversary, budget = record["adversary"], record["budget"]
    if budget["n"] != adversary["n"]:
        yield f"`budget.n` is {budget['n']}, but `adversary.n` is {adversary['n']}"
    if budget["edits"] != adversary.get("edits", "replace"):
        yield f"`budget.edits` is {budget['edits']}, but the adversary's is {adversary.get('edits', 'replace')}"
    if budget["a_replaced_sample_counts"] != (2 if budget["edits"] == "insert-delete" else 1):
        yield "`budget.a_replaced_sample_counts` does not fit `budget.edits`"
    samples = budget["samples_per_step"]
    counts, per = _counted(adversary)
    if budget["unit"] != (unit := UNITS.get((counts, per))):
        yield f"`budget.unit` is {budget['unit']}, but the adversary's n is of {unit}"
    share = min(1.0, budget["n"] / samples[0]) if counts == "samples" and samples and samples[0] else None
    if budget["share_of_the_smallest_batch"] != share:
        yield f"`budget.share_of_the_smallest_batch` should be {share}"
    if samples and samples[0] > samples[1]:
        yield "`budget.samples_per_step` is no range"


def _impossible(stated: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield metrics in which a certified value is better than that of the trained module itself."""
    for each in stated:
        sign = _BETTER.get(each["metric"])
        nominal, certified, best = (each[kind] for kind in ("nominal", "certified", "best"))
        if sign is not None and None not in (nominal, certified) and sign * float(certified) > sign * float(nominal):
            yield f"the certified {each['metric']} {certified} is better than the nominal one, {nominal}"
        if sign is not None and None not in (nominal, best) and sign * float(best) < sign * float(nominal):
            yield f"the best {each['metric']} {best} is worse than the nominal one, {nominal}"


def _on_the_curve(record: Mapping[str, Any], name: str) -> Iterator[str]:
    points = [point for point in record["curve"] if point["name"] == name]
    own = record["certificates"][name]
    if [point["results"] for point in points] != [own["results"]]:
        yield "`curve` does not have its results exactly once"
    if any(own["adversary"].get(key) != value for point in points for key, value in point["settings"].items()):
        yield "`curve` states other settings than those of the adversary"


def _criterion(stated: Mapping[str, Any]) -> dict[str, Any]:
    return {key: stated[key] for key in ("metric", "at_least", "at_most", "set_after_step") if key in stated}


def numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """Return results as numbers, infinities among them."""
    return {name: float(value) if isinstance(value, str) else value for name, value in results.items()}


def is_of_a_validation(name: str) -> bool:
    """Return whether a result is of a validation, and not of the bounds alone."""
    return name.startswith("val_")


def acceptance_findings(record: Mapping[str, Any]) -> list[Finding]:
    """Check the criteria of a certificate: fixed before the first step, and met."""
    found = []
    for each in record["acceptance"]:
        limit = f"at least {each['at_least']}" if "at_least" in each else f"at most {each['at_most']}"
        text = f"{each['metric']} {limit}"
        if not each["set_before_the_first_step"]:
            late = f"{text} was set after step {each['set_after_step']}, not before the first one"
            found.append(Finding.contradicted("acceptance", late))
        if each["met"] is None:
            found.append(Finding.unchecked("acceptance", f"{text}: there is no such result"))
        elif each["met"]:
            found.append(Finding.holds("acceptance", f"{text}: it is {each['value']}"))
        else:
            found.append(Finding.contradicted("acceptance", f"{text}: not met, it is {each['value']}"))
    return found


# --- bounds --------------------------------------------------------------------------------------------------------


def bounds_findings(record: Mapping[str, Any], path: Path) -> tuple[list[Finding], ParameterBounds | None]:
    """Check a file of bounds against a certificate.

    Args:
        record: of one adversary.
        path: of the file.

    Returns:
        Findings, and the bounds if they can be read.
    """
    stated = record["digests"]["bounds"]
    if not path.is_file():
        return [Finding.unchecked("bounds", f"there is no file {path}")], None
    found = []
    if file_digest(path) != stated["sha256_of_file"]:
        found.append(Finding.contradicted("bounds", f"{path.name} is not the file that was certified, byte for byte"))
    try:
        bounds = ParameterBounds.load(path)
    except (BoundsMismatchError, UnsoundBoundError) as error:
        return [*found, Finding.contradicted("bounds", str(error))], None
    if bounds_digest(bounds) != stated["sha256_of_content"]:
        found.append(Finding.contradicted("bounds", f"{path.name} has other intervals than those that were certified"))
    if bounds.floats != record["phases"][-1].get("floats") if record["phases"] else False:
        found.append(Finding.contradicted("bounds", f"they are about floats={bounds.floats!r}, the certificate is not"))
    width, claimed = bounds.mean_width(), record["results"].get("mean_width")
    if claimed is None or not close(float(claimed), width):
        found.append(Finding.contradicted("mean_width", f"it is {width}, and the certificate claims {claimed}"))
    return found or [
        Finding.holds("bounds", f"{len(bounds)} intervals of mean width {width:.6g}, as certified")
    ], bounds


def close(first: float, second: float) -> bool:
    """Return whether two figures are equal up to the order of a sum."""
    return first == second or math.isclose(first, second, rel_tol=RELATIVE, abs_tol=0.0)


# --- weights -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredWeights:
    """The weights in a file.

    Args:
        state: tensors of the module's `state_dict`.
        checkpoint: all else in the file, of a checkpoint of Lightning's.
        ordered: whether the tensors are in the order of the module.
    """

    state: Mapping[str, Tensor]
    checkpoint: Mapping[str, Any]
    ordered: bool

    @classmethod
    def load(cls, path: Path) -> StoredWeights:
        """Read a checkpoint, a `state_dict` or a file of safetensors; no code in it is run.

        Raises:
            FileNotFoundError: if there is no such file.
            BoundsMismatchError: if it cannot be read.
        """
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            if path.suffix == ".safetensors":
                return cls(load_file(path), {}, ordered=False)
            _require_whole(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            state = content.get("state_dict", content)
            checkpoint = content if "state_dict" in content else {}
            return cls({key: each for key, each in state.items() if isinstance(each, Tensor)}, checkpoint, ordered=True)
        except Exception as error:  # whatever reading damaged bytes comes upon
            first = str(error).partition("\n")[0]
            raise BoundsMismatchError(f"{path.name} is damaged or no file of weights: {first}") from error


def _require_whole(path: Path) -> None:
    """Raise if the checksum of an entry of a checkpoint, which is an archive, is not that of its bytes."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise BoundsMismatchError(f"the entry {damaged} of the archive is damaged")


def weights_findings(record: Mapping[str, Any], weights: StoredWeights, bounds: ParameterBounds) -> list[Finding]:
    """Check weights against a certificate and its bounds.

    Args:
        record: of one adversary.
        weights: from a file.
        bounds: those that the certificate is about.
    """
    missing = [name for name in bounds if name not in weights.state]
    if missing:
        return [Finding.contradicted("weights", f"parameters that have bounds are missing: {', '.join(missing[:5])}")]
    shapes = [name for name in bounds if weights.state[name].shape != bounds[name].shape]
    if shapes:
        return [Finding.contradicted("weights", f"parameters have other shapes than their bounds: {shapes[:5]}")]
    stated, computed = record["digests"]["weights"], weights_digests(weights.state, bounds)
    found = [
        Finding.contradicted("weights", f"the {what} are not those that were certified")
        for what, key in (("parameters", "sha256_of_parameters"), ("other tensors", "sha256_of_other_tensors"))
        if computed[key] != stated[key]
    ]
    outside = [name for name in bounds if not bounds[name].contains(weights.state[name])]
    if outside:
        found.append(
            Finding.contradicted("weights", f"parameters lie outside of their bounds: {', '.join(outside[:5])}")
        )
    if weights.ordered:
        found += _ties(record, weights.state, bounds)
    return found or [Finding.holds("weights", f"{len(bounds)} parameters, as certified, inside their bounds")]


def _ties(record: Mapping[str, Any], state: Mapping[str, Tensor], bounds: ParameterBounds) -> list[Finding]:
    """Check the digests that depend on the order of the parameters in their module."""
    parameters = [(name, state[name]) for name in state if name in bounds]
    found = []
    if tensors_digest(parameters) != record["results_are_of"]["digest_of_the_weights"]:
        found.append(Finding.contradicted("weights", "`results_are_of` names other weights"))
    moved = [(name, state[name]) for name in bounds.running if name in state]
    if bounds.weights != values_digest([*parameters, *moved]):
        found.append(Finding.contradicted("weights", "the bounds are about other weights"))
    return found
