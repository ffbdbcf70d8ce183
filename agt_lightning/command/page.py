"""The page about certificates: what its template shows, and the text that this makes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from agt_lightning.certificates.alike import differences, families
from agt_lightning.command.pictures import KINDS, curve, strip
from agt_lightning.command.words import METRICS, adversary_in_words, budget_in_words, figure, percent, visible

if TYPE_CHECKING:
    from agt_lightning.bounds import ParameterBounds
    from agt_lightning.certificates.findings import Finding

_TEMPLATE = "report.html.jinja"

_MOST_WIDTHS = 20
"""Parameters that are listed."""

_UNITS = {
    "batch": "samples of each batch",
    "dataset": "samples of the whole data set",
    "sources per batch": "sources in each batch",
    "sources per dataset": "sources in the whole data set",
}
"""What n counts, by the unit of a budget."""

_MOST_CLASSES = 10
"""Classes that are listed."""

_SMALLER_IS_WORSE = ("accuracy", "rate")


@dataclass(frozen=True)
class Shown:
    """A certificate on a page.

    Args:
        title: names it among others.
        record: of one adversary, checked against the schema.
        bounds: its intervals; None if they are not there.
    """

    title: str
    record: Mapping[str, Any]
    bounds: ParameterBounds | None


def page(shown: Sequence[Shown], checked: Sequence[tuple[str, Finding]]) -> str:
    """Return one self-contained page of HTML: no scripts, no requests, all text of certificates escaped.

    Args:
        shown: at least one certificate.
        checked: of which certificate, and what was checked.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=visible)
    template = environment.from_string(files("agt_lightning.command").joinpath(_TEMPLATE).read_text("utf-8"))
    return template.render(
        certificates=[_certificate(each) for each in shown],
        checked=[
            {"of": of, "about": found.about, "verdict": found.verdict.value, "message": found.message}
            for of, found in checked
        ],
        with_bounds=sum(each.bounds is not None for each in shown),
        curves=list(_curves(shown)),
        apart=differences([each.record for each in shown]),
    )


def _certificate(shown: Shown) -> dict[str, Any]:
    """Return what the template shows of one certificate."""
    record, domains = shown.record, shown.record["bounds"]["domains"]
    rows = [_row(each, several=len({other["loader"] for other in record["metrics"]}) > 1) for each in record["metrics"]]
    criteria = [_criterion(each) for each in record["acceptance"]]
    return {
        "title": shown.title,
        "record": record,
        "budget": budget_in_words(record["budget"]),
        "adversary": adversary_in_words(record["adversary"]),
        "settings": _flat_items({key: item for key, item in record["adversary"].items() if key != "type"}),
        "rows": rows,
        "worst": _worst_loader(record["metrics"]),
        "classes": _classes(record)[:_MOST_CLASSES],
        "more_classes": max(0, len(record.get("by_class", [])) - _MOST_CLASSES),
        "earlier": [
            (each["steps"], name, figure(value))
            for each in record["earlier_results"]
            for name, value in each["results"].items()
        ],
        "criteria": criteria,
        "verdicts": _verdicts(record, criteria),
        "domains": [(name, _decided(name, record["metrics"])) for name in domains["in_use"]]
        + [(name, f"left out: {why}") for name, why in domains["left_out"].items()],
        "widths": [] if shown.bounds is None else _widths(shown.bounds),
        "narrower": 0 if shown.bounds is None else max(0, len(shown.bounds) - _MOST_WIDTHS),
        "mean_width": figure(record["results"]["mean_width"]) if "mean_width" in record["results"] else "",
        "digests": _flat_items({**record["digests"], "the certificate itself": record["sha256_of_content"]}),
        "circumstances": _flat_items(
            {"versions": record["versions"], "made": record["made"], "optimizer": record["optimizer"]}
        ),
    }


def _name(metric: Mapping[str, Any], *, several: bool) -> str:
    name = METRICS.get(metric["metric"], metric["metric"])
    return f"{name}, validation loader {metric['loader']}" if several else name


def _row(metric: Mapping[str, Any], *, several: bool) -> dict[str, Any]:
    values = {kind: figure(metric[kind]) for kind in KINDS}
    name = _name(metric, several=several)
    described = "; ".join(f"{kind} {value}" for kind, value in values.items() if metric[kind] is not None)
    return {
        "name": name,
        "step": metric["step"],
        **values,
        "strip": strip(_numbers(metric)),
        "described": f"{name}: {described}",
    }


def _numbers(metric: Mapping[str, Any]) -> dict[str, float | None]:
    return {kind: None if metric[kind] is None else float(metric[kind]) for kind in KINDS}


def _worst_loader(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Return which validation loader has the worst certified value of each metric that several have."""
    found = []
    for name in dict.fromkeys(each["metric"] for each in metrics):
        values = {
            each["loader"]: float(each["certified"])
            for each in metrics
            if each["metric"] == name and each["certified"] is not None
        }
        if len(values) > 1:
            worst = (min if name.endswith(_SMALLER_IS_WORSE) else max)(values, key=lambda loader: values[loader])
            found.append(f"The worst certified {name} is that of validation loader {worst}: {figure(values[worst])}.")
    return " ".join(found)


def _classes(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return right and certified samples of each class, those with the smallest certified share first."""
    stated = record.get("by_class", [])
    several = len({each["loader"] for each in stated}) > 1
    ordered = sorted(stated, key=lambda each: each["certified"] / max(each["samples"], 1))
    return [
        {
            **each,
            "name": f"{each['class']}, validation loader {each['loader']}" if several else each["class"],
            "share": percent(each["certified"] / max(each["samples"], 1)),
        }
        for each in ordered
    ]


def _criterion(stated: Mapping[str, Any]) -> dict[str, str]:
    """Return a criterion in words; its numbers are not rounded, since six digits can move one over its limit."""
    limit = f"at least {stated['at_least']}" if "at_least" in stated else f"at most {stated['at_most']}"
    outcome, style = {True: ("met", "met"), False: ("not met", "unmet"), None: ("no such result", "unmet")}[
        stated["met"]
    ]
    early = stated["set_before_the_first_step"]
    return {
        "metric": stated["metric"],
        "limit": limit,
        "value": "none" if stated["value"] is None else str(stated["value"]),
        "set": "before the first step" if early else f"after step {stated['set_after_step']}, not before the first",
        "outcome": outcome,
        "style": style,
    }


def _verdicts(record: Mapping[str, Any], criteria: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return what a reader should see first: certified values beside nominal ones, and whether criteria are met."""
    found = [
        {
            "style": "",
            "word": f"{each['metric']}:",
            "text": f"{figure(each['nominal'])} for the trained module; "
            f"{figure(each['certified'])} certified for every model that the adversary could have caused.",
        }
        for each in record["metrics"]
        if each["certified"] is not None
    ]
    late = any(not each["set_before_the_first_step"] for each in record["acceptance"])
    unmet = [f"{each['metric']} {each['limit']}" for each in criteria if each["outcome"] != "met"]
    if unmet:
        found.append({"style": "bad", "word": "Criteria not met:", "text": f"{'; '.join(unmet)}."})
    elif criteria:
        set_late = " Not all of them were set before the first step." if late else ""
        found.append({"style": "bad" if late else "good", "word": "All criteria are met.", "text": set_late})
    return found


def _decided(domain: str, metrics: Sequence[Mapping[str, Any]]) -> str:
    shares = {each["loader"]: each["decided_by"][domain] for each in metrics if domain in each["decided_by"]}
    if not shares:
        return "in use"
    if len(shares) == 1:
        return f"decided {percent(next(iter(shares.values())))}"
    return "decided " + ", ".join(f"{percent(share)} of loader {loader}" for loader, share in shares.items())


def _widths(bounds: ParameterBounds) -> list[dict[str, Any]]:
    """Return the parameters with the widest intervals, widest first."""
    widths = {name: interval.width.double() for name, interval in bounds.items() if interval.lower.numel()}
    means = {name: float(width.mean()) for name, width in widths.items()}
    ordered = sorted(means, key=lambda name: -means[name])[:_MOST_WIDTHS]
    widest = means[ordered[0]] if ordered else 0.0
    return [
        {
            "name": name,
            "shape": " × ".join(map(str, widths[name].shape)) or "one number",
            "mean": figure(means[name]),
            "largest": figure(float(widths[name].max())),
            "bar": round(120 * means[name] / widest, 1) if widest else 0,
        }
        for name in ordered
    ]


def _curves(shown: Sequence[Shown]) -> Iterator[dict[str, Any]]:
    """Yield each metric over n, of certificates that differ in n alone."""
    groups = [family for family in families([each.record for each in shown]) if len(family) > 1]
    for number, family in enumerate(groups, 1):
        members = sorted((shown[position].record for position in family), key=lambda record: record["budget"]["n"])
        loaders = {each["loader"] for record in members for each in record["metrics"]}
        for metric, loader in dict.fromkeys(
            (each["metric"], each["loader"]) for record in members for each in record["metrics"]
        ):
            points = [
                (record["budget"]["n"], each)
                for record in members
                for each in record["metrics"]
                if (each["metric"], each["loader"]) == (metric, loader)
            ]
            name = _name(points[0][1], several=len(loaders) > 1)
            title = f"{name}, group {number}" if len(groups) > 1 else name
            picture = curve([(n, _numbers(each)) for n, each in points])
            yield {
                "title": title,
                "curve": picture,
                "ticks": []
                if picture is None
                else [(x, label) for x, label in picture.across.ticks if "." not in label],
                "unit": _UNITS[members[0]["budget"]["unit"]],
                "points": [(n, [figure(each[kind]) for kind in KINDS]) for n, each in points],
                "described": f"{title}, over n: "
                + "; ".join(f"n={n}: certified {figure(each['certified'])}" for n, each in points),
            }


def _flat_items(value: object, name: str = "") -> list[tuple[str, str]]:
    """Return entries within entries as rows of a table, each with the way to it as its name."""
    if isinstance(value, Mapping) and value:
        return [row for key, item in value.items() for row in _flat_items(item, f"{name}: {key}" if name else key)]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [row for place, item in enumerate(value, 1) for row in _flat_items(item, f"{name} {place}")]
    if isinstance(value, list):
        return [(name, ", ".join(map(str, value)) or "none")]
    return [(name, value if isinstance(value, str) else "none" if value in (None, {}) else json.dumps(value))]
