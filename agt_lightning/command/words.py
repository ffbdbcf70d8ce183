"""Entries of a certificate in words, for readers who do not know the package."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

METRICS: Mapping[str, str] = {
    "accuracy": "accuracy: the share of samples whose class is predicted rightly",
    "mse": "mean squared error of predictions",
}
"""What a metric measures, by its name in certificates."""

_NORMS = {1.0: "sum of absolute changes", 2.0: "Euclidean length of the change", math.inf: "largest change"}


def figure(value: object) -> str:
    """Return a number of a certificate with six digits; nothing is guessed where there is none.

    Example:
        >>> figure(0.12345678), figure("inf"), figure(None), figure(1200000)
        ('0.123457', 'infinite', 'not evaluated', '1200000')
    """
    if value is None:
        return "not evaluated"
    number = _number(value)
    if number is None:
        return json.dumps(value)
    if math.isinf(number):
        return "infinite" if number > 0 else "minus infinite"
    return str(value) if isinstance(value, int) else f"{number:.6g}"


def percent(share: float) -> str:
    """Return a share in percent.

    Example:
        >>> percent(0.125), percent(1.0), percent(0.00012)
        ('12.5 %', '100 %', '0.012 %')
    """
    return f"{100 * share:.3g} %"


def visible(value: object) -> object:
    r"""Return text with characters that are not seen, or that turn text around, written as escapes.

    Example:
        >>> print(visible("a\u202eb\ud800"))
        a\u202eb\ud800
    """
    if type(value) is not str:  # markup of the template's own macros is a subclass
        return value
    hidden = {mark for mark in set(value) if unicodedata.category(mark) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}
    return "".join(mark.encode("unicode_escape").decode("ascii") if mark in hidden else mark for mark in value)


def budget_in_words(budget: Mapping[str, Any]) -> str:
    """Return how many samples an adversary changes, as count and share, with the unit.

    Args:
        budget: of a certificate.

    Example:
        >>> budget_in_words({"n": 2, "unit": "batch", "edits": "replace", "samples_per_step": [8, 10],
        ...                  "share_of_the_smallest_batch": 0.25})
        'It changes at most 2 samples of each batch, others in every step if it likes. A batch has 8 to 10 samples, so
        that is up to 25 % of the smallest one.'
    """
    n, samples, share = budget["n"], budget["samples_per_step"], budget["share_of_the_smallest_batch"]
    does = "inserts and deletes together" if budget["edits"] == "insert-delete" else "changes"
    what = {
        "batch": f"{_samples(n)} of each batch, others in every step if it likes",
        "dataset": f"{_samples(n)} of the whole data set",
        "sources per batch": f"any samples of {_sources(n)} in each batch, others in every step if it likes",
        "sources per dataset": f"any samples of {_sources(n)}, the same in every step",
    }[budget["unit"]]
    first = f"It {does} {what}."
    if samples is None:
        return f"{first} How many samples a batch has is not known, so there is no share."
    many = str(samples[0]) if samples[0] == samples[1] else f"{samples[0]} to {samples[1]}"
    of = "a batch" if samples[0] == samples[1] else "the smallest one"
    rest = "" if share is None else f", so that is up to {percent(share)} of {of}"
    return f"{first} A batch has {many} samples{rest}."


def _samples(n: int) -> str:
    return f"at most {n} sample{'' if n == 1 else 's'}"


def _sources(n: int) -> str:
    return f"at most {n} source{'' if n == 1 else 's'}"


def adversary_in_words(adversary: Mapping[str, Any]) -> list[str]:
    """Return what an adversary does to a sample, in sentences; those of other classes than ours are not interpreted.

    Args:
        adversary: of a certificate: its class and settings, whatever they are.

    Example:
        >>> adversary_in_words({"type": "BoundedAdversary", "n": 1, "epsilon": 0.02, "p": "inf", "nu": 0.0, "q": "inf"})
        ['Features of such a sample are moved: the largest change of a feature is at most 0.02, in their own units as
        they enter the training step.', 'Labels stay as they are.']
    """
    sentences = {"BoundedAdversary": _bounded, "UnboundedAdversary": _unbounded}.get(adversary["type"])
    try:
        found = [] if sentences is None else sentences(adversary)
    except (KeyError, TypeError, ValueError):
        found = []
    return found or ["What it does to such a sample is what its class and settings say, which this page does not know."]


def _bounded(adversary: Mapping[str, Any]) -> list[str]:
    return [_features(adversary), _labels(adversary)]


def _features(adversary: Mapping[str, Any]) -> str:
    radius = _radius(adversary["epsilon"])
    if radius == "0":
        return "Features stay as they are."
    at, bounds, p = adversary.get("at"), adversary.get("bounds"), float(adversary["p"])
    what = "Features of such a sample are moved" if at is None else f"The outputs of the part {at} are moved"
    units = "as they enter the training step" if at is None else "as that part returns them"
    change = "largest change of a feature" if p == math.inf else _NORMS[p]
    stay = "" if bounds is None else f" They stay between {figure(bounds[0])} and {figure(bounds[1])}."
    return f"{what}: the {change} is at most {radius}, in their own units {units}.{stay}"


def _radius(epsilon: object) -> str:
    """Return a radius, or those of features each with its own."""
    values = _flat(epsilon)
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"a number for each feature, between {low:g} and {high:g}"


def _flat(value: object) -> list[float]:
    if isinstance(value, list):
        return [number for item in value for number in _flat(item)]
    number = _number(value)
    if number is None:
        raise TypeError(f"Expected numbers, but got {value!r}.")
    return [number]


def _labels(adversary: Mapping[str, Any]) -> str:
    nu, q = float(adversary["nu"]), float(adversary["q"])
    if nu == 0:
        return "Labels stay as they are."
    if q != 0:
        return f"Labels of such a sample are moved: the {_NORMS[q]} is at most {nu:g}, in units of the labels."
    to, of = adversary.get("target_classes"), adversary.get("source_classes")
    become = "any other label" if to is None else f"one of {_listed(to)}"
    only = "" if of is None else f", if it is one of {_listed(of)},"
    return f"The label of such a sample{only} becomes {become}."


def _unbounded(adversary: Mapping[str, Any]) -> list[str]:
    how = {
        "value": "each entry of a sample's gradient is cut to at most",
        "norm": "a sample's gradient is scaled to a Euclidean length of at most",
    }[adversary["clip"]]
    edits = adversary.get("edits", "replace") == "insert-delete"
    first = "Inserted samples can be any at all." if edits else "Such a sample is replaced by any other at all."
    return [first, f"What that can do is limited by clipping in training: {how} {figure(adversary['kappa'])}."]


def _listed(classes: Sequence[object]) -> str:
    return ", ".join(map(str, classes))


def _number(value: object) -> float | None:
    """Return a number, or an infinity as certificates write it; None for anything else."""
    if isinstance(value, bool) or not (isinstance(value, int | float) or value in ("inf", "-inf")):
        return None
    return float(value)
